"""The host process of functions and handlers, started as a worker starts it, and a server on loopback for its calls."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal

import httpx2

from cogflare.agent.hosting import boot
from cogflare.agent.runners.process import free_port
from support.until import PATIENCE_S

Event = tuple[str, dict[str, Any]]


class Outside:
    """Stands for the worker: takes webhooks at ``/hooks/…`` and uploads at ``/files/…``, and serves ``served``."""

    def __init__(self, port: int = 0) -> None:
        self.hooks: list[dict[str, Any]] = []
        self.uploads: list[tuple[str, str, str, bytes]] = []
        self.served: dict[str, bytes] = {}
        self.answers: list[int] = []
        """What the next requests are answered with; after them, 200."""
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outside = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = outside.answers.pop(0) if outside.answers else 200
                if status == 200:
                    outside.hooks.append(json.loads(body))
                self._answer(status)

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = outside.answers.pop(0) if outside.answers else 200
                name = self.path.rsplit("/", 1)[-1]
                outside.uploads.append((self.headers["x-prediction-id"], name, self.headers["content-type"], body))
                self._answer(status, location=f"{outside.url}/receipts/{len(outside.uploads)}?signature=no")

            def do_GET(self) -> None:
                content = outside.served.get(self.path)
                self._answer(404 if content is None else 200, content or b"")

            def _answer(self, status: int, content: bytes = b"", location: str = "") -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                if location:
                    self.send_header("location", location)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


class Host:
    """A host process and its HTTP API."""

    def __init__(
        self,
        folder: Path,
        mode: Literal["function", "runpod"],
        target: str,
        *,
        python: str = sys.executable,
        upload_url: str = "",
        slots: int = 1,
        environ: dict[str, str] | None = None,
    ) -> None:
        port = free_port()
        self.output = folder / "server.log"
        arguments = [boot.__file__, mode, target, "--port", str(port), "--upload-url", upload_url]
        with self.output.open("wb") as sink:
            self.process = subprocess.Popen(
                [python, *arguments, "--slots", str(slots)],
                cwd=folder,
                env={**os.environ, **(environ or {})},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False)

    def close(self) -> None:
        """End it with all that it has started."""
        self.http.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def health(self) -> dict[str, Any]:
        """Ask how it is."""
        return self.http.get("/health-check").json()  # type: ignore[no-any-return]

    def settled(self) -> "Host":
        """Wait until the model is set up, or is not going to be."""
        wait_for(self._has_settled)
        return self

    def _has_settled(self) -> bool:
        with suppress(httpx2.TransportError):
            return bool(self.health()["status"] != "STARTING")
        return False

    def setup_log(self) -> str:
        """Return what the model has said in its setup."""
        return str(self.health()["setup"]["logs"])

    def components(self) -> dict[str, Any]:
        """Return the model's schemas."""
        return self.http.get("/openapi.json").json()["components"]["schemas"]  # type: ignore[no-any-return]

    def run(self, given: object, run_id: str = "r1") -> dict[str, Any]:
        """Run to the end."""
        response = self.http.put(f"/predictions/{run_id}", json={"input": given})
        assert response.status_code == 200, response.text
        return response.json()  # type: ignore[no-any-return]

    def start(self, given: object, run_id: str = "r1", hook: str | None = None) -> httpx2.Response:
        """Start a run that goes on by itself."""
        body = {"input": given} | ({"webhook": hook, "webhook_events_filter": ["completed"]} if hook else {})
        return self.http.put(f"/predictions/{run_id}", json=body, headers={"prefer": "respond-async"})

    def look(self, run_id: str = "r1") -> httpx2.Response:
        """Look at a run, without a risk of starting one."""
        return self.start("never run", run_id)

    def cancel(self, run_id: str = "r1") -> int:
        """Cancel a run; return the status of the answer."""
        return self.http.post(f"/predictions/{run_id}/cancel").status_code

    def stream(self, run_id: str = "r1", given: object = "never run") -> Iterator[Event]:
        """Yield a run's events."""
        headers = {"accept": "text/event-stream"}
        with self.http.stream("PUT", f"/predictions/{run_id}", json={"input": given}, headers=headers) as response:
            assert response.status_code == 200, response.read()
            event = ""
            for line in response.iter_lines():
                if line.startswith("event:"):
                    event = line[6:].strip()
                elif line.startswith("data:"):
                    yield event, json.loads(line[5:])

    def until_log(self, text: str, run_id: str = "r1") -> None:
        """Read the run's stream until its log holds the text."""
        log = ""
        for event, data in self.stream(run_id):
            log += data["data"] if event == "log" else ""
            if text in log:
                return
        raise AssertionError(f"the log ended as {log!r}")

    def ended(self, run_id: str = "r1") -> dict[str, Any]:
        """Wait for the end of a run; return its last snapshot."""
        *_, (event, data) = self.stream(run_id)
        assert event == "completed"
        return data


def wait_for(holds: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.005)


def write_module(folder: Path, source: str, name: str = "model.py") -> Path:
    """Write a module's source into the folder."""
    path = folder / name
    path.write_text(dedent(source))
    return path
