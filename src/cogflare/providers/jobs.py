"""Jobs as RunPod shows them, read into `Sight`s. Pure.

What a handler yields is told once, to whoever asks first, so the parts of a run are kept here while it goes on.
"""

from typing import Any, Final, Literal

import msgspec
from msgspec import Raw

from cogflare.providers.base import Sight, State
from cogflare.providers.sights import MOST_S, RemoteId, Unreadable

_STATES: Final[dict[str, State]] = {
    "IN_QUEUE": "waiting",
    "IN_PROGRESS": "running",
    "COMPLETED": "succeeded",
    "FAILED": "failed",
    "TIMED_OUT": "failed",
    "CANCELLED": "canceled",
}
_COG_STATES: Final[dict[str, State]] = {"succeeded": "succeeded", "canceled": "canceled"}
_NOTHING: Final = (b"null", b"[]")
_TRACE: Final = "\ntraceback: "
_MAX_LOGS: Final = 256 << 10
_MAX_PARTS: Final = 16 << 20  # bytes
_PART_BYTES: Final = 100  # that each costs beside its own
_LOST: Final = (
    "the endpoint yielded its output in parts, of which RunPod tells each only once, and this server did not hear all: "
    "set return_aggregate_stream in the endpoint's handler, which keeps the whole output until the end"
)
_TOO_MUCH: Final = f"the endpoint yielded more than {_MAX_PARTS} bytes, which are not kept"
_TOO_LONG: Final = "RunPod stopped it: it took longer than its time limit"
_NOT_COG: Final = "the endpoint's handler does not answer with Cog's prediction: set the shape of its route to plain"


class Part(msgspec.Struct, frozen=True):
    """What a handler has yielded."""

    output: Raw = Raw(b"null")


class Job(
    msgspec.Struct, frozen=True, rename={"delay_ms": "delayTime", "run_ms": "executionTime", "worker": "workerId"}
):
    """A job, as far as it matters here; times in milliseconds."""

    id: RemoteId
    status: str
    output: Raw = Raw(b"null")
    error: Any = None
    delay_ms: float | None = None
    run_ms: float | None = None
    worker: str | None = None
    stream: list[Part] = []

    @property
    def state(self) -> State:
        """Its state; one that nobody has heard of is a way to wait."""
        return _STATES.get(self.status, "waiting")

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.state not in ("waiting", "running")

    @property
    def has_output(self) -> bool:
        """Whether it has an output of its own. That of a handler that yields is an empty list, as a rule."""
        return bytes(self.output) not in _NOTHING


class _Trouble(msgspec.Struct, frozen=True):
    """What a worker says about an exception."""

    error_message: str
    error_type: str = ""
    error_traceback: str = ""


class _CogRun(msgspec.Struct, frozen=True):
    """A prediction of Cog's server."""

    status: str = ""
    output: Raw = Raw(b"null")
    logs: str | None = None
    error: Any = None
    metrics: dict[str, Raw] | None = None
    detail: Any = None  # of an input that it has refused


_job: Final = msgspec.json.Decoder(Job)
_anything: Final = msgspec.json.Decoder()


def read(body: bytes) -> Job:
    """Read a job; raises `Unreadable`, for text that nobody could store too."""
    try:
        job = _job.decode(body)
        for raw in (job.output, *(part.output for part in job.stream)):
            _anything.decode(raw)
    except (ValueError, RecursionError) as error:
        raise Unreadable(str(error)) from error
    return job


class Run:
    """What was heard of one job so far. `is_whole`: all that its handler has yielded was told to us, and arrived."""

    def __init__(self, shape: Literal["plain", "cog"], *, is_whole: bool) -> None:
        self.is_whole = is_whole
        self.yields = False
        self.size = 0
        self._lost = _LOST
        self._parts: list[Raw] = []
        self._shape = shape
        self._has_run = False
        self._logs = ""
        self._told: bytes | None = None

    def add(self, job: Job) -> None:
        """Keep the parts of a job that came now, as long as none before them is missing."""
        self.yields |= bool(job.stream)
        if not self.is_whole:
            return
        self.size += sum(len(memoryview(part.output)) + _PART_BYTES for part in job.stream)
        # A copy each: they would keep the answers alive that they came in.
        self._parts += [part.output.copy() for part in job.stream]
        if self.size > _MAX_PARTS:
            self.is_whole, self._lost = False, _TOO_MUCH
            self.forget()

    def sight(self, job: Job) -> Sight:
        """Return what is seen of the run."""
        self._has_run |= job.state in ("running", "succeeded") or bool(job.run_ms) or job.worker is not None
        if job.state == "running":
            self._note(job.output)
        run_s = _seconds(job.run_ms)
        if job.is_over and not self._has_run:
            run_s = 0.0
        seen = Sight(
            remote_id=job.id,
            state=job.state,
            started=self._has_run,
            output=self._output(job),
            logs=self._logs,
            run_s=run_s,
            queue_s=_seconds(job.delay_ms),
        )
        if job.state == "failed":
            return self._failed(seen, job)
        if self._shape == "cog":
            return _cog(seen, job) if job.state == "succeeded" else seen
        if job.state == "succeeded" and self._has_holes(job):
            return msgspec.structs.replace(seen, state="failed", error=self._lost)
        return seen

    def forget(self) -> None:
        """Drop the parts: the job itself has its whole output."""
        self._parts.clear()
        self.size = 0

    def _output(self, job: Job) -> Raw | None:
        if self._shape == "cog":
            return None
        if job.is_over and job.has_output:
            return job.output
        if self._parts:
            return Raw(b"[" + b",".join(bytes(part) for part in self._parts) + b"]")
        return job.output if job.state == "succeeded" and bytes(job.output) != b"null" else None

    def _has_holes(self, job: Job) -> bool:
        """Whether its output may be what is left of a longer one."""
        return not self.is_whole and not job.has_output and (self.yields or bytes(job.output) == b"[]")

    def _note(self, progress: Raw) -> None:
        """Add what a handler tells of its progress, which stands where the output will be, to the logs."""
        told = bytes(progress)
        if told not in (b"null", self._told) and len(self._logs) + len(told) < _MAX_LOGS:
            self._told = told
            self._logs += f"{_text(_anything.decode(told))}\n"

    def _failed(self, seen: Sight, job: Job) -> Sight:
        text, trace = _trouble(job.error)
        if job.status == "TIMED_OUT":
            text = f"{_TOO_LONG}: {text}" if text else _TOO_LONG
        logs = seen.logs + trace
        metrics: dict[str, Raw] = {}
        if self._shape == "cog" and (found := _read_cog(job.output)) is not None:
            logs, metrics = f"{found.logs or ''}{trace}", found.metrics or {}
        return msgspec.structs.replace(seen, error=text or "It failed without a message.", logs=logs, metrics=metrics)


def _cog(seen: Sight, job: Job) -> Sight:
    """Return what is seen of a run whose output is a prediction of Cog's server."""
    found = _read_cog(job.output)
    if found is None or (not found.status and found.detail is None):
        return msgspec.structs.replace(seen, state="failed", error=_NOT_COG)
    state, error = _COG_STATES.get(found.status, "failed"), None
    if state == "failed":
        error = _text(found.error) or _text(found.detail) or "It failed without a message."
    output = None if bytes(found.output) == b"null" else found.output
    return msgspec.structs.replace(
        seen, state=state, output=output, logs=found.logs or "", error=error, metrics=found.metrics or {}
    )


def _read_cog(output: Raw) -> _CogRun | None:
    try:
        return msgspec.json.decode(output, type=_CogRun)
    except (msgspec.DecodeError, RecursionError):
        return None


def _trouble(error: Any) -> tuple[str, str]:
    """Return the message of an error, and where in the handler it was raised, as far as the worker says so."""
    text = _text(error)
    try:
        found = msgspec.json.decode(text, type=_Trouble)
    except (msgspec.DecodeError, RecursionError):
        message, _, trace = text.partition(_TRACE)
        return (message.removeprefix("handler: ").strip(), f"{trace.strip()}\n") if trace else (text, "")
    trace = f"{found.error_traceback.strip()}\n" if found.error_traceback else ""
    return found.error_message.strip() or found.error_type, trace


def _seconds(milliseconds: float | None) -> float | None:
    """Return a time that can be believed, in seconds."""
    return None if milliseconds is None or not 0 <= milliseconds <= MOST_S * 1000 else milliseconds / 1000


def _text(value: Any) -> str:
    """Return words as they are, and anything else as JSON."""
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return "" if value is None else msgspec.json.encode(value).decode()
