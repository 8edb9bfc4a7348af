"""The process group of a Cog server that this agent started: started, watched, ended as a whole."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

_GONE_S = 2.0
_TAIL_BYTES = 8192

# Becomes the server after tying its life to the agent's, between fork and exec, which a thread-safe parent cannot do.
_TIED = (
    "import ctypes, os, sys; "
    "sys.platform == 'linux' and ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or sys.exit('the agent is gone'); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)


class ServerProcess:
    """A Python program in a session of its own, its output in a file."""

    def __init__(self, process: asyncio.subprocess.Process, output: Path) -> None:
        self._process, self._output = process, output
        self._read = 0
        self.pid = process.pid

    @classmethod
    async def start(
        cls,
        python: Path,
        arguments: list[str],
        *,
        folder: Path,
        environ: Mapping[str, str],
        output: Path,
        dies_with_agent: bool = True,
    ) -> ServerProcess:
        """Start ``python arguments`` in the folder.

        ``dies_with_agent`` is the one place that decides whether the server outlives a killed agent (Linux only: on
        other systems it does either way). An agent that adopts living servers says no here.
        """
        tie = ["-c", _TIED, str(os.getpid())] if dies_with_agent else []
        with output.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                python, *tie, *arguments,
                cwd=folder, env=dict(environ), start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL, stdout=sink, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
        return cls(process, output)

    async def ended(self) -> str:
        """Wait until the program has ended; return how, with the end of its output."""
        status = await self._process.wait()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"the model's server {how}\n{self.tail()}".rstrip()

    def has_ended(self) -> bool:
        """Whether the program is over."""
        return self._process.returncode is not None

    def tail(self) -> str:
        """The end of what it wrote."""
        with self._output.open("rb") as output:
            output.seek(max(0, output.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return plain(output.read())

    def news(self) -> str:
        """What it has written since the last call, in whole lines."""
        with self._output.open("rb") as output:
            output.seek(self._read)
            lines, newline, _ = output.read().rpartition(b"\n")
        self._read += len(lines) + len(newline)
        return plain(lines + newline)

    async def stop(self, grace_s: float) -> None:
        """End the whole group: ask, and after ``grace_s`` seconds kill. Returns once none of it is left."""
        if grace_s > 0 and not self.has_ended():
            self._signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), grace_s)
        self._signal(signal.SIGKILL)
        await self._process.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(_GONE_S):
                while self._signal(0) and _has_living(self.pid):  # noqa: ASYNC110 - no one tells when a grandchild ends
                    await asyncio.sleep(0.01)

    def _signal(self, number: int) -> bool:
        """Signal the group; whether there still is one."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def _has_living(group: int) -> bool:
    """Say whether a process of the group still runs; a dead one that nobody has reaped yet does not."""
    stats = list(Path("/proc").glob("[0-9]*/stat"))
    for path in stats:
        with suppress(OSError):
            # The fields after the name, which is in brackets: state, parent, group.
            state, _, found, *_ = path.read_text(errors="replace").rpartition(")")[2].split()
            if found == str(group) and state != "Z":
                return True
    return not stats


def plain(output: bytes) -> str:
    """A server's output with the messages in place of coglet's JSON lines."""
    return "".join(_message(line) for line in output.decode(errors="replace").splitlines())


def _message(line: str) -> str:
    try:
        return f"{msgspec.json.decode(line)['fields']['message']}\n"
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"{line}\n"


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
