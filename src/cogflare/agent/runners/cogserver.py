"""The HTTP API of a Cog server: requests and answers of one server, no state of runs.

A running prediction of coglet (Cog 0.17 and later, on a model with a schema) can be asked for by a PUT of its id with
an input that no schema allows: while it runs the input is not looked at, after its end the answer is 422 and nothing
starts. So ``poll`` and ``stream`` never run a model twice. The host of functions answers alike. Servers before coglet
validate first and cannot be asked. Those before 0.7 know no ids of runs, and answer once a run is over.
"""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, Literal

import httpx2
import msgspec

ENDED = ("succeeded", "failed", "canceled")

CRASHED = "Prediction failed for an unknown reason"
"""How servers before coglet word the death of the model's process."""

_NO_INPUT = {"input": "this input is never run"}
_ATTACH_TIMEOUT = httpx2.Timeout(10.0, read=None)


class NotUnderWay(Exception):
    """There is no such run to read: it is over."""


class Health(msgspec.Struct, frozen=True):
    """One answer of ``GET /health-check``. ``boot`` changes when the server starts anew.

    ``can_poll`` says whether a run of a model with a schema can be asked for without running it again, ``goes_on``
    whether a run does not need the request that started it.
    """

    status: str
    setup_logs: str = ""
    boot: str | None = None
    cog_version: str = ""
    is_coglet: bool = False
    can_poll: bool = False
    goes_on: bool = True
    complaint: str | None = None


class Answer(msgspec.Struct, frozen=True):
    """The answer to the start of a run: ``starting`` runs it, ``busy`` and ``unready`` may be tried again.

    ``end`` is the last snapshot of a run that is over with the answer.
    """

    kind: Literal["started", "busy", "unready", "invalid", "refused"]
    detail: str = ""
    end: dict[str, Any] | None = None


class CogServer:
    """One Cog server at ``url``. Every method raises `httpx2.HTTPError` when the server cannot be reached."""

    def __init__(self, url: str) -> None:
        # trust_env off: a proxy from the environment has no business between an agent and its model.
        self._http = httpx2.AsyncClient(base_url=url.rstrip("/"), timeout=10.0, trust_env=False)
        self._is_model_apart = False

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def health(self) -> Health:
        """Ask how the server is; raises `ValueError` where it is another one than Cog's."""
        response = await self._http.get("/health-check")
        if response.status_code == 404 and await self._is_early():
            return Health(status="READY", goes_on=False)
        if response.is_error:
            raise ValueError(f"what answers there does not do so as a Cog server (HTTP {response.status_code})")
        try:
            body = msgspec.json.decode(response.content, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise ValueError("what answers there is no Cog server") from error
        setup, version = (part if isinstance(part, dict) else {} for part in map(body.get, ("setup", "version")))
        return Health(
            status=str(body.get("status", "READY")),
            setup_logs=setup.get("logs") or "",
            boot=setup.get("started_at"),
            cog_version=version.get("python_sdk") or version.get("cog") or "",
            is_coglet="coglet" in version,
            can_poll="coglet" in version or "cogflare_host" in version,
            complaint=body.get("user_healthcheck_error"),
        )

    async def _is_early(self) -> bool:
        """Whether it is a Cog server of the time before health checks; such a one answers once it is set up."""
        document = await self.schema()
        if document is None or document.get("info", {}).get("title") != "Cog":
            return False
        self._is_model_apart = "PredictionRequest" in document["components"].get("schemas", {})
        return True

    async def named(self, health: Health) -> Health:
        """The same with the version of Cog, which servers before coglet tell elsewhere, if at all."""
        if health.cog_version:
            return health
        with suppress(httpx2.HTTPError, msgspec.DecodeError):
            index = msgspec.json.decode((await self._http.get("/")).content, type=dict[str, Any])
            return msgspec.structs.replace(health, cog_version=str(index.get("cog_version") or ""))
        return health

    async def schema(self) -> dict[str, Any] | None:
        """The model's OpenAPI document, or None where the server has none."""
        response = await self._http.get("/openapi.json")
        if response.status_code != 200:
            return None
        with suppress(msgspec.DecodeError):
            document = msgspec.json.decode(response.content, type=dict[str, Any])
            parts = document.get("components"), document.get("info", {})
            return document if all(isinstance(part, dict) for part in parts) else None
        return None

    async def start(self, run_id: str, body: bytes) -> Answer:
        """Start a run that goes on whatever becomes of this connection."""
        headers = {"content-type": "application/json", "prefer": "respond-async"}
        return _answer(await self._http.put(f"/predictions/{run_id}", content=body, headers=headers))

    async def run(self, run_id: str, body: bytes) -> Answer:
        """Have a run started and wait for its end; it has no id where ``run_id`` is empty."""
        method, path = ("PUT", f"/predictions/{run_id}") if run_id else ("POST", "/predictions")
        headers = {"content-type": "application/json"}
        began = time.monotonic()
        response = await self._http.request(method, path, content=body, headers=headers, timeout=_ATTACH_TIMEOUT)
        answer = _answer(response)
        if answer.kind == "started":
            end = msgspec.json.decode(response.content, type=dict[str, Any])
            if end.get("status") not in ENDED:
                return Answer("refused", "the Cog server answered before the run's end")
            took = {"predict_time": round(time.monotonic() - began, 6)} if end["status"] == "succeeded" else {}
            return Answer("started", end=end | {"metrics": end.get("metrics") or took})
        if response.status_code == 500:
            is_told = response.headers.get("content-type", "").startswith("application/json")
            error = answer.detail if is_told and run_id else await self._untold(run_id, is_told)
            return Answer("started", end={"status": "failed", "error": error})
        return answer

    async def _untold(self, run_id: str, is_told: bool) -> str:
        """What went wrong where the server does not say it.

        Of a model in a process of its own it passes on what that raised, and falls silent when it has died. Before,
        there is no other word for what the model raised. A server with ids of runs also falls silent at a file that is
        not there, but says how it is.
        """
        if not is_told and (await self._has_died() if run_id else self._is_model_apart):
            return CRASHED
        return "the model raised an exception, or returned what it had not announced: see the log of its server"

    async def _has_died(self) -> bool:
        """Whether the server has lost its model, which it says until it ends."""
        for _ in range(2):  # it closes the connection after such an answer
            with suppress(httpx2.HTTPError, ValueError):
                return (await self.health()).status == "DEFUNCT"
        return True

    async def poll(self, run_id: str) -> dict[str, Any] | None:
        """The snapshot of that run while it is under way, else None; only for a coglet with a schema."""
        headers = {"prefer": "respond-async"}
        response = await self._http.put(f"/predictions/{run_id}", json=_NO_INPUT, headers=headers)
        return msgspec.json.decode(response.content, type=dict[str, Any]) if response.status_code == 202 else None

    async def stream(self, run_id: str) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """Read a run's events from its beginning, as (event, data); raises `NotUnderWay` when it is over."""
        headers = {"accept": "text/event-stream"}
        request = self._http.stream(
            "PUT", f"/predictions/{run_id}", json=_NO_INPUT, headers=headers, timeout=_ATTACH_TIMEOUT
        )
        async with request as response:
            if response.status_code != 200:
                raise NotUnderWay(f"the Cog server answered {response.status_code}")
            event, hurry = "", _hurry(response)
            hurry()
            async for line in response.aiter_lines():
                hurry()
                if line.startswith("event:"):
                    event = line[6:].strip()
                elif line.startswith("data:"):
                    yield event, msgspec.json.decode(line[5:], type=dict[str, Any])

    async def cancel(self, run_id: str) -> None:
        """Ask to stop that run; a run that is over is no error."""
        await self._http.post(f"/predictions/{run_id}/cancel")


def _hurry(response: httpx2.Response) -> Callable[[], None]:
    """What to call after each read of a stream.

    Coglet leaves Nagle's algorithm on: it holds each small event until the one before is acknowledged, which Linux
    delays by 40 ms unless told otherwise, again after every read.
    """
    quick = getattr(socket, "TCP_QUICKACK", None)
    stream = response.extensions.get("network_stream")
    connection = stream.get_extra_info("socket") if stream and quick else None
    if connection is None:
        return lambda: None
    return lambda: connection.setsockopt(socket.IPPROTO_TCP, quick, 1)


def _answer(response: httpx2.Response) -> Answer:
    match response.status_code:
        case 200 | 201 | 202:
            return Answer("started")
        case 409:
            return Answer("busy")
        case 503:
            return Answer("unready")
        case 422:
            return Answer("invalid", _explain(response.content))
        case status:
            return Answer("refused", f"the Cog server answered {status}: {response.text[:500]}")


def _explain(content: bytes) -> str:
    """The message of a 422: ``field: what is wrong`` a line, as the server's problem list says it."""
    try:
        problems = msgspec.json.decode(content)["detail"]
        lines = [f"{'.'.join(str(part) for part in p['loc'][2:]) or 'input'}: {p['msg']}" for p in problems]
    except (msgspec.DecodeError, KeyError, TypeError):
        return content.decode(errors="replace")[:500]
    return "\n".join(lines)
