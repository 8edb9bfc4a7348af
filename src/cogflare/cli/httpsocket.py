"""uvicorn's HTTP, with a way for an endless answer to break the connection of a client that does not read it."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cogflare.api.sse import CUT


class HttpSocket(HttpToolsProtocol):
    """An HTTP connection that the application can cut off: what is queued for a client that never reads is dropped."""

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self.scope["extensions"] = {CUT: {"abort": self.transport.abort}}
