"""What the tests of errands share: an account with a provider, and claims for it."""

from collections.abc import Sequence
from typing import Any

from cogflare.domain.ids import new_id, new_key
from cogflare.store import errands, providers
from cogflare.store.base import Statement
from cogflare.store.errands import ErrandRow, NewErrand, Reservation
from cogflare.store.fleet import AttemptKey
from cogflare.store.providers import ProviderRow
from store.scene import Scene

HOLDER = "provider:p1"
DAY = "2023-11-14"  # of the scene's clock
MONTH = "2023-11"


async def provider(scene: Scene, id: str = "p1", account: str = "acct", name: str = "replicate") -> ProviderRow:
    """Give an account, which it makes where there is none, a provider."""
    await scene.account(account)
    return await providers.put(
        scene.db,
        ProviderRow(
            id, account, name, "replicate", "https://x", "sealed", "r8_", "{}", None, None, scene.tick(), scene.now
        ),
    )


def new(scene: Scene, prediction: str, attempt: int = 0, **fields: Any) -> NewErrand:
    """Return what a claim for the provider `p1` writes."""
    known: dict[str, Any] = {
        "account": "acct",
        "token": "t1",
        "model": "o/m",
        "provider": "p1",
        "provider_name": "replicate",
        "node": "n1",
        "version": None,
        "most_open": 100,
        "terms": '{"model": "o/m"}',
        "decision": '{"code": "no_workers"}',
        **fields,
    }
    return NewErrand(
        prediction=prediction,
        attempt=attempt,
        holder=f"provider:{known['provider']}",
        claim=new_id(scene.now),
        mark=new_key(),
        now=scene.tick(),
        **known,
    )


def share(limit: int, amount: int | None, scope: str = "account", since: str = DAY, ref: str = "") -> Reservation:
    return Reservation("acct", scope, ref, since, limit, amount)


async def send(
    scene: Scene, prediction: str, attempt: int = 0, shares: Sequence[Reservation] = (), **fields: Any
) -> ErrandRow:
    """Give a queued prediction to the provider."""
    await scene.db.write(*errands.claim(new(scene, prediction, attempt, **fields), shares))
    return await row_of(scene, (prediction, attempt + 1))


async def row_of(scene: Scene, key: AttemptKey) -> ErrandRow:
    row = await errands.get(scene.db, *key)
    assert row is not None
    return row


def settling(scene: Scene, row: ErrandRow, cost: int | None = 100, **fields: Any) -> list[Statement]:
    return errands.settle(row, now=scene.tick(), cost=cost, **{"run_us": 2_000_000, **fields})
