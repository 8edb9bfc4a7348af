"""What the Cog servers of the years can do, by the release of Cog that they came with. Values in, values out."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_NUMBER = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
_COGLET, _FREE, _HOST, _OWNER, _GOES_ON, _PORT = (0, 17, 0), (0, 13, 7), (0, 9, 12), (0, 9, 9), (0, 7, 0), (0, 5, 0)


@dataclass(frozen=True, slots=True)
class CogRelease:
    """A release of Cog, by its number; what does not tell its number is taken for a late one."""

    number: tuple[int, int, int] = _COGLET

    @classmethod
    def of(cls, version: str) -> CogRelease:
        """The release that calls itself by this version."""
        found = _NUMBER.match(version)
        return cls((int(found[1]), int(found[2]), int(found[3] or 0))) if found else cls()

    @classmethod
    def of_server(cls, source: str) -> CogRelease:
        """The release whose server, before coglet, has such a source, as far as one can see in it."""
        if "--host" in source:
            return cls(_HOST)
        if "--upload-url" in source:
            return cls(_GOES_ON)
        return cls(_PORT if "PORT" in source else (0, 0, 0))

    @property
    def is_coglet(self) -> bool:
        """Whether its server is coglet, or the one in Python that came before."""
        return self.number >= _COGLET

    @property
    def answers_while_waiting(self) -> bool:
        """Whether its server answers anything else while a request waits for the end of its run."""
        return self.number >= _FREE

    @property
    def takes_host(self) -> bool:
        """Whether its server can be told where to listen, or listens on all addresses."""
        return self.number >= _HOST

    @property
    def goes_on(self) -> bool:
        """Whether a run goes on without the request that started it, reports by webhook, and uploads its files."""
        return self.number >= _GOES_ON

    def slots(self, wanted: int) -> int:
        """How many runs at a time it gets: one where it would not say whose a file is, and takes no second run."""
        return wanted if self.number >= _OWNER else 1

    @property
    def quiet(self) -> str:
        """The level of its log at which its server says what went wrong alone."""
        return "warn" if self.goes_on else "warning"

    @property
    def takes_port(self) -> bool:
        """Whether its server can be told its port, or has port 5000."""
        return self.number >= _PORT


def reach_s(release: CogRelease, usual_s: float) -> float:
    """How many seconds its server may take to answer at all: before 0.7 it answers nobody until it is set up."""
    return usual_s if release.goes_on else math.inf
