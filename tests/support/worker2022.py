"""A worker of the first Cogflare (2022): its traps to the letter, its model a script. A process of its own.

python -m support.worker2022 WSS_URL UPLOAD_URL MODEL [DIARY]

It connects with a session id that stays the same, and for ever anew. It does one prediction at a time in its event
loop, which it blocks meanwhile: no ping is answered, nothing is read. It writes to the connection that gave it the
work; when that is broken the work is lost, and it connects again. What it says last it says twice.

The input may have `seconds` (how long the loop is blocked), `log` (how many lines it logs), `items` (how many it
generates; a model without them answers one value), `output` (what it answers), `large` (how many characters it
answers), `fail` (the error it ends with), `file` (the text of a file that it answers), `files` (texts of files that it
generates), `fetch` (a URL whose text it answers), `break` (a fault of the program: it says nothing, and connects again)
and `stay` (a fork of it: what it has to say goes to the next connection when the one that gave it the work is broken).

Every run appends a line to the diary when it begins, and one when it ends.
"""

import asyncio
import io
import json
import logging
import os
import sys
import time
import uuid
import warnings
from datetime import datetime
from typing import Any

import httpx2

with warnings.catch_warnings():
    # These workers have the client of their time, with its pings, its limit on frames, and its pauses.
    warnings.simplefilter("ignore", DeprecationWarning)
    from websockets.legacy.client import WebSocketClientProtocol, connect

_SLICE_S = 0.05


class Broken(Exception):
    """A fault of the program, not of the model."""


class Worker2022:
    """The worker: one connection after another, one prediction after another."""

    def __init__(self, url: str, upload_url: str, model: str, diary: str = "") -> None:
        self._url = f"{url}?session_id={uuid.uuid4()}"
        self._upload_url = upload_url
        self._model = model
        self._diary = diary
        self._unsaid: list[dict[str, Any]] = []

    async def run(self) -> None:
        """Connect for ever."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            async for websocket in connect(self._url):
                print("connected", flush=True)
                try:
                    while self._unsaid:
                        await self._push(websocket, self._unsaid[0])
                        del self._unsaid[0]
                    async for message in websocket:
                        if isinstance(message, str):
                            await self._process(websocket, json.loads(message))
                except Exception as error:
                    print(f"will reconnect: {error!r}", flush=True)

    async def _process(self, websocket: WebSocketClientProtocol, job: dict[str, Any]) -> None:
        response: dict[str, Any] = {"id": job["id"], "status": "processing", "output": None, "logs": []}
        began = time.time()
        self._note("begin", job["id"])
        try:
            await self._predict(websocket, response, job["input"])
            response["metrics"] = {"predict_time": time.time() - began}
            await self._say(websocket, response, job["input"])
        except Broken:
            raise
        except Exception as error:
            response["status"], response["error"] = "failed", str(error)
            response["x-experimental-timestamps"]["completed_at"] = datetime.now().isoformat()
            await self._say(websocket, response, job["input"])
        finally:
            self._note("end", job["id"])

    async def _predict(
        self, websocket: WebSocketClientProtocol, response: dict[str, Any], given: dict[str, Any]
    ) -> None:
        response["x-experimental-timestamps"] = {"started_at": datetime.now().isoformat()}
        await self._say(websocket, response, given)
        lines, items, files = given.get("log", 0), given.get("items", 0), given.get("files", [])
        steps = max(lines, items, len(files), 1)
        if items or files:
            response["output"] = []
        for step in range(steps):
            _block(given.get("seconds", 0) / steps)
            if step < lines:
                response["logs"].append(f"line {step}")
            if step < items:
                response["output"].append(f"w{step} ")
            if step < len(files):
                response["output"].append(self._upload(files[step], f"file {step}.txt"))
            if steps > 1 and step < steps - 1:
                await self._say(websocket, response, given)
        if given.get("break"):
            raise Broken("a fault before any last frame")
        response["x-experimental-timestamps"]["completed_at"] = datetime.now().isoformat()
        if "fail" in given:
            response["status"], response["error"] = "failed", given["fail"]
        else:
            response["status"] = "succeeded"
            if response["output"] is None:
                response["output"] = self._single(given)
        await self._say(websocket, response, given)

    def _single(self, given: dict[str, Any]) -> Any:
        if "file" in given:
            return self._upload(given["file"], "answer.txt")
        if "fetch" in given:
            return httpx2.get(given["fetch"], trust_env=False, follow_redirects=True).raise_for_status().text
        return "x" * given["large"] if "large" in given else given.get("output", "done")

    def _upload(self, text: str, name: str) -> str:
        form = {"file": (name, io.BytesIO(text.encode()))}
        answer = httpx2.put(self._upload_url, files=form, trust_env=False, timeout=60)
        answer.raise_for_status()
        return str(answer.json()["url"])

    async def _say(self, websocket: WebSocketClientProtocol, response: dict[str, Any], given: dict[str, Any]) -> None:
        try:
            await self._push(websocket, response)
        except Exception:
            if not given.get("stay"):
                raise
            self._unsaid = [*self._unsaid[-1:], json.loads(json.dumps(response))]

    async def _push(self, websocket: WebSocketClientProtocol, response: dict[str, Any]) -> None:
        await websocket.send(json.dumps(response))

    def _note(self, event: str, prediction: str) -> None:
        if self._diary:
            with open(self._diary, "a") as diary:
                diary.write(json.dumps({"event": event, "prediction": prediction, "pid": os.getpid()}) + "\n")


def _block(seconds: float) -> None:
    """Keep the event loop from doing anything else."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _SLICE_S))


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stdout, level=logging.INFO)
    asyncio.run(Worker2022(*sys.argv[1:]).run())
