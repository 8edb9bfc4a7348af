"""The processes of a model's server that an agent started: started, watched, taken over, ended as a whole.

A minder (`minder.py`) stands between agent and server and leads their process group. It ends the group when no agent
holds its cord any more, so a server outlives its agent by a bounded time, in which the next agent may take it over.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from cogflare.agent.runners import minder

_GONE_S, _LOOK_S = 2.0, 0.5
_TAIL_BYTES = 8192
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MARKER = "CHILD_OF_COGFLARE"


class Mark(msgspec.Struct, frozen=True):
    """One process for all time: its id, and when it was born (the machine's boot and the ticks since)."""

    pid: int
    birth: str

    @classmethod
    def of(cls, pid: int) -> Mark | None:
        """The mark of a process; None where there is none, or where the system does not tell (it is not Linux)."""
        try:
            # The fields after the name, which is in brackets, begin with the third; the birth is the 22nd.
            born = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
            return cls(pid, f"{_BOOT.read_text().strip()}/{born}")
        except (OSError, IndexError):
            return None


class ServerProcess:
    """A program under a minder, in a session of its own. Its output and the minder's cord are files in `scratch`."""

    def __init__(
        self, pid: int, mark: Mark | None, scratch: Path, cord: int, process: asyncio.subprocess.Process | None
    ) -> None:
        self.pid, self.mark, self.scratch = pid, mark, scratch
        self._output = scratch / "server.log"
        self._cord = cord
        self._process = process
        self._read = 0
        self._end: asyncio.Task[int | None] | None = None

    @classmethod
    async def start(
        cls,
        python: Path,
        arguments: list[str],
        *,
        folder: Path,
        environ: Mapping[str, str],
        scratch: Path,
        keep_s: float = 0.0,
    ) -> ServerProcess:
        """Start ``python arguments`` in the folder; it outlives this agent by ``keep_s`` seconds at most."""
        cord = scratch / "cord"
        cord.unlink(missing_ok=True)
        os.mkfifo(cord, 0o600)
        reader = os.open(cord, os.O_RDONLY | os.O_NONBLOCK)
        try:
            writer = os.open(cord, os.O_WRONLY | os.O_NONBLOCK)
            try:
                with (scratch / "server.log").open("wb") as sink:
                    process = await asyncio.create_subprocess_exec(
                        sys.executable, "-I", "-S", minder.__file__, str(keep_s), python, *arguments,
                        cwd=folder, env={**environ, _MARKER: "1"}, start_new_session=True,
                        stdin=reader, stdout=sink, stderr=asyncio.subprocess.STDOUT,
                    )  # fmt: skip
            except BaseException:
                os.close(writer)
                raise
        finally:
            os.close(reader)
        return cls(process.pid, Mark.of(process.pid), scratch, writer, process)

    @classmethod
    def adopt(cls, mark: Mark, scratch: Path) -> ServerProcess | None:
        """Take the server of an earlier agent over; None when it, or its minder, is not there any more."""
        try:
            cord = os.open(scratch / "cord", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return None
        # Only now is the minder sure to stay, unless it has just gone.
        if Mark.of(mark.pid) != mark or not _is_living(mark.pid):
            os.close(cord)
            return None
        process = cls(mark.pid, mark, scratch, cord, None)
        with suppress(OSError):
            process._read = process._output.stat().st_size
        return process

    async def ended(self) -> str:
        """Wait until the program has ended; return how, with the end of its output."""
        status = await self._ended()
        how = "ended" if status is None else f"ended with status {status}"
        if status is not None and status < 0:
            how = f"was killed by signal {-status}"
        return f"the model's server {how}\n{self.tail()}".rstrip()

    def tail(self) -> str:
        """The end of what it wrote."""
        with suppress(OSError), self._output.open("rb") as output:
            output.seek(max(0, output.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return plain(output.read())
        return ""

    def news(self) -> str:
        """What it has written since the last call, in whole lines."""
        with self._output.open("rb") as output:
            output.seek(self._read)
            lines, newline, _ = output.read().rpartition(b"\n")
        self._read += len(lines) + len(newline)
        return plain(lines + newline)

    async def stop(self, grace_s: float) -> None:
        """End the whole group: ask, and after ``grace_s`` seconds kill. Returns once none of it is left."""
        ended = asyncio.ensure_future(self._ended())
        await asyncio.wait({ended}, timeout=0)
        if ended.done() and self.mark is not None:
            await sweep(self.mark)  # its number may be another's by now
        else:
            if grace_s > 0 and not ended.done():
                _signal(self.pid, signal.SIGTERM)
                await asyncio.wait({ended}, timeout=grace_s)
            _signal(self.pid, signal.SIGKILL)
            await ended
            await _gone(self.pid)
        if self._cord >= 0:
            os.close(self._cord)
            self._cord = -1

    async def _ended(self) -> int | None:
        """Wait for the end; return the exit status where this agent is the parent and hears of it."""
        if self._end is None:
            self._end = asyncio.create_task(self._process.wait() if self._process else _end_of(self.pid))
        return await asyncio.shield(self._end)


async def sweep(mark: Mark) -> None:
    """Kill the process group that this process leads or has led, if any of it is left; nothing else is touched."""
    leader = Mark.of(mark.pid)
    if leader == mark:
        _signal(mark.pid, signal.SIGKILL)
        await _gone(mark.pid)
    elif leader is None and _is_of_this_boot(mark):
        _kill_orphans(mark.pid)
        await _gone(mark.pid)


def _kill_orphans(group: int) -> None:
    """Kill the members of a group without its leader.

    While one lives the kernel gives the group's number to nobody else; still, only what an agent has started goes.
    """
    for pid in _members(group):
        with suppress(OSError):
            if f"{_MARKER}=".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                os.kill(pid, signal.SIGKILL)


def _is_of_this_boot(mark: Mark) -> bool:
    return _BOOT.exists() and mark.birth.startswith(_BOOT.read_text().strip())


async def _end_of(pid: int) -> None:
    """Wait for the end of a process that is not a child of this one."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:  # an old kernel, a sandbox that forbids it, no file left to open
        while _is_living(pid):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


async def _gone(group: int) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(_GONE_S):
            while _signal(group, 0) and _has_living(group):  # noqa: ASYNC110 - no one tells when a grandchild ends
                await asyncio.sleep(0.01)


def _signal(group: int, number: int) -> bool:
    """Signal the group; whether there still is one."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _has_living(group: int) -> bool:
    """Say whether a process of the group still runs; where the system does not tell, it may."""
    return bool(_members(group)) or not _BOOT.exists()


def _members(group: int) -> list[int]:
    """The processes of the group that still run; a dead one that nobody has reaped yet does not."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            # The fields after the name, which is in brackets: state, parent, group.
            state, _, of, *_ = path.read_text(errors="replace").rpartition(")")[2].split()
            if of == str(group) and state != "Z":
                found.append(int(path.parent.name))
    return found


def _is_living(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
    return False


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
