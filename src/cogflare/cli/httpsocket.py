"""uvicorn's HTTP, with bounded heads, and a way to cut off a client that does not read an endless answer."""

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cogflare.api.sse import CUT

MAX_HEAD: Final = 64 << 10
"""Bytes of a request line and headers, or of trailers, that are taken beside those that come with other things."""


class HttpSocket(HttpToolsProtocol):
    """An HTTP connection whose heads are bounded, and that the application can cut off.

    The parser keeps a head until it is whole, whatever its length. What is queued for a client that never reads is
    dropped by a cut.
    """

    _head = 0
    _has_progressed = False

    def data_received(self, data: bytes) -> None:
        """Take bytes in; refuse a head that does not end."""
        self._has_progressed = False
        super().data_received(data)
        self._head = 0 if self._has_progressed else self._head + len(data)
        if self._head > MAX_HEAD and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self.scope["extensions"] = {CUT: {"abort": self.transport.abort}}
        self._has_progressed = True

    def on_headers_complete(self) -> None:
        """Go on to the body."""
        super().on_headers_complete()
        self._has_progressed = True

    def on_chunk_header(self) -> None:
        """Begin a piece of the body, or what follows the last."""
        self._has_progressed = True

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body in."""
        super().on_body(body)
        self._has_progressed = True

    def _refuse(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # an answer is under way, into which no other can be written
        else:
            self.send_400_response(f"The head of a request must be less than {MAX_HEAD} bytes in size.")
