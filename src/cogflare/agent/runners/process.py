"""The processes of a model's server that an agent started: started, watched, taken over, ended as a whole.

A minder (`minder.py`) stands between agent and server. It ends the server with all that this has started when no agent
holds its cord any more, so a server outlives its agent by a bounded time, in which the next agent may take it over.
What has lost both minder and guard is known by a variable in its environment.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from cogflare.agent.runners import minder
from cogflare.agent.scratch import Scratch

_GONE_S, _LOOK_S = 2.5, 0.5  # longer than a minder tries
_GUARD_S, _LOOK_AGAIN_S = 0.5, 0.02
_TAIL_BYTES = 8192
_BOOT = Path("/proc/sys/kernel/random/boot_id")
# The scratch folders of the servers that a process belongs to, a line each: a model may have a worker inside.
_MARKER, _MARK_ALONE = "CHILD_OF_COGFLARE", b"1"


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
        self, pid: int, mark: Mark | None, scratch: Scratch, cord: int, process: asyncio.subprocess.Process | None
    ) -> None:
        self.pid, self.mark, self.scratch = pid, mark, scratch
        self._output = scratch.path / "server.log"
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
        scratch: Scratch,
        keep_s: float = 0.0,
    ) -> ServerProcess:
        """Start ``python arguments`` in the folder; it outlives this agent by ``keep_s`` seconds at most."""
        cord = scratch.path / "cord"
        marker = "\n".join(filter(None, [environ.get(_MARKER), str(scratch.path)]))
        cord.unlink(missing_ok=True)
        os.mkfifo(cord, 0o600)
        reader = os.open(cord, os.O_RDONLY | os.O_NONBLOCK)
        try:
            writer = os.open(cord, os.O_WRONLY | os.O_NONBLOCK)
            try:
                with (scratch.path / "server.log").open("wb") as sink:
                    process = await asyncio.create_subprocess_exec(
                        sys.executable, "-I", "-S", minder.__file__, str(keep_s), python, *arguments,
                        cwd=folder, env={**environ, _MARKER: marker}, start_new_session=True,
                        stdin=reader, stdout=sink, stderr=asyncio.subprocess.STDOUT, pass_fds=scratch.shared(),
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
        kept = None
        if _is_there(mark):
            with suppress(OSError):
                kept = Scratch.at(scratch)
        if kept is None:
            os.close(cord)
            return None
        process = cls(mark.pid, mark, kept, cord, None)
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
        """End all of it: ask, and after ``grace_s`` seconds kill. Returns once none of it is left."""
        ended = asyncio.ensure_future(self._ended())
        await asyncio.wait({ended}, timeout=0)
        if grace_s > 0 and not ended.done():
            _signal_group(self.pid, signal.SIGTERM)
            await asyncio.wait({ended}, timeout=grace_s)
        for number, patience_s in ((minder.END, _GONE_S), (signal.SIGKILL, None)):
            if not ended.done():  # else its number may be another's by now
                with suppress(ProcessLookupError):
                    os.kill(self.pid, number)
                await asyncio.wait({ended}, timeout=patience_s)
        await _clear(self.scratch.path, self.pid)
        self.scratch.let_go()
        if self._cord >= 0:
            os.close(self._cord)
            self._cord = -1

    async def _ended(self) -> int | None:
        """Wait for the end; return the exit status where this agent is the parent and hears of it."""
        if self._end is None:
            self._end = asyncio.create_task(self._process.wait() if self._process else _end_of(self.pid))
        return await asyncio.shield(self._end)


async def sweep(mark: Mark, scratch: Path) -> None:
    """End what is left of a server that an earlier agent started, with its folder; nothing else is touched."""
    for number in (minder.END, signal.SIGKILL):
        if _is_there(mark):
            with suppress(OSError):
                os.kill(mark.pid, number)
                async with asyncio.timeout(_GONE_S):
                    await _end_of(mark.pid)
    await _clear(scratch, mark.pid)
    await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)


async def _clear(scratch: Path, group: int) -> None:
    """Wait until nothing of a server is left whose minder has ended, and kill what its guard does not."""
    started = time.monotonic()
    while (age_s := time.monotonic() - started) < _GONE_S:
        if not (left := await asyncio.to_thread(_left, os.fsencode(scratch), group)):
            return
        # The guard knows more of them than can be found, so it goes first.
        for pid in left if age_s > _GUARD_S else ():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(_LOOK_AGAIN_S)


def _left(scratch: bytes, group: int) -> list[int]:
    """The processes of the server with this folder, as far as they have its environment; or else the group."""
    if not _BOOT.exists():  # the group is all that the system tells of
        return [-group] if _signal_group(group, 0) else []
    found, is_led = [], _is_living(group)
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
            for variable in environ.read().split(b"\0"):
                name, _, value = variable.partition(b"=")
                if name != _MARKER.encode():
                    continue
                # Earlier versions left a mark alone; the number of a group without its leader is nobody else's.
                if scratch in value.split(b"\n") or (value == _MARK_ALONE and not is_led and os.getpgid(pid) == group):
                    found.append(pid)
    return found


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


def _signal_group(group: int, number: int) -> bool:
    """Signal the group; whether there still is one."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _is_there(mark: Mark) -> bool:
    """Whether that very process still runs."""
    return Mark.of(mark.pid) == mark and _is_living(mark.pid)


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
