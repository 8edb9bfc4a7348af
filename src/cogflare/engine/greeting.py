"""Whether a worker that says hello may come, and what is written down of it."""

import msgspec

from cogflare.engine.adoption import Ground
from cogflare.engine.catalog import OfferRefused
from cogflare.protocol.messages import PROTOCOL, Hello
from cogflare.store import fleet
from cogflare.store.catalog import Caller

_BAD_OFFER = 4400


class NotAdmitted(Exception):
    """The worker may not come; the text says why, ``code`` closes its socket."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.code = code


async def admit(ground: Ground, caller: Caller, hello: Hello) -> None:
    """Register what a worker offers; raises `NotAdmitted` for one that has no business here."""
    if hello.protocol != PROTOCOL:
        raise NotAdmitted(f"server speaks protocol {PROTOCOL}, agent {hello.protocol}: update the older", _BAD_OFFER)
    try:
        await ground.catalog.register(caller.account, hello.offers, ground.clock.wall())
    except OfferRefused as error:
        raise NotAdmitted(str(error), _BAD_OFFER) from error


def row_of(ground: Ground, caller: Caller, hello: Hello) -> fleet.Link:
    """Return what a hello writes."""
    offers = [
        {"owner": offer.owner, "name": offer.name, "version": offer.version, "slots": offer.slots}
        for offer in hello.offers
    ]
    return fleet.Link(
        hello.worker,
        caller.account,
        caller.token,
        hello.name.replace("\0", ""),
        hello.instance,
        ground.node,
        _text(offers),
        _text({key[:50].replace("\0", ""): value[:200].replace("\0", "") for key, value in hello.agent.items()}),
        ground.clock.wall(),
        ground.health.probation,
    )


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
