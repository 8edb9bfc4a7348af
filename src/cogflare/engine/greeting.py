"""Whether a worker that says hello may come, and what is written down of it.

A token may be limited to models. Whatever is said under it, by link or by HTTP, is about them alone; nor does it speak
for a worker that has served others, whoever has come to know the id of that one.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from cogflare.domain.scopes import covers
from cogflare.engine.adoption import Ground
from cogflare.engine.catalog import OfferRefused
from cogflare.engine.requirements import machine_text
from cogflare.protocol import versions
from cogflare.protocol.messages import Hello
from cogflare.store import fleet
from cogflare.store.base import Database
from cogflare.store.catalog import Caller

_BAD_OFFER: Final = 4400
_FORBIDDEN: Final = 4403
_OTHER_VERSION: Final = 4426
_FULL: Final = 4429
_LATER_S: Final = 60.0  # until a worker comes back for which there was no room


class NotAdmitted(Exception):
    """The worker may not come; the text says why, ``code`` closes its socket.

    It may come back after ``after_s`` seconds; 0: it is not to come back.
    """

    def __init__(self, reason: str, code: int, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.code = code
        self.after_s = after_s


async def admit(ground: Ground, caller: Caller, hello: Hello) -> int:
    """Register what a worker offers; return the version of the protocol that holds for the link.

    Raises `NotAdmitted` for a worker that has no business here.
    """
    worker, server = versions.of(hello), versions.here(ground.server)
    version = versions.agreed(worker, server)
    if version is None:
        raise NotAdmitted(versions.advice(worker, server), _OTHER_VERSION)
    models = [f"{offer.owner}/{offer.name}" for offer in hello.offers]
    if (reason := await out_of_scope(ground.db, caller, hello.worker, models)) is not None:
        raise NotAdmitted(reason, _FORBIDDEN)
    try:
        await ground.catalog.register(caller.account, hello.offers, ground.clock.wall())
        await ground.matching.ready()
    except OfferRefused as error:
        raise NotAdmitted(str(error), _BAD_OFFER) from error
    return version


async def out_of_scope(db: Database, caller: Caller, worker: str, models: Iterable[str]) -> str | None:
    """Return why a worker's token does not speak for this worker and these models (owner/name); None: it does."""
    if caller.models is None:
        return None
    outside = sorted({model for model in models if not covers(caller.models, model)})
    if outside:
        few = ", ".join(outside[:3]) + (" …" if len(outside) > 3 else "")
        return f"this worker token is for {_listed(caller.models)}, not for {few}: offer that, or ask for another one"
    known = await fleet.get_worker(db, worker)
    served = [] if known is None else msgspec.json.decode(known.offers)
    if all(covers(caller.models, f"{offer['owner']}/{offer['name']}") for offer in served):
        return None
    return "this worker id has served models that its token is not for; start the agent with another --state folder"


async def refusal(db: Database, caller: Caller, worker: str) -> NotAdmitted:
    """Return why the store has not opened a link."""
    known = await fleet.get_worker(db, worker)
    if known is not None and known.account != caller.account:
        return NotAdmitted("this worker id belongs to another account; remove the agent's state folder", _FORBIDDEN)
    reason = "as many workers are connected with this token as it allows: stop one of them, or ask for another token"
    return NotAdmitted(reason, _FULL, _LATER_S)


def _listed(models: tuple[str, ...]) -> str:
    return ", ".join(models[:5]) + (" …" if len(models) > 5 else "")


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
        machine_text(hello.machine),
        _text(ground.matching.of_hello(caller.account, hello)),
    )


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
