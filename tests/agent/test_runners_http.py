"""What is special to a Cog server that somebody else runs, and to servers of other ages."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cogflare.agent.runners.base import Job, Log, RestartRefused, RunLost, SetupFailed
from cogflare.agent.runners.coghttp import CogHttpRunner
from cogflare.agent.runners.cogserver import CogServer
from cogflare.agent.runners.driver import wait_up
from cogflare.agent.runners.process import free_port
from cogflare.agent.runners.receiver import Receiver
from support.runners import MemorySink, Offspring, Rigger

pytestmark = pytest.mark.anyio


async def test_a_restart_is_refused(http_rig: Rigger) -> None:
    model = await http_rig("noop")
    with pytest.raises(RestartRefused):
        await model.runner.restart()


async def test_a_server_that_is_not_there_fails_the_setup() -> None:
    runner = CogHttpRunner("acme", "none", f"http://127.0.0.1:{free_port()}", MemorySink(), reach_s=0.05)
    with pytest.raises(SetupFailed, match="does not answer"):
        await runner.setup(lambda text: None)
    await runner.close()


@pytest.fixture
def site() -> Iterator[Callable[[Mapping[str, tuple[int, bytes]]], str]]:
    """Starts a server that answers these paths (status 0: it hangs up), and any other with a 404."""
    servers: list[ThreadingHTTPServer] = []

    def start(pages: Mapping[str, tuple[int, bytes]]) -> str:
        class Site(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = pages.get(self.path, (404, b""))
                if status:
                    self.send_response(status)
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        servers.append(server := ThreadingHTTPServer(("127.0.0.1", 0), Site))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


PAGE, NONE, HEALTHY = (200, b"<html>hello</html>"), (404, b""), (200, b'{"status": "READY"}')


@pytest.mark.parametrize(
    ("health", "schema", "told"),
    [
        (PAGE, PAGE, "no Cog server"),
        ((200, b'{"status": "odd", "setup": "none", "version": "1.2"}'), PAGE, "setup ended as odd"),
        (NONE, PAGE, "HTTP 404"),
        (NONE, (200, b'{"components": 1, "info": 1}'), "HTTP 404"),
        (NONE, (200, b'{"components": {}, "info": 1}'), "HTTP 404"),
        (HEALTHY, (0, b""), "does not tell its schema: .*broke off"),
    ],
)
async def test_what_is_no_cog_server_fails_the_setup(
    site: Callable[[Mapping[str, tuple[int, bytes]]], str],
    health: tuple[int, bytes],
    schema: tuple[int, bytes],
    told: str,
) -> None:
    url = site({"/health-check": health, "/openapi.json": schema})
    runner = CogHttpRunner("acme", "none", url, MemorySink(), reach_s=0.05)
    with pytest.raises(SetupFailed, match=told):
        await runner.setup(lambda text: None)
    await runner.close()


async def test_a_page_is_no_schema(site: Callable[[Mapping[str, tuple[int, bytes]]], str]) -> None:
    url = site({"/health-check": HEALTHY, "/openapi.json": PAGE})
    runner = CogHttpRunner("acme", "none", url, MemorySink(), reach_s=5)
    assert (await runner.setup(lambda text: None)).schema is None
    await runner.close()


async def test_a_server_that_goes_away_loses_its_run(
    offspring: Offspring, http_rig: Rigger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cogflare.agent.runners.driver._WATCH_S", 0.1)
    model = await http_rig("sleeper")
    runs = model.runner.run(Job(id="p1", attempt=1, input={"seconds": 60}))
    async for event in runs:
        if isinstance(event, Log):
            break
    os.kill(offspring()[0], signal.SIGKILL)
    with pytest.raises(RunLost, match="does not answer"):
        assert all([isinstance(event, Log) async for event in runs])
    assert "does not answer" in await model.runner.wait_broken()


class Complaining:
    """A program that does not know an option which it was given, and says so."""

    def __init__(self, complaint: str) -> None:
        self.complaint, self.is_told = complaint, asyncio.Event()

    def news(self) -> str:
        self.is_told.set()
        return self.complaint

    async def ended(self) -> str:
        await self.is_told.wait()
        return f"the model's server ended with status 2\n{self.complaint}"


async def test_where_files_go_is_not_said_in_a_failed_setup() -> None:
    receiver = Receiver(MemorySink())
    await receiver.start()
    server, logs = CogServer(f"http://127.0.0.1:{free_port()}"), list[str]()
    program = Complaining(f"error: unrecognized arguments: --upload-url {receiver.upload_url}\n")
    _, secret = receiver.address
    with pytest.raises(SetupFailed, match="unrecognized arguments: --upload-url") as failed:
        await wait_up(server, logs.append, 60, program, receiver.hide)
    assert secret in program.complaint
    assert secret not in f"{failed.value}{logs}"
    assert "--upload-url" in logs[0]
    await server.close()
    await receiver.close()
