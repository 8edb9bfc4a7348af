"""Ways to break a sound history, each of which breaks one promise."""

import random
from collections.abc import Callable
from typing import Any

import msgspec

from chaos.histories import END, SHAPES, S, Shape, Tale, history, ordered
from cogflare.cli.verification.history import (
    MISSING,
    Accepted,
    Asked,
    BadInput,
    Begun,
    CancelAsked,
    CancelTold,
    Event,
    Fault,
    Foreign,
    Leftover,
    Refused,
    Seen,
    Stored,
    StoredAttempt,
    StoredFile,
    Unanswered,
)
from cogflare.cli.verification.model import UNREADABLE, answer, item, line

Break = Callable[[list[Event], Tale], list[Event]]


class Kind(msgspec.Struct, frozen=True):
    """A way to break a history: the invariant, the shapes of predictions it can be done to, and how."""

    name: str
    invariant: int
    shapes: tuple[Shape, ...]
    make: Break

    def broken(self, tales: list[Tale], dice: random.Random) -> list[Event] | None:
        """Return the history of these predictions with one of them broken; None if none can be."""
        fitting = [tale for tale in tales if tale.shape in self.shapes]
        if not fitting:
            return None
        return ordered(self.make(history(tales), dice.choice(fitting)))


def changed(events: list[Event], tale: Tale, kind: type[Event], **fields: Any) -> list[Event]:
    """Return the events with these fields of one kind of event of a prediction set."""

    def is_it(event: Event) -> bool:
        return isinstance(event, kind) and event.prediction == tale.id  # type: ignore[union-attr]

    assert any(map(is_it, events)), f"no {kind.__name__} of {tale.shape}"
    return [msgspec.structs.replace(event, **fields) if is_it(event) else event for event in events]


def without(events: list[Event], tale: Tale, *kinds: type[Event]) -> list[Event]:
    """Return the events without these kinds of a prediction."""
    return [event for event in events if not (isinstance(event, kinds) and event.prediction == tale.id)]  # type: ignore[union-attr]


def _last_read(events: list[Event], tale: Tale, **fields: Any) -> list[Event]:
    """Add another read, after all others, like the last one but for these fields."""
    last = [event for event in events if isinstance(event, Seen) and event.prediction == tale.id][-1]
    return [*events, msgspec.structs.replace(last, at=last.at + 2 * S, asked_at=last.at + S, **fields)]


def _opened(events: list[Event], tale: Tale) -> list[Event]:
    """A prediction that its clients never saw end, and that has not."""
    kept = [
        event
        for event in events
        if not (
            isinstance(event, Seen) and event.prediction == tale.id and event.status not in ("starting", "processing")
        )
    ]
    return changed(kept, tale, Stored, phase="running", status="processing", completed_at=None)


def _shared_worker() -> list[Event]:
    """Two predictions of two accounts, on one worker."""
    events = [event for number in (998, 999) for event in Tale(number, "plain", 0).events()]
    return [msgspec.structs.replace(event, worker="both-1") if isinstance(event, Begun) else event for event in events]


_PLAIN: tuple[Shape, ...] = ("plain", "file", "failed", "held", "rescued")
_ENDED: tuple[Shape, ...] = ("plain", "file", "failed", "held", "rescued", "canceled", "late_cancel")
_DONE: tuple[Shape, ...] = ("plain", "rescued", "late_cancel")

KINDS = (
    Kind(
        "an accepted prediction is not stored",
        1,
        ("plain", "file", "failed", "held", "rescued"),
        lambda events, tale: without(events, tale, Stored, StoredAttempt, StoredFile),
    ),
    Kind(
        "an accepted prediction is not found",
        1,
        _ENDED,
        lambda events, tale: [*events, Seen(END, END - S, tale.client, tale.id, MISSING, None, None, "404")],
    ),
    Kind("an accepted prediction never ends", 1, ("plain", "failed", "rescued"), _opened),
    Kind(
        "a success lacks the end of its log",
        1,
        ("plain",),
        lambda events, tale: changed(without(events, tale, Seen), tale, Stored, logs=tale.logs(2)),
    ),
    Kind(
        "a success lacks items",
        1,
        ("plain",),
        lambda events, tale: changed(without(events, tale, Seen), tale, Stored, output=tale.output(2)),
    ),
    Kind(
        "a failure that is nobody's",
        1,
        ("failed",),
        lambda events, tale: changed(without(events, tale, Seen), tale, Stored, error="Internal error"),
    ),
    Kind(
        "a model is given an input file that is not there",
        1,
        ("failed",),
        lambda events, tale: changed(
            without(events, tale, Seen), tale, Stored, error=answer(tale.tag, 1, f"{UNREADABLE}: 404")
        ),
    ),
    Kind(
        "an input file cannot be fetched",
        1,
        ("failed",),
        lambda events, tale: changed(
            without(events, tale, Seen), tale, Stored, error="input.source: cannot fetch http://x/f: ReadError"
        ),
    ),
    Kind(
        "an interruption of what could have run again",
        1,
        ("failed",),
        lambda events, tale: [
            *changed(without(events, tale, Seen), tale, Stored, error="Prediction interrupted; please retry"),
            tale.fault(2, 2, "kill", "model"),
        ],
    ),
    Kind(
        "an end without a deadline",
        1,
        ("plain", "rescued"),
        lambda events, tale: changed(
            [
                msgspec.structs.replace(event, outcome="aborted")
                if isinstance(event, StoredAttempt) and event.prediction == tale.id and event.outcome != "lost"
                else event
                for event in without(events, tale, Seen)
            ],
            tale,
            Stored,
            status="aborted",
        ),
    ),
    Kind(
        "an end whose time nobody knows",
        1,
        _ENDED,
        lambda events, tale: changed(events, tale, Stored, completed_at=None),
    ),
    Kind(
        "two terminal statuses are seen",
        2,
        ("plain", "failed", "held", "rescued", "canceled"),
        lambda events, tale: _last_read(events, tale, status="aborted"),
    ),
    Kind(
        "one terminal status with two outputs",
        2,
        _DONE,
        lambda events, tale: _last_read(events, tale, output=tale.output(3)),
    ),
    Kind(
        "the stored end is another than the seen one",
        2,
        ("plain", "rescued"),
        lambda events, tale: changed(events, tale, Stored, status="failed", error=answer(tale.tag, tale.attempt, "no")),
    ),
    Kind(
        "two attempts end one prediction",
        2,
        ("rescued",),
        lambda events, tale: [
            msgspec.structs.replace(event, outcome="succeeded")
            if isinstance(event, StoredAttempt) and event.prediction == tale.id
            else event
            for event in events
        ],
    ),
    Kind(
        "processing after the end",
        2,
        _PLAIN,
        lambda events, tale: _last_read(events, tale, status="processing"),
    ),
    Kind(
        "starting after processing",
        2,
        ("plain", "rescued"),
        lambda events, tale: [*events, tale.seen(5.6, 5.5, "starting")],
    ),
    Kind(
        "a create told an end that is not",
        2,
        ("held",),
        lambda events, tale: changed(events, tale, Accepted, status="failed"),
    ),
    Kind(
        "the last attempt tells another end",
        2,
        ("plain",),
        lambda events, tale: changed(events, tale, StoredAttempt, outcome="failed"),
    ),
    Kind(
        "an attempt that nobody knows runs",
        3,
        ("rescued",),
        lambda events, tale: [*events, tale.begun(6, 3), tale.fault(5.8, 5.8, "kill", "model")],
    ),
    Kind(
        "an old attempt's output is stored",
        3,
        ("rescued_canceled",),
        lambda events, tale: changed(
            without(events, tale, Seen), tale, Stored, output=[*tale.output(2), item(tale.tag, 1, 2)]
        ),
    ),
    Kind(
        "an old attempt's log is stored",
        3,
        ("rescued_canceled",),
        lambda events, tale: changed(without(events, tale, Seen), tale, Stored, logs=tale.logs(2, 1) + tale.logs(2)),
    ),
    Kind(
        "an old attempt's data is shown again",
        3,
        ("rescued",),
        lambda events, tale: [*events, tale.seen(5.6, 5.5, "processing", 1, 1)],
    ),
    Kind(
        "an old attempt's file",
        3,
        ("file",),
        lambda events, tale: changed(events, tale, StoredFile, says=7, sha256_matches=False),
    ),
    Kind(
        "an output changes behind what was shown",
        3,
        ("plain", "canceled"),
        lambda events, tale: [
            *events,
            msgspec.structs.replace(
                tale.seen(5.6, 5.5, "processing", 2), output=[item(tale.tag, 1, 0), item(tale.tag, 1, 5)]
            ),
        ],
    ),
    Kind(
        "data of another prediction of the account",
        3,
        ("failed",),
        lambda events, tale: [
            Asked(0, tale.client, "tag-other-x"),
            *changed(without(events, tale, Seen), tale, Stored, logs=line("tag-other-x", 1, 0)),
        ],
    ),
    Kind(
        "a cancel is lost",
        4,
        ("canceled",),
        lambda events, tale: changed(without(events, tale, Seen), tale, CancelTold, status="succeeded"),
    ),
    Kind(
        "a cancel is forgotten",
        4,
        ("canceled",),
        lambda events, tale: [
            *without(events, tale, Seen),
            tale.seen(7.2, 7.1, "processing", 1),
        ],
    ),
    Kind(
        "a cancel decides nothing",
        4,
        ("late_cancel",),
        lambda events, tale: changed(events, tale, CancelTold, status="processing"),
    ),
    Kind(
        "a canceled run goes on",
        4,
        ("canceled",),
        lambda events, tale: [*events, Leftover(END, "canceled_run", f"{tale.id} 1")],
    ),
    Kind(
        "canceled, and nobody asked",
        4,
        ("canceled", "rescued_canceled"),
        lambda events, tale: without(events, tale, CancelAsked, CancelTold),
    ),
    Kind("a slot leaks", 5, _ENDED, lambda events, tale: changed(events, tale, StoredAttempt, freed=False)),
    Kind(
        "an attempt is live for ever",
        5,
        ("plain",),
        lambda events, tale: changed(events, tale, StoredAttempt, ended=None, outcome=None),
    ),
    Kind(
        "a queue entry is left",
        5,
        _ENDED,
        lambda events, tale: [*events, Leftover(END, "left_entries", f"{tale.id} me/model")],
    ),
    Kind(
        "an unanswered create is stored twice",
        6,
        ("unanswered",),
        lambda events, tale: [
            *events,
            *(
                msgspec.structs.replace(event, prediction="twin")
                for event in events
                if isinstance(event, Stored) and event.tag == tale.tag
            ),
        ],
    ),
    Kind("an unanswered create is stored in half", 6, ("unanswered",), _opened),
    Kind(
        "a prediction of an unanswered create is lost after it was seen",
        6,
        ("unanswered",),
        lambda events, tale: without(events, tale, Stored, StoredAttempt),
    ),
    Kind("a file is missing", 7, ("file",), lambda events, tale: changed(events, tale, StoredFile, is_there=False)),
    Kind("a file is not known", 7, ("file",), lambda events, tale: changed(events, tale, StoredFile, state=None)),
    Kind("a file is not bound", 7, ("file",), lambda events, tale: changed(events, tale, StoredFile, state="pending")),
    Kind(
        "a file is cut off", 7, ("file",), lambda events, tale: changed(events, tale, StoredFile, sha256_matches=False)
    ),
    Kind(
        "a second run without excuse",
        8,
        ("rescued",),
        lambda events, tale: [
            event for event in events if not (isinstance(event, Fault) and event.target == f"model-{tale.worker[7:]}")
        ],
    ),
    Kind(
        "a run is given up without excuse",
        8,
        ("failed",),
        lambda events, tale: changed(
            without(events, tale, Seen), tale, Stored, error="Prediction was lost 3 times; the last time because"
        ),
    ),
    Kind(
        "one attempt runs twice", 8, ("plain", "rescued"), lambda events, tale: [*events, tale.begun(4.2, tale.attempt)]
    ),
    Kind(
        "another account sees a prediction",
        9,
        _ENDED,
        lambda events, tale: [*events, Foreign(END, END - S, "else/1", tale.id, "get", 200)],
    ),
    Kind(
        "another account lists a prediction",
        9,
        _ENDED,
        lambda events, tale: _last_read(events, tale, client="else/1"),
    ),
    Kind(
        "a worker serves two accounts",
        9,
        ("plain",),
        lambda events, _: [*events, *_shared_worker()],
    ),
    Kind(
        "data of another account",
        9,
        ("failed",),
        lambda events, tale: [
            Asked(0, "else/1", "tag-else-x"),
            *changed(without(events, tale, Seen), tale, Stored, logs=line("tag-else-x", 1, 0)),
        ],
    ),
    Kind("a 500 for bad input", 10, SHAPES, lambda events, _: [*events, BadInput(35 * S, 34 * S, "c", "x", 500, True)]),
    Kind(
        "a 503 for bad input out of the blue",
        10,
        SHAPES,
        lambda events, _: [*events, BadInput(35 * S, 34 * S, "c", "x", 503, True)],
    ),
    Kind("bad input is taken", 10, SHAPES, lambda events, _: [*events, BadInput(35 * S, 34 * S, "c", "x", 201, True)]),
    Kind(
        "no problem document", 10, SHAPES, lambda events, _: [*events, BadInput(35 * S, 34 * S, "c", "x", 422, False)]
    ),
    Kind(
        "bad input is refused and stored",
        10,
        ("unanswered",),
        lambda events, tale: [
            *(event for event in events if not isinstance(event, Unanswered) or event.tag != tale.tag),
            BadInput(35 * S, 34 * S, tale.client, "x", 422, True, tale.tag),
        ],
    ),
    Kind(
        "a create is refused and stored",
        10,
        ("unanswered",),
        lambda events, tale: [
            *(event for event in events if not isinstance(event, Unanswered) or event.tag != tale.tag),
            Refused(20 * S, tale.client, tale.tag, 507, "Insufficient storage"),
        ],
    ),
    Kind(
        "a 500 for a sound create",
        10,
        SHAPES,
        lambda events, _: [*events, Refused(20 * S, "c", "tag-new-1", 500, "Internal server error")],
    ),
)
