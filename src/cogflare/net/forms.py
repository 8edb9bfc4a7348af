"""Forms with a file, sent as they are read."""

import secrets
from collections.abc import AsyncIterator

from cogflare.net.base import OutgoingError


class Form:
    """A file as `multipart/form-data`, whose size is known before it is read."""

    def __init__(self, name: str, content_type: str, size: int, body: AsyncIterator[bytes]) -> None:
        boundary = f"cogflare-{secrets.token_hex(16)}"
        quoted = name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
        kind = "".join(char for char in content_type if char.isprintable() and char.isascii())
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="content"; filename="{quoted}"\r\n'
        self._head = f"{head}Content-Type: {kind or 'application/octet-stream'}\r\n\r\n".encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._body = body
        self._file_size = size
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self.size = len(self._head) + size + len(self._tail)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the form; raises `OutgoingError` where the file has another size than was said."""
        left = self._file_size
        yield self._head
        async for piece in self._body:
            left -= len(piece)
            if left < 0:
                break
            yield piece
        if left:
            raise OutgoingError("the file has another size than was said")
        yield self._tail
