"""RunPod's queue, as RunPod documents it, in front of what runs jobs: workers of the `runpod` package, as in the cloud.

A worker takes a job, posts parts of its output and its result, and hears which jobs to stop. The package's local API
server can run the jobs instead (`Endpoint.local`); it has no queue, runs a job when it is asked for its status, and
forgets it then.
"""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

LIMITS_MS = {"executionTimeout": (5_000, 604_800_000), "ttl": (10_000, 604_800_000)}
MAX_BODY = 10 << 20
_LONG_POLL_S = 2.0
_LOOK_S = 0.01


@dataclass
class Job:
    """A job of an endpoint; `unread` are the parts that nobody has asked for since they came."""

    id: str
    request: dict[str, Any]
    made: float = field(default_factory=time.monotonic)
    took: float | None = None
    ended: float | None = None
    worker: str | None = None
    status: str = "IN_QUEUE"
    result: dict[str, Any] = field(default_factory=dict)
    unread: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.ended is not None

    def end(self, status: str, result: dict[str, Any] | None = None) -> None:
        """End it, once."""
        if not self.is_over:
            self.status, self.ended = status, time.monotonic()
            self.result = result or {}

    def shown(self) -> dict[str, Any]:
        """Return what /status answers."""
        shown: dict[str, Any] = {"id": self.id, "status": self.status, **self.result}
        if self.took is not None:
            shown |= {"delayTime": int((self.took - self.made) * 1000), "workerId": self.worker}
        if self.took is not None and self.ended is not None:
            shown["executionTime"] = int((self.ended - self.took) * 1000)
        return shown


@dataclass
class Fault:
    """What an operation answers instead of its own answer, for some calls; `is_late`: after it has done its work."""

    status: int
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int = 1
    is_late: bool = False

    def response(self) -> Response:
        """Return the answer, and count it."""
        self.times -= 1
        return Response(self.body, self.status, dict(self.headers))


class Endpoint:
    """An endpoint. `counts`: the workers that /health tells, None: those that have come for jobs."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.counts: dict[str, int] | None = None
        self.is_held = False  # no worker is given a job
        self.hurry = 1.0  # by how much limits come earlier
        self.local: str | None = None  # the URL of the package's local API server, which then is the only worker
        self.is_streamed = False  # whether the local API server is asked for a stream
        self.workers: set[str] = set()
        self.stops: dict[str, list[str]] = {}

    def take(self, worker: str) -> Job | None:
        """Hand out the oldest job that waits."""
        self.workers.add(worker)
        waiting = (job for job in self.jobs.values() if job.status == "IN_QUEUE")
        job = None if self.is_held else next(waiting, None)
        if job is not None:
            job.status, job.took, job.worker = "IN_PROGRESS", time.monotonic(), worker
            limit_ms = job.request.get("policy", {}).get("executionTimeout")
            if limit_ms is not None:
                asyncio.get_running_loop().call_later(limit_ms / 1000 / self.hurry, self.stop, job, "TIMED_OUT")
        return job

    def stop(self, job: Job, status: str) -> None:
        """End a job; a worker that has it hears so."""
        if job.status == "IN_PROGRESS" and job.worker is not None:
            self.stops.setdefault(job.worker, []).append(job.id)
        job.end(status)

    def health(self) -> dict[str, Any]:
        """Return what /health answers."""
        statuses = [job.status for job in self.jobs.values()]
        running = statuses.count("IN_PROGRESS")
        alive = len(self.workers)
        counts = {"idle": alive - running, "initializing": 0, "ready": alive, "running": running, "throttled": 0}
        return {
            "jobs": {"inQueue": statuses.count("IN_QUEUE"), "inProgress": running},
            "workers": self.counts if self.counts is not None else {**counts, "unhealthy": 0},
        }


Act = Callable[[Endpoint, Request], Awaitable[Response]]


class Queue:
    """The service: endpoints by their ids, one key for callers and one for workers, faults by operation."""

    def __init__(self, key: str, worker_key: str) -> None:
        self.endpoints: dict[str, Endpoint] = {}
        self.faults: dict[str, Fault] = {}
        self.calls: list[str] = []
        self._key, self._worker_key = key, worker_key
        self._tasks: set[asyncio.Task[None]] = set()

    def app(self) -> Starlette:
        """Return the service as an app, for callers and workers."""
        of = "/v2/{endpoint}"
        both = ["GET", "POST"]
        return Starlette(
            routes=[
                Route(f"{of}/run", self._called("run", self._run), methods=["POST"]),
                Route(f"{of}/status/{{job}}", self._called("status", self._status), methods=both),
                Route(f"{of}/stream/{{job}}", self._called("stream", self._stream), methods=both),
                Route(f"{of}/cancel/{{job}}", self._called("cancel", self._cancel), methods=["POST"]),
                Route(f"{of}/health", self._called("health", self._health)),
                Route(f"{of}/job-take/{{worker}}", self._worked(self._take)),
                Route(f"{of}/job-take-batch/{{worker}}", self._worked(self._take_many)),
                Route(f"{of}/job-stop/{{worker}}", self._worked(self._stops)),
                Route(f"{of}/job-stream/{{worker}}/{{job}}", self._worked(self._part), methods=["POST"]),
                Route(f"{of}/job-done/{{worker}}/{{job}}", self._worked(self._done), methods=["POST"]),
            ]
        )

    def _called(self, operation: str, act: Act) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            self.calls.append(f"{request.method} {request.url.path}")
            if request.headers.get("authorization") != f"Bearer {self._key}":
                return Response(status_code=401)
            endpoint = self.endpoints.get(request.path_params["endpoint"])
            if endpoint is None:
                return JSONResponse({"error": "endpoint not found"}, 404)
            fault = self.faults.get(operation)
            if fault is None or not fault.times:
                return await act(endpoint, request)
            if fault.is_late:
                await act(endpoint, request)
            return fault.response()

        return answer

    def _worked(self, act: Act) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            if request.headers.get("authorization") != self._worker_key:
                return Response(status_code=401)
            return await act(self.endpoints[request.path_params["endpoint"]], request)

        return answer

    # --- callers -----------------------------------------------------------------------------------------------------

    async def _run(self, endpoint: Endpoint, request: Request) -> Response:
        content = await request.body()
        if len(content) > MAX_BODY:
            return Response("request body too large", 413)
        body = json.loads(content)
        for name, (least, most) in LIMITS_MS.items():
            if not least <= body.get("policy", {}).get(name, least) <= most:
                return JSONResponse({"error": f"policy.{name} is out of range"}, 400)
        job = Job(f"{uuid.uuid4()}-u1", body)
        endpoint.jobs[job.id] = job
        loop = asyncio.get_running_loop()
        if "ttl" in body.get("policy", {}):
            loop.call_later(body["policy"]["ttl"] / 1000 / endpoint.hurry, endpoint.jobs.pop, job.id, None)
        if endpoint.local is not None:
            self._spawn(self._run_locally(endpoint, endpoint.local, job))
        if "webhook" in body:
            self._spawn(self._tell(job))
        return JSONResponse({"id": job.id, "status": job.status})

    async def _status(self, endpoint: Endpoint, request: Request) -> Response:
        job = endpoint.jobs.get(request.path_params["job"])
        return _UNKNOWN if job is None else JSONResponse(job.shown())

    async def _stream(self, endpoint: Endpoint, request: Request) -> Response:
        job = endpoint.jobs.get(request.path_params["job"])
        if job is None:
            return _UNKNOWN
        parts, job.unread = job.unread, []
        return JSONResponse({**job.shown(), "stream": parts})

    async def _cancel(self, endpoint: Endpoint, request: Request) -> Response:
        job = endpoint.jobs.get(request.path_params["job"])
        if job is None:
            return _UNKNOWN
        endpoint.stop(job, "CANCELLED")
        return JSONResponse({"id": job.id, "status": job.status})

    async def _health(self, endpoint: Endpoint, request: Request) -> Response:
        return JSONResponse(endpoint.health())

    # --- workers -----------------------------------------------------------------------------------------------------

    async def _take(self, endpoint: Endpoint, request: Request) -> Response:
        until = time.monotonic() + _LONG_POLL_S
        while time.monotonic() < until and not await request.is_disconnected():
            if (job := endpoint.take(request.path_params["worker"])) is not None:
                return JSONResponse({"id": job.id, "input": job.request["input"]})
            await asyncio.sleep(_LOOK_S)
        return Response(status_code=204)

    async def _take_many(self, endpoint: Endpoint, request: Request) -> Response:
        first = await self._take(endpoint, request)
        if first.status_code == 204:
            return first
        jobs = [json.loads(bytes(first.body))]
        while len(jobs) < int(request.query_params["batch_size"]):
            if (job := endpoint.take(request.path_params["worker"])) is None:
                break
            jobs.append({"id": job.id, "input": job.request["input"]})
        return JSONResponse(jobs)

    async def _stops(self, endpoint: Endpoint, request: Request) -> Response:
        until = time.monotonic() + _LONG_POLL_S
        while time.monotonic() < until and not await request.is_disconnected():
            if stops := endpoint.stops.pop(request.path_params["worker"], None):
                return JSONResponse({"jobsToStop": stops})
            await asyncio.sleep(_LOOK_S)
        return Response(status_code=204)

    async def _part(self, endpoint: Endpoint, request: Request) -> Response:
        part = json.loads(await request.body())
        if (job := endpoint.jobs.get(request.path_params["job"])) is not None and not job.is_over:
            job.unread.append(part)
        return Response()

    async def _done(self, endpoint: Endpoint, request: Request) -> Response:
        result = json.loads(await request.body())
        job = endpoint.jobs.get(request.path_params["job"])
        if job is not None and not job.is_over:
            if result.pop("status", None) == "IN_PROGRESS":
                job.result = result
            else:
                job.end("FAILED" if "error" in result else "COMPLETED", result)
        return Response()

    # --- what goes on beside ----------------------------------------------------------------------------------------

    async def _run_locally(self, endpoint: Endpoint, url: str, job: Job) -> None:
        """Have the package's local API server run a job."""
        while endpoint.take("local") is not job:
            await asyncio.sleep(_LOOK_S)
        async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
            made = (await client.post("/run", json={"input": job.request["input"]})).json()
            source = "stream" if endpoint.is_streamed else "status"
            answer = await client.post(f"/{source}/{made['id']}")
        # That server falls over where a generator raises.
        result: dict[str, Any] = answer.json() if answer.is_success else {"status": "FAILED", "error": answer.text}
        if not job.is_over:
            job.unread = result.pop("stream", [])
        job.end(result["status"], {name: result[name] for name in ("output", "error") if name in result})

    async def _tell(self, job: Job) -> None:
        """Post the end of a job to its webhook."""
        while not job.is_over:
            await asyncio.sleep(_LOOK_S)
        with contextlib.suppress(httpx2.HTTPError):
            async with httpx2.AsyncClient() as client:
                await client.post(job.request["webhook"], json=job.shown())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_UNKNOWN = JSONResponse({"error": "request does not exist"}, 404)
