"""A signal at a worker that is not connected yet: whatever it waits for, it ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cogflare.agent.agent import STOPPED
from support.hosting import wait_for, write_module


class Agent:
    """`cogflare worker` over a function in the folder, as a process."""

    def __init__(self, folder: Path, server: str, path: str = "") -> None:
        self.output = folder / "worker.log"
        words = ["--function", "model:predict", "--model", "acme/m", "--server", server, "--token", "t"]
        with self.output.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cogflare.cli", "worker", *words, "--state", str(folder / "state")],
                cwd=folder,
                env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}"},
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )

    def ends_by(self, number: signal.Signals) -> int:
        """Send the signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
def agents() -> Iterator[list[Agent]]:
    started: list[Agent] = []
    yield started
    for agent in started:
        with suppress(ProcessLookupError):
            os.killpg(agent.process.pid, signal.SIGKILL)
        agent.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_the_server_is_asked(tmp_path: Path, agents: list[Agent], number: signal.Signals) -> None:
    write_module(tmp_path, "def predict() -> int:\n    return 1\n")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        agents.append(agent := Agent(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}"))
        asking, _ = silent.accept()
        with asking:
            assert agent.ends_by(number) == STOPPED
    assert "setting up" not in agent.output.read_text()


def test_while_the_model_is_set_up(tmp_path: Path, agents: list[Agent]) -> None:
    write_module(tmp_path, "import os, time\nopen('pid', 'w').write(f'{os.getpid()}\\n')\ntime.sleep(600)\n")
    agents.append(agent := Agent(tmp_path, "http://127.0.0.1:9"))
    pid = tmp_path / "pid"
    wait_for(lambda: pid.exists() and pid.read_text().endswith("\n"))
    assert agent.ends_by(signal.SIGTERM) == STOPPED
    assert not Path(f"/proc/{int(pid.read_text())}").exists(), "nothing is left running"


def test_while_the_gpu_is_asked_for_its_name(tmp_path: Path, agents: list[Agent]) -> None:
    write_module(tmp_path, "def predict() -> int:\n    return 1\n\nprint('set up')\n")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho asked > asked\nexec sleep 60\n")
    tool.chmod(0o755)
    agents.append(agent := Agent(tmp_path, "http://127.0.0.1:9", path=str(tmp_path)))
    wait_for(lambda: (tmp_path / "asked").exists() and "set up" in agent.output.read_text())
    time.sleep(1)  # nobody tells when only the name is missing
    assert agent.ends_by(signal.SIGTERM) == STOPPED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_while_the_model_is_ended(tmp_path: Path, agents: list[Agent], number: signal.Signals) -> None:
    write_module(
        tmp_path,
        """
        import os, signal

        signal.signal(signal.SIGTERM, lambda *_: open("told", "w").close())  # and it goes on
        with open("pid", "w") as pid:
            pid.write(f"{os.getpid()}\\n")
        print("set up")

        def predict() -> int:
            return 1
        """,
    )
    agents.append(agent := Agent(tmp_path, "http://127.0.0.1:9"))
    wait_for(lambda: "set up" in agent.output.read_text())
    agent.process.send_signal(signal.SIGTERM)
    wait_for((tmp_path / "told").exists)
    assert agent.process.poll() is None
    assert agent.ends_by(number) in (0, STOPPED)
    assert not Path(f"/proc/{int((tmp_path / 'pid').read_text())}").exists(), "nothing is left running"
