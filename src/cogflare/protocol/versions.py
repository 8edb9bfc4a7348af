"""Whether the two ends of a worker link understand each other, and who has to change where they do not."""

import msgspec

from cogflare.protocol.messages import OLDEST, PROTOCOL, Hello


class Speaks(msgspec.Struct, frozen=True):
    """The versions of the protocol that an end understands, and its `release` of Cogflare."""

    oldest: int
    newest: int
    release: str

    def __str__(self) -> str:
        """Name the end as people know it."""
        spoken = f"{self.newest}" if self.oldest == self.newest else f"{self.oldest} to {self.newest}"
        return f"cogflare {self.release or 'of an unknown version'}, protocol {spoken}"


def here(release: str) -> Speaks:
    """Return what this end understands."""
    return Speaks(OLDEST, PROTOCOL, release)


def of(hello: Hello) -> Speaks:
    """Return what the worker understands that says hello; without a word on older versions it is only the one."""
    told = "".join(char for char in hello.agent.get("version", "")[:50] if char.isprintable())
    return Speaks(min(hello.oldest or hello.protocol, hello.protocol), hello.protocol, told)


def agreed(worker: Speaks, server: Speaks) -> int | None:
    """Return the newest version that both understand; None: there is none."""
    version = min(worker.newest, server.newest)
    return version if version >= max(worker.oldest, server.oldest) else None


def advice(worker: Speaks, server: Speaks) -> str:
    """Say which of two ends that do not understand each other is too old, and what to do at the worker."""
    again = "run the server's join line again, which installs the worker that fits"
    if worker.newest < server.oldest:
        return f"this worker ({worker}) is too old for the server ({server}): {again}"
    return f"the server ({server}) is too old for this worker ({worker}): update the server, or {again}"
