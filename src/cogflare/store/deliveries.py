"""The outbox of messages to webhooks, and the log of what came of them: typed functions over named queries.

The message about an end is written by the unit that ends the prediction. A claim gives one holder one try: `tries` is
its fence, and others may try when its time is over.
"""

from collections.abc import Mapping, Sequence

import msgspec

from cogflare.domain.webhooks import Event, Subject
from cogflare.store.base import Database, Hint, Row, Statement, Value

CHANNEL_DELIVERY = "delivery"
"""Says that there may be something to deliver; the payload is a host."""


class Delivery(msgspec.Struct, frozen=True):
    """One message; times are microseconds. While it is pending, `next_try_at` is when it may be tried.

    `host` is the receiver's, with the account before it.
    """

    id: str
    account: str
    prediction: str
    event: Subject
    url: str
    host: str
    state: str
    tries: int
    next_try_at: int | None
    give_up_at: int | None
    created_at: int
    ended_at: int | None


class Try(msgspec.Struct, frozen=True):
    """What came of try number `number`; `status` and `answer` (its beginning) are None where there was no answer."""

    number: int
    at: int
    duration_us: int
    status: int | None
    error: str | None
    answer: str | None


class Waiting(msgspec.Struct, frozen=True):
    """A host that has pending messages: when the first and the last of them may be tried."""

    host: str
    first: int
    last: int


class Term(msgspec.Struct, frozen=True):
    """The times of a claim: now, until when nobody else tries, when to give up, and beyond what nothing can be due.

    `ahead`: no clock of now is there yet.
    """

    now: int
    until: int
    give_up_at: int
    latest: int
    ahead: int


class News(msgspec.Struct, frozen=True, array_like=True):
    """A message about a prediction that goes on, and what it shows."""

    id: str
    prediction: str
    attempt: int
    event: Event
    host: str
    items: int
    log_bytes: int

    def delivery(self, account: str, url: str, now: int, until: int) -> Delivery:
        """Return the message as it is once it is written."""
        about = account, self.prediction, self.event, url, self.host
        return Delivery(self.id, *about, "pending", 1, until, now, now, None)


class Told(msgspec.Struct, frozen=True):
    """What was told of a prediction before its end."""

    event: str
    created_at: int
    items: int | None
    log_bytes: int | None


class Query(msgspec.Struct, frozen=True):
    """Which messages of an account to list, newest first: those before an id, of a state, prediction or event."""

    account: str
    before: str = "~"
    state: str | None = None
    prediction: str | None = None
    limit: int = 100
    event: str | None = None


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def hint(host: str) -> Hint:
    """Return the hint that there may be something to deliver to a host."""
    return Hint(CHANNEL_DELIVERY, host[:300])


# --- trying ----------------------------------------------------------------------------------------------------------


async def waiting(db: Database, after: str, limit: int) -> list[Waiting]:
    """Return the hosts after this one that have pending messages, in order."""
    return [Waiting(*row) for row in await db.read("waiting_hosts", after=after, limit=limit)]


async def hurry(db: Database, hosts: Sequence[str], term: Term) -> None:
    """Make due now what waits for a time that the clock was set back from."""
    times: dict[str, Value] = {"now": term.now, "ahead": term.ahead}
    await db.write(*(Statement("hurry_deliveries", {"host": host, **times}) for host in hosts))


async def claim(db: Database, limits: Mapping[str, int], term: Term) -> list[Delivery]:
    """Take messages that are due, up to so many of each host, for one try each; some may be of one prediction."""
    times: dict[str, Value] = {"now": term.now, "until": term.until, "give_up_at": term.give_up_at}
    statements = [
        Statement("claim_deliveries", {"host": host, "limit": limit, **times}) for host, limit in limits.items()
    ]
    return [Delivery(*row) for found in await db.write(*statements) for row in found]


async def announce(db: Database, news: Sequence[News], now: int, until: int) -> set[str]:
    """Write messages about predictions that go on, with their only try; returns the ids of those to be sent.

    Nothing is said of a prediction that has ended, whose attempt is over, or of which a message is pending.
    """
    [rows] = await db.write(Statement("announce", {"messages": _text(news), "now": now, "until": until}))
    return {id for (id,) in rows}


async def announce_late(db: Database, news: News, holder: Delivery, now: int, until: int) -> bool:
    """Write a message that comes before the one about the end, whose `holder` has it a while longer for that."""
    fields: dict[str, Value] = msgspec.structs.asdict(news)
    del fields["attempt"]
    held: dict[str, Value] = {"id": holder.id, "tries": holder.tries, "until": until}
    _, rows = await db.write(
        Statement("extend_delivery", held, needs="row_or_stop"),
        Statement("announce_late", {**fields, "now": now, "until": until}),
    )
    return bool(rows)


async def extend(db: Database, holder: Delivery, until: int) -> bool:
    """Give the holder of a try more time; False if others have taken over."""
    held: dict[str, Value] = {"id": holder.id, "tries": holder.tries, "until": until}
    [rows] = await db.write(Statement("extend_delivery", held))
    return bool(rows)


def settle(
    delivery: str, tries: int, state: str, *, next_try_at: int | None = None, ended_at: int | None = None
) -> Statement:
    """Return the statement that says what becomes of a message; a pending one may be tried at `next_try_at`."""
    fields: dict[str, Value] = {"id": delivery, "tries": tries, "state": state}
    return Statement("settle_delivery", {**fields, "next_try_at": next_try_at, "ended_at": ended_at})


async def drop(db: Database, delivery: Delivery) -> None:
    """Forget a message that is not wanted."""
    await db.write(Statement("drop_delivery", {"id": delivery.id, "tries": delivery.tries}))


def record(delivery: str, tried: Try) -> Statement:
    """Return the statement that keeps what came of a try."""
    fields = msgspec.structs.asdict(tried)
    return Statement("record_try", {"delivery": delivery, "try": fields.pop("number"), **fields})


async def told(db: Database, prediction: str) -> list[Told]:
    """Return what was told of a prediction before its end, the first first."""
    return [Told(*row) for row in await db.read("announced", prediction=prediction)]


# --- the log ---------------------------------------------------------------------------------------------------------


async def page(db: Database, query: Query) -> list[Delivery]:
    """Return messages of an account, newest first."""
    fields: dict[str, Value] = {"account": query.account, "before": query.before, "limit": query.limit}
    fields |= {"state": query.state, "event": query.event}
    if query.prediction is not None:
        rows: list[Row] = await db.read("list_deliveries_of", **fields, prediction=query.prediction)
    elif query.state in ("pending", "failed"):
        rows = await db.read("list_undelivered", **fields)
    else:
        rows = await db.read("list_deliveries", **fields)
    return [Delivery(*row) for row in rows]


async def get(db: Database, account: str, id: str) -> Delivery | None:
    """Return a message of the account."""
    rows = await db.read("get_delivery", id=id, account=account)
    return Delivery(*rows[0]) if rows else None


async def tries(db: Database, delivery: str) -> list[Try]:
    """Return what came of the tries of a message, the first first."""
    return [Try(*row) for row in await db.read("list_tries", delivery=delivery)]


async def replay(db: Database, account: str, id: str, now: int) -> Delivery | None:
    """Send a message that is over once more, under its id; None if there is none, or it is pending."""
    known = await get(db, account, id)
    if known is None:
        return None
    again = Statement("replay_delivery", {"id": id, "account": account, "now": now})
    [rows] = await db.write(again, hints=[hint(known.host)])
    return Delivery(*rows[0]) if rows else None


async def forget_old(db: Database, before: int, limit: int) -> int:
    """Forget messages, with their tries, that were over before this time; returns how many."""
    found = [id for (id,) in await db.read("old_deliveries", cutoff=before, limit=limit)]
    if not found:
        return 0
    fields: dict[str, Value] = {"deliveries": _text(found), "cutoff": before}
    _, gone = await db.write(
        Statement("delete_old_tries", fields), Statement("delete_old_deliveries", fields), yields=True
    )
    return len(gone)
