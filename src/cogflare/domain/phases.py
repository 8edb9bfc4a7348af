"""The life of a prediction: phases, public statuses, and which transitions exist.

    queued ──claim──▶ assigned ──started──▶ running ──finish──▶ ended
      ▲ │                │                     │
      │ └─park/release─▶ parked                │         cancel and finish end any phase;
      └──────────rescue──┴─────────────────────┘         `ended` is never left

Every transition is one compare-and-set on (phase, attempt) in the store; the attempt is the fence.
"""

from enum import StrEnum


class Phase(StrEnum):
    """Where a prediction stands inside Cogflare."""

    QUEUED = "queued"
    PARKED = "parked"
    ASSIGNED = "assigned"
    RUNNING = "running"
    ENDED = "ended"


class Status(StrEnum):
    """What clients see; it only moves forward."""

    STARTING = "starting"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    ABORTED = "aborted"


class Outcome(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    LOST = "lost"


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELED, Status.ABORTED})

TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.QUEUED: frozenset({Phase.ASSIGNED, Phase.PARKED, Phase.ENDED}),
    Phase.PARKED: frozenset({Phase.QUEUED, Phase.ENDED}),
    Phase.ASSIGNED: frozenset({Phase.RUNNING, Phase.QUEUED, Phase.PARKED, Phase.ENDED}),
    Phase.RUNNING: frozenset({Phase.QUEUED, Phase.PARKED, Phase.ENDED}),
    Phase.ENDED: frozenset(),
}


def can_move(source: Phase, target: Phase) -> bool:
    """Say whether a prediction may go from one phase to the other."""
    return target in TRANSITIONS[source]


def public_status(phase: Phase, has_started: bool, outcome: Status | None) -> Status:
    """Return what clients see of a prediction: a rescued one that had started stays `processing`."""
    if phase is Phase.ENDED:
        if outcome not in TERMINAL:
            raise ValueError(f"an ended prediction cannot be {outcome}")
        return outcome
    return Status.PROCESSING if has_started else Status.STARTING
