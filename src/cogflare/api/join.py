"""How a machine becomes a worker with one line: a script, the agent's wheel, and the pinned packages that it runs on.

Open to anybody: nothing of it is secret, and whoever runs it needs a worker token. The script has this server's
address and the checksums of both files in it. A Host header ends up in a shell: what it may hold is checked here too.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cogflare import __version__
from cogflare.api.context import Api
from cogflare.api.origin import public_base
from cogflare.api.problems import bad_request, not_found
from cogflare.api.wheel import Wheel, pack

_REQUIREMENTS: Final = "requirements.txt"
_QUOTABLE: Final = re.compile(r"https?://[A-Za-z0-9._~:/\[\]-]{1,500}", re.ASCII)
"""What stands for itself between the single quotes of a shell, and in the words of one."""
_MARK: Final = re.compile(r"@([A-Z0-9_]+)@")
_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


@dataclass(frozen=True)
class Bundle:
    """What a machine gets that joins; put together when the first one does, and kept."""

    @cached_property
    def wheel(self) -> Wheel:
        """The agent, and all of this package."""
        return pack()

    @cached_property
    def requirements(self) -> bytes:
        """The packages that the agent runs on, with their hashes."""
        return (files("cogflare.agent") / _REQUIREMENTS).read_bytes()

    @cached_property
    def _script(self) -> str:
        return (files("cogflare.api") / "join.sh").read_text()

    def script(self, server: str) -> str:
        """Return the script of the server with this base URL."""
        sums = self.wheel.sha256, hashlib.sha256(self.requirements).hexdigest()
        values = {
            "SERVER": server,
            "VERSION": __version__,
            "WHEEL": self.wheel.name,
            "WHEEL_SHA256": sums[0],
            "REQUIREMENTS_SHA256": sums[1],
            # Another content is another environment: none is changed while a worker may run from it.
            "KEY": f"{__version__}-{hashlib.sha256(''.join(sums).encode()).hexdigest()[:12]}",
        }
        return _MARK.sub(lambda mark: values[mark[1]], self._script)


class Handlers:
    """The endpoints of what joins."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._bundle = Bundle()

    async def script(self, request: Request) -> Response:
        """GET /join: the script for this server."""
        server = public_base(request.scope, self._api.public_url, self._api.trusted)
        if not _QUOTABLE.fullmatch(server):
            raise bad_request("The server's address has characters that a script cannot hold", title="Invalid host")
        return Response(self._bundle.script(server), headers=_HEADERS, media_type="text/x-shellscript")

    async def part(self, request: Request) -> Response:
        """GET /join/{file}: the wheel or the requirements."""
        name, wheel = request.path_params["file"], self._bundle.wheel
        if name == _REQUIREMENTS:
            return Response(self._bundle.requirements, headers=_HEADERS, media_type="text/plain")
        if name == wheel.name:
            return Response(wheel.content, headers=_HEADERS, media_type="application/zip")
        raise not_found("The server has no such file for workers; run its join line again.")


def routes(api: Api) -> list[Route]:
    """Return the routes of what joins."""
    handlers = Handlers(api)
    return [Route("/join", handlers.script), Route("/join/{file}", handlers.part)]
