"""Sound histories to show to the checker."""

from typing import Any, Literal

from cogflare.cli.verification.history import (
    Accepted,
    Asked,
    BadInput,
    Begun,
    CancelAsked,
    CancelTold,
    Event,
    Fault,
    Foreign,
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
from cogflare.cli.verification.model import answer, item, line

S = 1_000_000
END = 10_000 * S
ITEMS = 4

Shape = Literal[
    "plain",
    "file",
    "failed",
    "held",
    "rescued",
    "rescued_canceled",
    "canceled",
    "late_cancel",
    "unanswered",
    "absent",
    "hooked",
    "streamed",
    "streamed_anew",
]
SHAPES: tuple[Shape, ...] = (
    "plain",
    "file",
    "failed",
    "held",
    "rescued",
    "rescued_canceled",
    "canceled",
    "late_cancel",
    "unanswered",
    "absent",
    "hooked",
    "streamed",
    "streamed_anew",
)
_CANCELED = ("canceled", "rescued_canceled")
_RESCUED = ("rescued", "rescued_canceled", "streamed_anew")


class Tale:
    """The history of one prediction, `number`, whose account is one of two; it takes some ten seconds."""

    def __init__(self, number: int, shape: Shape, start: int) -> None:
        self.account = ("mine", "yours")[number % 2]
        self.client = f"{self.account}/{number % 4}"
        self.worker = f"worker-{number + 1}"
        self.tag = f"tag-{number}-x"
        self.id = f"p{number}"
        self.shape = shape
        self.attempt = 2 if shape in _RESCUED else 1
        self.kind = "single" if shape in ("file", "failed") else "iterator"
        self.status = "failed" if shape == "failed" else "canceled" if shape in _CANCELED else "succeeded"
        self._start = start
        self._number = number

    def events(self) -> list[Event]:
        """Return what happened, in no order."""
        if self.shape == "absent":
            return [self._asked(), Unanswered(self._at(0.5), self.client, self.tag, "reset")]
        created: list[Event] = [self._asked()]
        if self.shape == "unanswered":
            created.append(Unanswered(self._at(0.5), self.client, self.tag, "reset"))
        else:
            told = self.status if self.shape == "held" else "starting"
            # The hold was answered when all was over; a plain create at once.
            created.append(
                Accepted(self._at(7.5 if self.shape == "held" else 0.5), self.client, self.tag, self.id, told)
            )
        return [
            *created,
            *self._runs(),
            *self._reads(),
            *self._cancel(),
            *self._told(),
            *self._streamed(),
            *self._stored(),
        ]

    def output(self, count: int = ITEMS, attempt: int | None = None) -> Any:
        """Return the output after so many items."""
        attempt = attempt or self.attempt
        if self.shape == "failed":
            return None
        if self.shape == "file":
            return f"cogflare-file:/f/{self.id}/answer.txt" if count == ITEMS else None
        return [item(self.tag, attempt, index) for index in range(count)] if count else None

    def logs(self, count: int = ITEMS, attempt: int | None = None) -> str:
        """Return the log after so many lines."""
        return "".join(line(self.tag, attempt or self.attempt, index) for index in range(count))

    def seen(self, at: float, asked_at: float, status: str, count: int = 0, attempt: int | None = None) -> Seen:
        """Return a read."""
        error = answer(self.tag, self.attempt, "as told") if status == "failed" else None
        shown = (self.output(count, attempt), self.logs(count, attempt))
        return Seen(self._at(at), self._at(asked_at), self.client, self.id, status, *shown, error)

    def told(self, at: float, message: str, status: str, count: int = 0, code: int | None = 200) -> Told:
        """Return a message to the webhook, which was under way for a tenth of a second."""
        data = (self.output(count), self.logs(count), None)
        moments = (self._at(at), self._at(at - 0.1))
        return Told(*moments, "hook-1", message, True, self.tag, self.id, status, *data, code)

    def streamed(self, at: float, count: int, attempt: int, done: str = "", *, with_logs: bool = False) -> Streamed:
        """Return what a reader was shown, whose connection broke once."""
        logs = self.logs(count, attempt) if with_logs else None
        error = "The prediction started over" if done == "error" else None
        shown = (self.output(count, attempt) or [], logs, error, done, None, 1)
        return Streamed(self._at(at), self._at(at - 1), self.client, self.id, *shown)

    @property
    def shown(self) -> int:
        """How many items and lines it ended with."""
        return 2 if self.shape in _CANCELED else ITEMS

    def begun(self, at: float, attempt: int) -> Begun:
        """Return the begin of a run."""
        return Begun(self._at(at), self.worker, 100 + self._number, 500 + self._number, self.id, attempt, self.tag)

    def fault(self, at: float, until: float, kind: str, what: str) -> Fault:
        """Return a fault of the worker of this prediction: what is worker, link or model."""
        return Fault(self._at(at), self._at(until), kind, f"{what}-{self._number + 1}", "")

    def _at(self, seconds: float) -> int:
        return self._start + round(seconds * S)

    def _asked(self) -> Asked:
        script: dict[str, Any] = {"tag": self.tag, "log": ITEMS, "items": ITEMS}
        script |= {"file": "text"} if self.shape == "file" else {"fail": "as told"} if self.shape == "failed" else {}
        events = ["start", "output", "completed"] if self.shape == "hooked" else None
        return Asked(self._at(0), self.client, self.tag, self.kind, script, events=events)

    def _runs(self) -> list[Event]:
        how = {"succeeded": "done"}.get(self.status, self.status)
        over = Over(self._at(6.4), self.worker, 500 + self._number, self.id, self.attempt, how)
        if self.shape in _RESCUED:
            return [self.begun(1, 1), self.fault(3.5, 3.5, "kill", "model"), self.begun(4, 2), over]
        return [self.begun(1, 1), over]

    def _reads(self) -> list[Event]:
        first = self.seen(2.5, 2, "processing", 1, 1)
        # Asked before the other was answered: it may be older.
        race = [self.seen(2.6, 1.9, "starting")]
        last = [self.seen(8, 7.8, self.status, self.shown), self.seen(9, 8.5, self.status, self.shown)]
        if self.shape in _RESCUED:
            return [first, *race, self.seen(3.8, 3.7, "processing"), self.seen(5, 4.5, "processing", 2, 2), *last]
        return [first, *race, self.seen(5, 4.5, "processing", 2), *last]

    def _cancel(self) -> list[Event]:
        if self.shape not in (*_CANCELED, "late_cancel"):
            return []
        at = 7 if self.shape == "late_cancel" else 6
        told = CancelTold(self._at(at + 0.2), self.client, self.id, self.status)
        return [CancelAsked(self._at(at), self.client, self.id), told]

    def _told(self) -> list[Event]:
        """A message that is lost, one that comes, and an end that is refused, lost, taken and told again."""
        if self.shape != "hooked":
            return []
        end = f"msg_{self.id}"
        return [
            self.told(1.5, f"{end}_1", "processing", code=500),
            self.told(3, f"{end}_2", "processing", 2),
            self.told(6.6, end, self.status, ITEMS, 503),
            self.told(7, end, self.status, ITEMS, None),
            self.told(8, end, self.status, ITEMS),
            self.told(9, end, self.status, ITEMS),
        ]

    def _streamed(self) -> list[Event]:
        """A reader from the beginning, and one behind the end; an attempt that is lost ends the first one."""
        if self.shape not in ("streamed", "streamed_anew"):
            return []
        anew = self.shape == "streamed_anew"
        first = self.streamed(4.5, 1, 1, "error") if anew else self.streamed(7, ITEMS, 1)
        return [first, self.streamed(9, ITEMS, self.attempt, with_logs=True)]

    def _stored(self) -> list[Event]:
        error = answer(self.tag, self.attempt, "as told") if self.status == "failed" else None
        stored = Stored(
            END,
            self.id,
            self.account,
            self.tag,
            "ended",
            self.status,
            self.attempt,
            self.attempt - 1,
            self._at(6.5),
            self.output(self.shown),
            error,
            self.logs(self.shown),
        )
        lost = [StoredAttempt(END, self.id, 1, self.worker, 1, 4, "lost", True)] if self.shape in _RESCUED else []
        attempt = StoredAttempt(END, self.id, self.attempt, self.worker, 1, 7, self.status, True)
        files: list[Event] = []
        if self.shape == "file":
            files.append(StoredFile(END, self.id, f"f/{self.id}/answer.txt", "bound", True, 9, True, 1))
        if self.shape == "hooked":
            files.append(StoredDelivery(END, self.id, f"msg_{self.id}", "delivered", 4))
        return [stored, *lost, attempt, *files]


def around() -> list[Event]:
    """Return what else happens in a run: hostile requests, and faults that touch nobody of the tales."""
    return [
        BadInput(3 * S, 2 * S, "mine/1", "no JSON", 400, True),
        BadInput(5 * S, 4 * S, "mine/1", "bad input", 422, True, "tag-bad-1"),
        BadInput(43 * S, 42 * S, "mine/1", "bad input", 503, True, "tag-bad-2"),
        Foreign(6 * S, 5 * S, "mine/1", "p1", "cancel", 404),
        Refused(44 * S, "mine/1", "tag-refused-1", 507, "Insufficient storage"),
        Fault(40 * S, 42 * S, "disk_full", "server-1", ""),
        Fault(50 * S, 50 * S, "clock_jump", "server-1", "3600 s"),
    ]


def history(tales: list[Tale]) -> list[Event]:
    """Return the history of these predictions together."""
    return ordered([*around(), *(event for tale in tales for event in tale.events())])


def ordered(events: list[Event]) -> list[Event]:
    return sorted(events, key=lambda event: event.at)
