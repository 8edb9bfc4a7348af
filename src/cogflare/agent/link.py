"""The worker's WebSocket: dials the server, says hello, moves frames, and comes back for ever.

It owns the socket and the timers of the link; what the frames mean is `AgentEnd`'s business. Everything that was queued
when the sender gets its turn leaves in one frame, so a busy worker sends few frames and an idle one sends at once.

When to give up: a server that refuses the very first handshake (401, 403) means a wrong token or address, and a person
is there to read it: `Refused`. Once a link was open the same answer is more likely a server whose tokens are being
restored or rotated, while this worker may hold runs and finishes that nobody else has: it goes on trying, slowly, and
reads the token anew each time. A `reject` without retry is the server's own considered word about this worker, not an
accident on the way, and is final at any time. So is that the two do not understand each other: a person has to replace
one of them. What answers and is no Cogflare server is tried again all the same, for so do proxies whose server starts.
"""

import asyncio
import contextlib
import random
import socket as sockets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.http11 import Response
from websockets.typing import Subprotocol

from cogflare.agent.address import ServerAddress
from cogflare.agent.clock import SystemClock
from cogflare.agent.console import Console
from cogflare.agent.unreached import why_unreached
from cogflare.domain.clock import Clock
from cogflare.protocol import versions
from cogflare.protocol.agent_end import AgentEnd
from cogflare.protocol.codec import ProtocolError
from cogflare.protocol.messages import PING, SUBPROTOCOL, Reject, Restarting, ServerMessage, Welcome

_TURN = 256_000  # bytes of live data between two looks for a heartbeat that is due
_HELD_BACK = 128_000  # bytes that the kernel may hold without having sent them
_LATEST_S = 3600.0  # that a server may have a worker wait
_MAX_SIZE = 4_000_000  # bytes of one frame; far above what the protocol allows, far below what would hurt
Handle = Callable[[ServerMessage], None]


@dataclass(frozen=True, slots=True)
class Timing:
    """Durations of the link, in seconds. Pauses before a new try are drawn from zero up to a bound that doubles."""

    first_s: float = 0.1
    cap_s: float = 10.0
    restarting_s: float = 1.0  # after `restarting`: soon, but not all workers in the same instant
    refused_cap_s: float = 60.0
    steady_s: float = 5.0  # a link that lived so long ends a row of failures
    open_s: float = 10.0  # for the handshake, and again for the welcome
    close_s: float = 2.0


_DENIALS = {401: "does not know this worker token", 403: "does not let this token run workers"}
_STRANGER = "; is this the address of a Cogflare server?"


def refusal_text(server: ServerAddress, status: int) -> str:
    """Say what a 401 or 403 means and what to do about it."""
    advice = "make one with `cogflare tokens create --kind worker --name my-gpu` and pass it as COGFLARE_WORKER_TOKEN"
    if status == 401:
        advice = f"ask whoever gave it to you for a new one, or {advice}"
    return f"{server.base} {_DENIALS[status]} (HTTP {status}): {advice}"


class _Problem(msgspec.Struct, frozen=True):
    detail: str


class Refused(Exception):
    """The server will not have this worker; the message says what to do."""


class _LinkEnded(Exception):
    """This link is over; a new one may follow, in `after_s` seconds where the server says so."""

    def __init__(self, reason: str, denied: bool = False, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.denied = denied
        self.after_s = after_s


class Link:
    """The link of one worker. `token` is asked before every dial; `proxy` True takes the system's settings."""

    def __init__(
        self,
        end: AgentEnd,
        server: ServerAddress,
        token: Callable[[], str],
        console: Console,
        *,
        timing: Timing | None = None,
        clock: Clock | None = None,
        proxy: bool = True,
    ) -> None:
        self._end = end
        self._server = server
        self._token = token
        self._console = console
        self._timing = timing or Timing()
        self._clock = clock or SystemClock()
        self._proxy: Literal[True] | None = True if proxy else None
        self._socket: ClientConnection | None = None
        self._ready = asyncio.Event()
        self._flows = asyncio.Event()
        self._closing = asyncio.Event()
        self._was_open = False
        self._restarting = False
        self._beat_due = False
        self._said = False
        self._quiet_s = 0.0

    async def run(self, handle: Handle) -> None:
        """Keep a link open until `close`, giving each message to `handle`; raises `Refused`."""
        failures = 0
        while not self._closing.is_set():
            began = self._clock.monotonic()
            self._restarting = False
            try:
                await self._one_link(handle)
                ended = _LinkEnded("the server closed the link")
            except _LinkEnded as error:
                ended = error
            if self._closing.is_set():
                return
            if self._clock.monotonic() - began > self._timing.steady_s:
                failures = 0
            pause_s, reason = self._pause(failures, ended), str(ended)
            failures += 1
            self._console.say("link_lost", f"not connected: {reason}; next try in {pause_s:.1f} s", reason=reason)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause_s)

    def wake(self) -> None:
        """Send what the end has queued, together with whatever else is queued in this turn of the loop."""
        self._ready.set()

    async def room(self) -> None:
        """Wait until little enough is queued; without a link nothing is."""
        while self._end.is_full:
            self._flows.clear()
            await self._flows.wait()

    async def close(self) -> None:
        """Send what is queued, close the socket and let `run` return; bounded in time."""
        self._closing.set()
        if self._socket is None:
            return
        with contextlib.suppress(TimeoutError, ConnectionClosed):
            async with asyncio.timeout(self._timing.close_s):
                for frame in self._end.take_frames():
                    await self._socket.send(frame)
                await self._socket.close()

    def _pause(self, failures: int, ended: _LinkEnded) -> float:
        if ended.after_s > 0:
            return random.uniform(ended.after_s / 2, ended.after_s)  # noqa: S311  # not a secret
        if ended.denied:
            bound = self._timing.refused_cap_s
        elif self._restarting:
            bound = self._timing.restarting_s
        else:
            bound = min(self._timing.cap_s, self._timing.first_s * 2 ** min(failures, 30))
        return random.uniform(0, bound)  # noqa: S311  # full jitter, not a secret

    # --- one link ------------------------------------------------------------------------------------------------

    async def _one_link(self, handle: Handle) -> None:
        socket = await self._dial()
        tasks: list[asyncio.Task[None]] = []
        self._socket = socket
        self._quiet_s, self._said, self._beat_due = 0.0, False, False
        try:
            welcome = await self._greet(socket, handle)
            self._was_open = True
            tasks = [asyncio.create_task(self._send(socket)), asyncio.create_task(self._beat(socket, welcome))]
            self._ready.set()
            async for frame in socket:
                self._take(frame, handle)
        except ConnectionClosed as error:
            raise _LinkEnded(self._why_closed(error)) from error
        except ProtocolError as error:
            await socket.close(error.code, "protocol error")
            hint = "" if self._was_open else _STRANGER
            raise _LinkEnded(f"the server broke the protocol: {error.reason}{hint}") from error
        finally:
            self._end.disconnected()
            self._flows.set()
            self._socket = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._hang_up(socket)

    async def _dial(self) -> ClientConnection:
        # Heartbeats of our own tell a silent link from an idle one; compression costs more than it saves.
        dialing = connect(
            self._server.link,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            additional_headers={"Authorization": f"Bearer {self._token()}"},
            compression=None,
            ping_interval=None,
            max_size=_MAX_SIZE,
            open_timeout=self._timing.open_s,
            close_timeout=self._timing.close_s,
            proxy=self._proxy,
        )
        try:
            connection = await dialing
            _hold_little(connection)
            return connection
        except InvalidStatus as error:
            raise self._refusal(error.response) from error
        except InvalidMessage as error:
            raise _LinkEnded(f"{self._server.base} does not answer like a Cogflare server") from error
        except (OSError, InvalidHandshake) as error:  # a timeout is an OSError
            raise _LinkEnded(f"cannot reach {self._server.base}: {why_unreached(error)}") from error

    def _refusal(self, response: Response) -> Exception:
        status = response.status_code
        if status == 426 and (detail := _detail(response.body)) and not self._was_open:
            return Refused(f"{self._server.base} does not understand this worker: {detail}")
        if status not in (401, 403):
            hint = _STRANGER if status in (200, 404, 405, 426) else ""
            return _LinkEnded(f"{self._server.base} answered {status}{hint}")
        if self._was_open:
            return _LinkEnded(f"{self._server.base} {_DENIALS[status]} any more", denied=True)
        return Refused(refusal_text(self._server, status))

    async def _greet(self, socket: ClientConnection, handle: Handle) -> Welcome:
        """Say hello and wait for the welcome."""
        for frame in self._end.connected():
            await socket.send(frame)
        welcomes: list[Welcome] = []

        def note(message: ServerMessage) -> None:
            if isinstance(message, Welcome):
                self._require_understood(message)
                welcomes.append(message)
            handle(message)

        try:
            async with asyncio.timeout(self._timing.open_s):
                while not welcomes:
                    self._take(await socket.recv(), note)
        except TimeoutError as error:
            hint = "" if self._was_open else _STRANGER
            raise _LinkEnded(f"the server did not answer the hello{hint}") from error
        return welcomes[0]

    def _require_understood(self, welcome: Welcome) -> None:
        worker = versions.here(self._end.agent.get("version", ""))
        server = versions.Speaks(welcome.protocol, welcome.protocol, welcome.server)
        if versions.agreed(worker, server) is None:
            raise Refused(versions.advice(worker, server))

    def _take(self, frame: str | bytes, handle: Handle) -> None:
        self._quiet_s = 0.0
        for message in self._end.receive(frame, self._clock.monotonic()):
            if isinstance(message, Reject):
                if message.retry:
                    raise _LinkEnded(f"the server said: {message.reason}", after_s=min(message.after_s, _LATEST_S))
                raise Refused(f"the server refused this worker: {message.reason}")
            if isinstance(message, Restarting):
                self._restarting = True
            handle(message)
        if self._end.has_queued():
            self._ready.set()

    async def _send(self, socket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):  # the reader hears of it too, and says why
            while True:
                await self._ready.wait()
                self._ready.clear()
                while self._beat_due or self._end.has_queued():
                    # Not all at once, since a heartbeat must not wait for seconds behind a flood.
                    for frame in self._end.take_frames(_TURN):
                        self._said = True
                        await socket.send(frame)
                    if self._beat_due:
                        self._beat_due = False
                        await self._send_beat(socket)
                    self._flows.set()

    async def _send_beat(self, socket: ClientConnection) -> None:
        """Renew what is held; an idle worker says one constant word, and none if it spoke and was answered just now."""
        frame = self._end.heartbeat()
        if frame != PING or not self._said or self._quiet_s:
            await socket.send(frame)
        self._said = False

    async def _beat(self, socket: ClientConnection, welcome: Welcome) -> None:
        """Keep the link alive, and drop it once nothing was heard for a number of beats.

        Beats are counted, not seconds: after this process was suspended only one of them has passed, and the server's
        frames of that time are still to be read.
        """
        while True:
            await asyncio.sleep(welcome.heartbeat_s)
            self._quiet_s += welcome.heartbeat_s
            if self._quiet_s > welcome.silence_s:
                socket.transport.abort()
                return
            self._beat_due = True
            self._ready.set()

    def _why_closed(self, error: ConnectionClosed) -> str:
        if self._quiet_s and error.rcvd is None:
            return f"the server was silent for {self._quiet_s:.0f} s" if self._quiet_s > 1 else "the connection broke"
        if error.rcvd is not None:
            return f"the server closed the link ({f'{error.rcvd.code} {error.rcvd.reason}'.strip()})"
        return "the connection broke"

    async def _hang_up(self, socket: ClientConnection) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timing.close_s):
                await socket.close()
        socket.transport.abort()


def _detail(body: bytes | bytearray) -> str:
    """Return what a problem document of a Cogflare server says; empty for another body."""
    try:
        return msgspec.json.decode(body, type=_Problem).detail
    except msgspec.DecodeError:
        return ""


def _hold_little(connection: ClientConnection) -> None:
    """Keep the kernel from taking megabytes for a slow network: what it holds, no heartbeat can overtake."""
    option = getattr(sockets, "TCP_NOTSENT_LOWAT", None)
    socket = connection.transport.get_extra_info("socket")
    if option is not None and socket is not None:
        with contextlib.suppress(OSError):  # not TCP, behind some proxies
            socket.setsockopt(sockets.IPPROTO_TCP, option, _HELD_BACK)
