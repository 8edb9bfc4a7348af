"""RunPod as a place of the conformance suite: a real worker behind a queue on this machine."""

from typing import ClassVar

from cogflare.providers.base import Terms
from providers.rig import Call, Fault, Place, Where
from support.runpod import KEY, RunPod
from support.runpod_queue import Fault as QueueFault

_OPERATIONS: dict[Call, str] = {"submit": "run", "poll": "status", "cancel": "cancel"}


class RunPodPlace(Place):
    """Endpoints: `plain` with a worker, `cold` whose worker is given nothing."""

    kind: ClassVar[str] = "runpod"
    can_list: ClassVar[bool] = False
    can_describe: ClassVar[bool] = False
    can_hint: ClassVar[bool] = False

    def __init__(self, runpod: RunPod) -> None:
        self.runpod = runpod
        self.key = KEY
        self.url = runpod.url
        runpod.worker("plain", "plain")
        cold = runpod.endpoint("cold")
        cold.is_held, cold.counts = True, {"idle": 0, "initializing": 1}

    def terms(self, where: Where) -> Terms:
        return Terms("me/ours", endpoint=where)

    def begun(self) -> int:
        return sum(job.took is not None for job in self.runpod.endpoint("plain").jobs.values())

    def fail(self, what: Fault, on: Call) -> None:
        if what == "busy":
            fault = QueueFault(429, '{"error": "too many requests"}', {"Retry-After": "60"})
        else:
            fault = QueueFault(500, '{"error": "internal"}', is_late=what == "late_error")
        self.runpod.queue.faults[_OPERATIONS[on]] = fault

    def heal(self) -> None:
        self.runpod.queue.faults.clear()
