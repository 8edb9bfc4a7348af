"""What operators of receivers ask of the outbox beyond its rows: typed functions over named queries."""

from collections.abc import Sequence

import msgspec

from cogflare.store.base import Database, Statement, Value
from cogflare.store.deliveries import Delivery, Try, hint


async def last_tries(db: Database, deliveries: Sequence[str]) -> dict[str, Try]:
    """Return what came of the last finished try of each of these messages; of one without tries nothing."""
    wanted = msgspec.json.encode(deliveries).decode()
    return {id: Try(*row) for id, *row in await db.read("last_tries", deliveries=wanted)}


async def hurry(db: Database, delivery: Delivery, now: int, busy_until: int) -> bool:
    """Make a pending message due now, with all its time before it; not one that is tried until `busy_until`."""
    fields: dict[str, Value] = {"id": delivery.id, "tries": delivery.tries, "now": now, "busy_until": busy_until}
    [rows] = await db.write(Statement("hurry_delivery", fields), hints=[hint(delivery.host)])
    return bool(rows)
