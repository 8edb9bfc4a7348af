"""A history put in order: everything that is known of one prediction together, and the faults as spans of time."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from cogflare.cli.verification.history import (
    MISSING,
    Accepted,
    Asked,
    BadInput,
    Begun,
    CancelAsked,
    CancelTold,
    Died,
    Event,
    Fault,
    Foreign,
    Leftover,
    Over,
    Refused,
    Seen,
    Stored,
    StoredAttempt,
    StoredDelivery,
    StoredFile,
    Streamed,
    Told,
    Unanswered,
)

TERMINAL = frozenset({"succeeded", "failed", "canceled", "aborted"})
OfPrediction = (
    Accepted
    | Seen
    | CancelAsked
    | CancelTold
    | Told
    | Streamed
    | Begun
    | Over
    | Stored
    | StoredAttempt
    | StoredFile
    | StoredDelivery
)
_RANKS = {"starting": 0, "processing": 1}
_LISTS: dict[type[Event], str] = {
    Seen: "seen",
    CancelAsked: "cancels_asked",
    CancelTold: "cancels",
    Told: "told",
    Streamed: "streamed",
    Begun: "begun",
    Over: "over",
    StoredAttempt: "attempts",
    StoredFile: "files",
    StoredDelivery: "deliveries",
    Refused: "refused",
    Unanswered: "unanswered",
    BadInput: "bad_inputs",
    Foreign: "foreign",
    Fault: "faults",
    Leftover: "leftovers",
}


def rank(status: str) -> int:
    """How far a status is: starting, processing, ended."""
    return _RANKS.get(status, 2)


class Case(msgspec.Struct):
    """What is known of one prediction."""

    prediction: str
    accepted: Accepted | None = None
    seen: list[Seen] = []
    missing: list[Seen] = []
    cancels_asked: list[CancelAsked] = []
    cancels: list[CancelTold] = []
    told: list[Told] = []
    streamed: list[Streamed] = []
    begun: list[Begun] = []
    over: list[Over] = []
    stored: Stored | None = None
    attempts: list[StoredAttempt] = []
    files: list[StoredFile] = []
    deliveries: list[StoredDelivery] = []

    @property
    def is_ended(self) -> bool:
        """Whether the store says that it has ended."""
        stored = self.stored
        if stored is None or stored.phase != "ended" or stored.completed_at is None:
            return False
        return stored.status in TERMINAL

    @property
    def tag(self) -> str | None:
        """Its tag, as its client or the store knows it."""
        if self.accepted is not None:
            return self.accepted.tag
        return None if self.stored is None else self.stored.tag


class Spans:
    """Spans of time, joined where less than `slack_us` lies between two of them."""

    def __init__(self, spans: Iterable[tuple[int, int]], slack_us: int) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._slack_us = slack_us
        for start, end in sorted(spans):
            if self._ends and start <= self._ends[-1] + slack_us:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)

    def longest_within(self, start: int, end: int) -> int | None:
        """The length of the longest span that reaches into this time, cut at its end; None where none does."""
        found: int | None = None
        for position in range(bisect_right(self._starts, end) - 1, -1, -1):
            if self._ends[position] + self._slack_us < start:
                break
            found = max(found or 0, min(self._ends[position], end) - self._starts[position])
        return found


class Cases:
    """A whole history by prediction, by tag and by process. Events come in the order of their moments."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.begin = events[0].at if events else 0
        self.by_id: dict[str, Case] = {}
        self.asked: dict[str, Asked] = {}
        self.by_tag: dict[str, list[Stored]] = defaultdict(list)
        self.deaths: dict[int, list[int]] = defaultdict(list)
        self.refused: list[Refused] = []
        self.unanswered: list[Unanswered] = []
        self.bad_inputs: list[BadInput] = []
        self.foreign: list[Foreign] = []
        self.faults: list[Fault] = []
        self.leftovers: list[Leftover] = []
        for event in events:
            if isinstance(event, OfPrediction):
                self._of_prediction(event)
            else:
                self._of_run(event)

    def when(self, at: int) -> str:
        """Write a moment as seconds since the history began."""
        return f"{(at - self.begin) / 1e6:.3f} s"

    def _of_prediction(self, event: OfPrediction) -> None:
        case = self.by_id.get(event.prediction)
        if case is None:
            case = self.by_id[event.prediction] = Case(event.prediction)
        if isinstance(event, Accepted):
            case.accepted = event
        elif isinstance(event, Stored):
            case.stored = event
            if event.tag is not None:
                self.by_tag[event.tag].append(event)
        elif isinstance(event, Seen) and event.status == MISSING:
            case.missing.append(event)
        else:
            getattr(case, _LISTS[type(event)]).append(event)

    def _of_run(self, event: Event) -> None:
        if isinstance(event, Asked):
            # The first time; it may be sent again.
            self.asked.setdefault(event.tag, event)
        elif isinstance(event, Died):
            self.deaths[event.pid].append(event.at)
        elif type(event) in _LISTS:
            getattr(self, _LISTS[type(event)]).append(event)
