"""What a host withstands: floods, cancels that come twice or late, threads that all print, a signal in the setup."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cogflare.agent.hosting import boot
from cogflare.agent.hosting.files import Files, InputFailed
from cogflare.agent.hosting.frames import Channel, encode
from cogflare.agent.hosting.hooks import tell
from cogflare.agent.hosting.runs import Run, Runs
from support.hosting import Host, Outside, wait_for, write_module

Maker = Callable[..., Host]


FLOOD = """
    import threading, time
    from pathlib import Path

    def flood() -> None:
        while not Path("enough").exists():
            print("x" * 10_000)

    threading.Thread(target=flood, daemon=True).start()

    def predict() -> str:
        return "rested"
"""


def test_a_cancel_that_comes_twice_is_not_that_of_the_next_run(tmp_path: Path) -> None:
    write_module(tmp_path, FLOOD)
    ours, theirs = socket.socketpair()
    command = [sys.executable, boot.__file__, "function", "model:predict", "--model-fd", str(theirs.fileno())]
    with subprocess.Popen(command, cwd=tmp_path, pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL), ours:
        theirs.close()
        channel = Channel(ours)
        frames = iter(channel)
        next(frame for frame in frames if frame["type"] == "ready")
        time.sleep(0.2)  # nobody reads, so it cannot even tell an end
        cancel = encode({"type": "cancel", "id": "r1"})
        channel.write(encode({"type": "run", "id": "r1", "input": {}}) + b"\n" + cancel)
        time.sleep(0.2)
        channel.write(cancel)
        time.sleep(0.2)
        (tmp_path / "enough").touch()
        ends = (frame for frame in frames if frame["type"] == "ended")
        assert next(ends)["status"] == "canceled"
        channel.send({"type": "run", "id": "r2", "input": {}})
        assert next(ends)["status"] == "succeeded"


def test_an_end_is_seen_whole_or_not_at_all() -> None:
    run, seen = Run("r1", None), list[object]()
    with run.news:
        looking = threading.Thread(target=lambda: seen.append(run.snapshot()))
        looking.start()
        run.status = "succeeded"
        looking.join(0.2)
        assert not seen, "the output is not there yet"
        run.output = "whole"
    looking.join()
    assert seen == [{"id": "r1", "status": "succeeded", "logs": "", "metrics": {}, "output": "whole"}]


def test_a_name_that_is_used_again_is_kept_as_long_as_any() -> None:
    runs = Runs(lambda _: None, lambda _: None)
    runs.slots = 100

    def run_once(name: str, hook: str | None) -> None:
        run = runs.start(name, {}, hook)
        assert run is not None
        runs.end(run, "succeeded", 1, None)
        if hook:
            runs.forget(run)

    run_once("again", "http://127.0.0.1:9")
    again = runs.start("again", {}, None)
    for number in range(40):
        run_once(f"r{number}", None)
    assert runs.find("again") is again, "it is under way"


def test_a_webhook_that_is_no_url_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogflare.agent.hosting.hooks._FIRST_PAUSE_S", 0.0)
    is_over = threading.Event()
    tell("http://[", {"id": "r1"}, is_over.set)
    assert is_over.wait(10)


def test_threads_that_print_at_once_lose_nothing(function: Maker) -> None:
    host = function("""
        import sys, threading

        sys.setswitchinterval(1e-6)

        def talk(name: str) -> None:
            for number in range(1000):
                print(name, number)

        def predict() -> None:
            threads = [threading.Thread(target=talk, args=(name,)) for name in "abcd"]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    """)
    lines = host.run({})["logs"].splitlines()
    assert sorted(lines) == sorted(f"{name} {number}" for name in "abcd" for number in range(1000))


def test_a_task_that_outlives_its_run_says_nothing_in_the_log_of_another(function: Maker) -> None:
    host = function("""
        import asyncio

        left = []

        async def linger() -> None:
            await asyncio.sleep(0.05)
            print("secret of the first")

        async def predict(first: bool) -> None:
            if first:
                left.append(asyncio.create_task(linger()))
            else:
                await left[0]
                print("mine")
    """)
    host.run({"first": True}, "r1")
    assert host.run({"first": False}, "r2")["logs"] == "mine\n"
    wait_for(lambda: "secret of the first" in host.output.read_text())


def test_a_flood_of_log_is_cut_off(function: Maker) -> None:
    host = function("""
        import sys

        def predict() -> str:
            for _ in range(70):
                sys.stdout.write("x" * (1 << 20))
            print("over")
            return "done"
    """)
    end = host.run({})
    assert end["output"] == "done"
    assert end["logs"].endswith("x\n(The log is cut off here.)\n")
    assert len(end["logs"]) < (64 << 20) + 100


@pytest.mark.parametrize(
    "source",
    [
        'def predict():\n    return "x" * (65 << 20)\n',
        'def predict():\n    for _ in range(9):\n        yield "x" * (8 << 20)\n',
        'async def predict():\n    for _ in range(9):\n        yield "x" * (8 << 20)\n',
    ],
)
def test_an_output_that_is_too_large_fails(function: Maker, source: str) -> None:
    host = function(source)
    end = host.run({})
    assert (end["status"], end["error"]) == ("failed", "the output is larger than 64 MiB: such a one is for a file")
    assert host.health()["status"] == "READY"


def test_file_names_lead_nowhere(function: Maker, outside: Outside) -> None:
    host = function("""
        from pathlib import Path

        def predict(source: Path) -> list[str]:
            return [source.name, str(source.parent.parent), str(source.resolve().parent.parent)]
    """)
    for number, path in enumerate(("/..", "/%2e%2e", "/a%2f..%2f..%2fb", "/..%2f..%2fetc%2fpasswd", "/%00")):
        outside.served[path] = b"x"
        name, folder, resolved = host.run({"source": outside.url + path}, f"r{number}")["output"]
        assert folder == resolved
        assert "cogflare-run-" in folder
        assert name not in ("", ".", "..")
        assert "/" not in name


def test_a_run_that_is_over_leaves_no_file_that_comes_late() -> None:
    with Files("", "r1") as files:
        pass
    with pytest.raises(InputFailed, match="the run is over"):
        files.fetch("data:,late")


def test_a_fork_that_leaves_the_function_ends_alone(function: Maker) -> None:
    host = function("""
        import os, sys
        from pathlib import Path

        def predict(source: Path) -> list[str]:
            if (pid := os.fork()) == 0:
                sys.exit(3)
            return [str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])), source.read_text()]
    """)
    end = host.run({"source": "data:,here"})
    assert (end.get("output"), end["logs"]) == (["3", "here"], "")
    assert host.run({"source": "data:,again"}, "r2")["output"] == ["3", "again"]


@pytest.mark.parametrize("path", ["/predictions/a%2Fb", "/predictions/%2e%2e", "/predictions/%00", "/predictions/é"])
def test_any_text_names_a_run(function: Maker, path: str) -> None:
    host = function("def predict() -> int:\n    return 1\n")
    assert host.http.put(path, json={"input": {}}).json()["output"] == 1
    assert host.http.post(f"{path}/cancel").status_code == 404


def test_a_signal_in_the_setup_ends_both_processes(tmp_path: Path, hosts: list[Host]) -> None:
    write_module(
        tmp_path,
        """
        import os, signal, time

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(os.getpid(), flush=True)
        time.sleep(600)
        """,
    )
    host = Host(tmp_path, "function", "model:predict")
    hosts.append(host)
    wait_for(lambda: host.output.read_text().endswith("\n"))
    model = int(host.output.read_text())
    host.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    host.process.send_signal(signal.SIGTERM)  # impatience ends nothing early
    wait_for(lambda: host.process.poll() is not None)
    with pytest.raises(ProcessLookupError):
        os.kill(model, 0)
