"""Frames of the worker link: text in, messages out, and back. Rule: unknown messages are skipped, not fatal."""

from collections.abc import Iterable
from itertools import accumulate
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Raw

from cogflare.protocol.messages import MAX_DEPTH, MAX_FRAME, AgentMessage, Message, ServerMessage

M = TypeVar("M", bound=Message)

_encoder = msgspec.json.Encoder()


class ProtocolError(Exception):
    """The peer broke the protocol. `code` is the WebSocket close code that says so."""

    def __init__(self, reason: str, code: int = 1002) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


class _Head(msgspec.Struct):
    type: str


class Decoder(Generic[M]):
    """Decodes the frames that one end receives; `known` is the union of the messages it understands."""

    def __init__(self, known: Any) -> None:
        self._frame = msgspec.json.Decoder(list[known])
        self._one = msgspec.json.Decoder(known)
        self._types = {kind.__struct_config__.tag for kind in known.__args__}

    def decode(self, frame: str | bytes) -> list[M]:
        """Return the frame's messages; raises `ProtocolError` for anything but a JSON array of well-formed messages."""
        if isinstance(frame, bytes):
            raise ProtocolError("binary frames are not part of the protocol", 1003)
        if len(frame) > MAX_FRAME or not (frame.isascii() or len(frame.encode(errors="replace")) <= MAX_FRAME):
            raise ProtocolError(f"a frame has at most {MAX_FRAME} bytes", 1009)
        try:
            return self._frame.decode(frame)
        except msgspec.ValidationError:
            return self._one_by_one(frame)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise ProtocolError(f"not a JSON frame: {error}", 1007) from error

    def _one_by_one(self, frame: str) -> list[M]:
        try:
            parts = _array.decode(frame)
            return [self._one.decode(part) for part in parts if _head.decode(part).type in self._types]
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise ProtocolError(f"malformed message: {error}") from error


_array = msgspec.json.Decoder(list[msgspec.Raw])
_head = msgspec.json.Decoder(_Head)


def agent_frames() -> Decoder[Any]:
    """Return the decoder of what agents send (used by the server)."""
    return Decoder(AgentMessage)


def server_frames() -> Decoder[Any]:
    """Return the decoder of what the server sends (used by agents)."""
    return Decoder(ServerMessage)


def checked(value: Raw) -> Raw:
    """Return the JSON value if every reader of a frame will take it, else raise `ValueError`.

    A value that the other end cannot read would end the link, come again with the next one, and so on for ever.
    """
    text = bytes(value)
    try:
        text.decode()
        values = len(_array.decode(b"[%b]" % text))
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise ValueError(f"not a JSON value: {error}") from error
    if values != 1:
        raise ValueError("not one JSON value")
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH:
        # What is left without escapes is in strings between every other quotation mark.
        outside = text.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
        brackets = b"".join(outside).translate(None, _NO_BRACKETS)
        if max(accumulate(_STEP[bracket] for bracket in brackets), default=0) > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    return value


_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NO_BRACKETS = bytes(set(range(256)) - set(_STEP))


def encode(messages: Iterable[Message]) -> str:
    """Return one text frame with these messages."""
    return _encoder.encode(list(messages)).decode()


def frames(messages: Iterable[Message], limit: int = MAX_FRAME) -> list[str]:
    """Return as few text frames as hold these messages, in order, each of at most `limit` bytes.

    Raises `ValueError` for a single message that does not fit.
    """
    done: list[str] = []
    parts: list[bytes] = []
    size = 2
    for message in messages:
        part = _encoder.encode(message)
        if len(part) + 2 > limit:
            raise ValueError(f"a {type(message).__name__} of {len(part)} bytes does not fit a frame")
        if size + len(part) + 1 > limit:
            done.append(f"[{b','.join(parts).decode()}]")
            parts, size = [], 2
        parts.append(part)
        size += len(part) + 1
    if parts:
        done.append(f"[{b','.join(parts).decode()}]")
    return done
