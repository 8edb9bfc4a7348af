"""The Runner seam: one model on a worker, set up once, then run job by job.

    RunnerError
    ├── SetupFailed      the model never became ready
    ├── RunLost          a run was lost to infrastructure, not to the model
    └── RestartRefused   the model is not this runner's to restart

A runner owns its model and whatever it started for it. It never decides what a loss means: a job that ends in
``RunLost`` may go elsewhere, one that ends in ``Finished`` is over.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

LogSink = Callable[[str], None]


class RunnerError(Exception):
    """A runner could not do what it was asked."""


class SetupFailed(RunnerError):
    """The model never became ready; the message ends with the last lines of its log."""


class RunLost(RunnerError):
    """The run was lost to infrastructure; it counts as a strike only if ``Started`` had been seen."""


class RestartRefused(RunnerError):
    """The model is not this runner's to restart."""


class OutputRefused(Exception):
    """A sink will never take this output; the message says why, in words for whoever made the prediction."""


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker offers once its model is ready: ``version`` in 64 hex digits, ``schema`` as Cog says it.

    ``is_taken_over`` says that the model is one that an earlier agent left, which may still have that agent's runs.
    """

    owner: str
    name: str
    version: str
    schema: dict[str, Any] | None
    cog_version: str
    slots: int
    is_taken_over: bool = False


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at one prediction. ``input`` is a JSON object, decoded or raw.

    ``resumed`` is set for a run that an earlier agent gave to the model: the wall time, in microseconds, when that was.
    Such a run is followed and never started; without a sign of it, it ends in ``RunLost`` without a ``Started``.
    """

    id: str
    attempt: int
    input: dict[str, Any] | msgspec.Raw
    resumed: int | None = None


def run_name(prediction_id: str, attempt: int) -> str:
    """Return what Cog calls a run: another name for each attempt, so that a retry is a new run."""
    return f"{prediction_id}-{attempt}"


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The model took the job. ``at`` is wall time in microseconds."""

    at: int


class Log(msgspec.Struct, frozen=True, tag="log"):
    """The next piece of the run's log: the pieces of a run join to its whole log."""

    text: str


class Output(msgspec.Struct, frozen=True, tag="output"):
    """One item of an iterator's output; ``index`` counts from 0 without gaps."""

    index: int
    item: Any


class Metric(msgspec.Struct, frozen=True, tag="metric"):
    """A metric's value so far (not a difference)."""

    name: str
    value: Any


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """The last event of a run. ``output`` is the whole output, for an iterator the whole list."""

    status: Literal["succeeded", "failed", "canceled"]
    output: Any = None
    error: str | None = None
    metrics: dict[str, Any] = {}
    predict_time_s: float | None = None


Event = Started | Log | Output | Metric | Finished


class UploadSink(Protocol):
    """Where output files go."""

    async def put(
        self, prediction_id: str, filename: str, content_type: str, body: AsyncIterator[bytes] | Path, size: int | None
    ) -> str:
        """Store the file and return the reference that stands for it in the output; raise when it cannot be stored.

        A file at a path stays as it is until this returns. `OutputRefused` says that no other try will do better, here
        or elsewhere.
        """


class Runner(Protocol):
    """One model on this worker. ``setup`` comes first; ``run`` may be under way once per slot."""

    async def setup(self, log: LogSink) -> Offer:
        """Start or attach to the model and wait until it is ready, passing its setup log on; raise `SetupFailed`."""

    def run(self, job: Job) -> AsyncGenerator[Event, None]:
        """Yield the run's events, ``Finished`` last; raise `RunLost`. Closing the generator early leaves it running."""

    async def cancel(self, prediction_id: str) -> None:
        """Ask the model to stop this prediction; nothing happens when it is not running. The run ends by its events."""

    async def restart(self) -> None:
        """Kill the model and set it up again: canceled runs finish as canceled, others raise `RunLost`.

        Only for a cancel that the model ignored while nothing else ran. Raises `RestartRefused` or `SetupFailed`.
        """

    async def wait_broken(self) -> str:
        """Return, once the model can take no further run, the reason why; a restart makes it whole again."""

    async def health(self) -> str | None:
        """Look whether the model could take a run now, or is busy with some; return why not, None if all is well."""

    async def close(self) -> None:
        """Let go of the model within some seconds, ending what this runner started; may be called twice."""
