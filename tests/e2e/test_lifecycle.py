"""Starts and stops of a real server: in order, at once, after a crash, and where it must not start at all."""

import signal
import socket
import sqlite3
import time
from pathlib import Path

import pytest

from support.processes import Process, Server, Stage, until

QUICK_S = 5.0


def data_of(server: Server) -> Path:
    return Path(server.database_url.removeprefix("sqlite:///")).parent


def serve(stage: Stage, data: Path, *arguments: str, **environment: str) -> Process:
    """Start a server that may fail, with its own log."""
    options = ["-m", "cogflare.cli", "serve", "--data", str(data), *arguments]
    return stage.spawn(f"other-{time.monotonic_ns()}", options, environment)


def stuck_request(server: Server) -> socket.socket:
    """Send half a request: the server waits for the rest of it."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    client = socket.create_connection((host, int(port)))
    head = f"POST /v1/predictions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token()}\r\n"
    client.sendall(f"{head}Content-Length: 1000\r\nContent-Type: application/json\r\n\r\n{{".encode())
    return client


# --- stops ------------------------------------------------------------------------------------------------------------


def test_a_stop_in_order_says_what_runs_on_and_that_goes_on_after_it(stage: Stage) -> None:
    server = stage.server()
    stage.scripted(server, slots=2).connected()
    running = [server.create(seconds=3), server.create(seconds=3)]
    for prediction in running:
        server.processing(prediction)
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 3 + QUICK_S
    said = server.log()
    assert "run on at their workers" in said
    assert "running=2" in said
    assert all(prediction in said for prediction in running)
    server.start()
    assert "did not end in order" not in server.log()
    assert [server.ended(prediction)["status"] for prediction in running] == ["succeeded"] * 2
    assert [stage.runs()[prediction] for prediction in running] == [1, 1]


def test_an_idle_server_stops_without_a_word_about_predictions(stage: Stage) -> None:
    server = stage.server()
    assert server.stop() == 0
    assert "run on at" not in server.log()
    assert "Traceback" not in server.log()


def test_a_stop_ends_within_its_limit_whatever_a_client_does(stage: Stage) -> None:
    server = stage.server(stop_s="1")
    with stuck_request(server):
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 1 + QUICK_S


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(stage: Stage, number: signal.Signals) -> None:
    server = stage.server(stop_s="60")
    process = server.process
    assert process is not None
    with stuck_request(server):
        process.signal(signal.SIGTERM)
        until(lambda: "once more to stop now" in server.log(), "word of the stop")
        time.sleep(0.5)
        assert process.is_running
        process.signal(number)
        assert process.join(QUICK_S) == 128 + number
    assert "stopped at once" in server.log()


# --- starts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["same", "another"])
def test_a_start_after_a_crash_says_what_it_found(stage: Stage, name: str) -> None:
    server = stage.server(node="same")
    worker = stage.scripted(server).connected()
    prediction = server.create(seconds=60)
    server.processing(prediction)
    worker.signal(signal.SIGSTOP)
    server.kill9()
    server._settings["COGFLARE_NODE"] = name
    server.start()
    assert worker.state == "away"
    said = server.log()
    assert "did not end in order" in said
    assert "running=1" in said
    assert "workers=1" in said
    worker.signal(signal.SIGCONT)
    until(lambda: worker.state == "online", "worker that is back")


def test_a_newer_schema_is_refused_and_left_alone(stage: Stage) -> None:
    server = stage.server()
    server.stop()
    path = data_of(server) / "cogflare.db"
    with sqlite3.connect(path) as database:
        database.execute("INSERT INTO schema_version VALUES (999)")
    before = path.read_bytes()
    failed = serve(stage, path.parent, "--port", "0")
    assert failed.join() == 1
    assert "newer Cogflare" in failed.log()
    assert "999" in failed.log()
    assert "Traceback" not in failed.log()
    assert path.read_bytes() == before


def test_a_data_folder_that_is_in_use_is_refused(stage: Stage) -> None:
    server = stage.server()
    failed = serve(stage, data_of(server), "--port", "0")
    assert failed.join() == 1
    assert "another server runs on" in failed.log()
    assert server.ask("GET", "/v1/account")["username"] == "me"


def test_a_data_folder_is_private_from_the_start(stage: Stage) -> None:
    data = data_of(stage.server())
    assert data.stat().st_mode & 0o077 == 0
    assert (data / "cogflare.db").stat().st_mode & 0o077 == 0


def test_a_port_that_is_taken_leaves_no_trace(stage: Stage) -> None:
    server = stage.server()
    folder = stage.folder / "new"
    failed = serve(stage, folder, "--port", server.url.rpartition(":")[2])
    assert failed.join() == 1
    assert "choose another --port" in failed.log()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("RETENTION", "forever", "the setting retention is 'forever': it may be replicate, or empty"),
        ("RETAIN_DATA_S", "-1", "the setting retain_data_s has to be between 0 (for ever) and"),
        ("RETAIN_RECORDS_S", "nan", "the setting retain_records_s has to be between 0 (for ever) and"),
    ],
)
def test_terms_that_cannot_be_kept_are_refused(stage: Stage, setting: str, value: str, problem: str) -> None:
    failed = serve(stage, stage.folder / "new", "--port", "0", **{f"COGFLARE_{setting}": value})
    assert failed.join() == 1
    assert problem in failed.log()
