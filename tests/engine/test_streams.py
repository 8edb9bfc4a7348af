"""Streams inside the engine, over both databases: positions, fan-out, rescues, and predictions of other nodes."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from msgspec import Raw

from cogflare.domain.errors import NotFound
from cogflare.domain.ids import new_stream_key
from cogflare.engine.feeds import BLOCK_BYTES, EVENT_BYTES, STARTED_OVER, End, Part, Place, Reader, split
from cogflare.engine.losses import INTERRUPTED
from cogflare.store import predictions as predictions_store
from cogflare.store.base import Database
from cogflare.store.open import open_database
from engine.rig import Rig, RigWorker

pytestmark = pytest.mark.anyio

DEADLINE_S = 10.0
TEXT = b"""{"components":{"schemas":{"Output":{"type":"array","items":{"type":"string"},
"x-cog-array-type":"iterator","x-cog-array-display":"concatenate"}}}}"""


class Reading:
    """A reader, and all that it was given."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.items: list[bytes] = []
        self.log = b""
        self.end: End | None = None
        self.place = Place(0, 0, 0)

    async def part(self) -> Part:
        """Take the next part."""
        part = await asyncio.wait_for(self.reader.next(), DEADLINE_S)
        assert part is not None, "closed"
        start = part.start
        if start.attempt == self.place.attempt:
            assert (start.items, start.log) == (self.place.items, self.place.log), "each once, in order"
        self.items += part.items
        self.log += part.log
        self.end = part.end
        self.place = Place(start.attempt, start.items + len(part.items), start.log + len(part.log))
        return part

    async def until(self, items: int) -> list[bytes]:
        """Read until so many items were given."""
        while len(self.items) < items:
            await self.part()
        return self.items

    async def all(self) -> End:
        """Read to the end."""
        while self.end is None:
            await self.part()
        return self.end


async def read(rig: Rig, prediction: str, place: Place | None = None, *, with_logs: bool = False) -> Reading:
    """Open a stream as whoever was given its URL."""
    row = await predictions_store.get(rig.db, prediction)
    assert row is not None
    reading = Reading(await rig.streams.open(prediction + row.stream_key, place, with_logs=with_logs))
    reading.place = place or Place(0, 0, 0)
    return reading


async def running(rig: Rig, schema: bytes | None = None) -> tuple[RigWorker, tuple[str, int]]:
    """Return a worker, and the attempt that it has begun."""
    worker, client = await rig.worker(schema=schema), await rig.caller("ada")
    await rig.create(client)
    return worker, await worker.start(await worker.next())


async def say(worker: RigWorker, key: tuple[str, int], *items: bytes, log: str = "") -> None:
    """Have the model show output items, and a piece of its log."""
    for item in items:
        worker.end.output(key, [Raw(item)])
    if log:
        worker.end.log(key, log)
    await worker.pump()


async def got_within(reading: Reading, seconds: float) -> Part | None:
    """Return what a reader gets within some time, or None."""
    asyncio.get_running_loop().call_later(seconds, reading.reader.nudge)
    return await reading.reader.next()


def numbers(first: int, end: int) -> list[bytes]:
    return [b'"%d"' % number for number in range(first, end)]


async def test_what_a_worker_says_is_shown_before_it_is_committed(store: Database) -> None:
    rig = Rig(store)
    worker, key = await running(rig)
    reading = await read(rig, key[0])
    await say(worker, key, *numbers(0, 3), log="one\n")
    assert await reading.until(3) == numbers(0, 3)
    await say(worker, key, *numbers(3, 5))
    assert await reading.until(5) == numbers(0, 5)
    row = await predictions_store.get(store, key[0])
    assert row is not None
    assert row.output_items is None
    await worker.finish(key, None, items=5)
    assert (await reading.all(), reading.items, reading.log) == (End("succeeded"), numbers(0, 5), b"")


async def test_logs_come_to_those_who_ask_for_them(store: Database) -> None:
    rig = Rig(store)
    worker, key = await running(rig)
    await say(worker, key, b'"a"', log="one\n")
    with_logs = await read(rig, key[0], with_logs=True)
    assert (await with_logs.part()).log == b"one\n"
    await say(worker, key, log="zwei ü\n")
    assert (await with_logs.part()).log == "zwei ü\n".encode()
    resumed = await read(rig, key[0], Place(1, 1, 4), with_logs=True)
    await worker.finish(key, None, items=1)
    await resumed.all()
    assert (resumed.items, resumed.log) == ([], "zwei ü\n".encode())


@pytest.mark.parametrize(
    ("output", "items"),
    [
        (b'"text"', [b'"text"']),
        (b"null", []),
        (b"[]", []),
        (b'[{"a":[1]},2]', [b'{"a":[1]}', b"2"]),
        (b'{"a":1}', [b'{"a":1}']),
        (b'["' + b"x" * 20_000 + b'","y"]', [b'"' + b"x" * 20_000 + b'"', b'"y"']),
    ],
    ids=["text", "null", "empty", "list", "object", "large"],
)
async def test_an_output_of_the_end_is_shown_item_by_item(store: Database, output: bytes, items: list[bytes]) -> None:
    rig = Rig(store)
    worker, key = await running(rig)
    live = await read(rig, key[0])
    await worker.finish(key, output)
    late = await read(rig, key[0])
    for reading in (live, late):
        assert await reading.all() == End("succeeded")
        assert reading.items == items


@pytest.mark.parametrize("is_late", [False, True])
async def test_the_ends_of_predictions(store: Database, is_late: bool) -> None:
    rig = Rig(store)
    worker, key = await running(rig)
    await say(worker, key, b'"a"')
    reading = await read(rig, key[0])
    await worker.finish(key, None, status="failed", error="it broke", items=1)
    if is_late:
        reading = await read(rig, key[0])
    assert (await reading.all(), reading.items) == (End("failed", "it broke"), [b'"a"'])

    client = await rig.caller("ada")
    created = await rig.create(client)
    key = await worker.start(await worker.next())
    await say(worker, key, b'"b"')
    reading = await read(rig, created.id)
    await reading.until(1)
    await rig.predictions.cancel(client.account, created.id)
    if is_late:
        reading = await read(rig, created.id)
    assert (await reading.all(), reading.items) == (End("canceled"), [b'"b"'])


async def test_a_prediction_that_waits_is_followed_from_its_start(store: Database) -> None:
    rig = Rig(store)
    client = await rig.caller("ada")
    first = await rig.worker()
    busy = await rig.create(client)
    key = await first.start(await first.next())
    waiting = await rig.create(client)
    reading = await read(rig, waiting.id)
    opened = asyncio.create_task(reading.part())
    await rig.settle()
    assert not opened.done()
    await first.finish(key)
    key = await first.start(await first.next())
    assert key[0] == waiting.id
    await say(first, key, b'"now"')
    assert list((await opened).items) == [b'"now"']
    assert busy.id != waiting.id


async def test_one_that_is_canceled_in_the_queue_ends_its_stream(store: Database) -> None:
    rig = Rig(store)
    await (await rig.worker(slots=1)).disconnect()
    client = await rig.caller("ada")
    created = await rig.create(client)
    reading = await read(rig, created.id)
    ended = asyncio.create_task(reading.all())
    await rig.settle()
    await rig.predictions.cancel(client.account, created.id)
    assert await ended == End("canceled")


async def test_a_token_that_opens_nothing(store: Database) -> None:
    rig = Rig(store)
    worker, key = await running(rig)
    row = await predictions_store.get(store, key[0])
    assert row is not None
    wrong = new_stream_key(of_files=False)
    tokens = ("", key[0], key[0] + wrong, wrong, key[0] + row.stream_key[:-1], key[0] + row.stream_key + "0", "ü" * 67)
    for token in tokens:
        with pytest.raises(NotFound):
            await rig.streams.open(token, None, with_logs=False)
    await worker.finish(key)


async def test_a_position_ahead_of_what_is_known_waits(store: Database) -> None:
    rig = Rig(store)
    worker, key = await running(rig)
    await say(worker, key, *numbers(0, 2))
    reading = await read(rig, key[0], Place(1, 4, 0))
    ahead = asyncio.create_task(reading.part())
    await say(worker, key, *numbers(2, 4))
    await rig.settle()
    assert not ahead.done()
    await say(worker, key, b'"4"')
    assert list((await ahead).items) == [b'"4"']


async def test_what_a_reconnect_repeats_is_shown_once(store: Database) -> None:
    rig = Rig(store)
    worker, key = await running(rig)
    await say(worker, key, *numbers(0, 3))
    await rig.checkpoints.tick()
    await say(worker, key, *numbers(3, 6))
    reading = await read(rig, key[0])
    await reading.until(6)
    await worker.disconnect()
    worker.end.output(key, [Raw(b'"6"')])
    await worker.connect()
    await worker.pump()
    assert await reading.until(7) == numbers(0, 7)
    await worker.finish(key, None, items=7)
    assert (await reading.all(), len(reading.items)) == (End("succeeded"), 7)


async def test_another_node_takes_the_worker_over_and_loses_nothing(url: str, store: Database) -> None:
    """The first node never commits what it had shown, as one that is killed; the worker repeats it to the second."""
    first = Rig(store, "first")
    worker, key = await running(first)
    await say(worker, key, *numbers(0, 2))
    await first.checkpoints.tick()
    await say(worker, key, *numbers(2, 5))
    shown = await read(first, key[0])
    await shown.until(5)
    worker.link = None
    worker.end.disconnected()
    other = open_database(url)
    second = Rig(other, "second")
    resumed = await read(second, key[0], shown.place)
    fresh = await read(second, key[0])
    assert await fresh.until(2) == numbers(0, 2)
    waiting = asyncio.create_task(resumed.part())
    await worker.connect(second)
    await say(worker, key, b'"5"')
    assert list((await waiting).items) == [b'"5"']
    assert await fresh.until(6) == numbers(0, 6)
    await worker.finish(key, None, items=6)
    assert (await resumed.all(), resumed.items) == (End("succeeded"), [b'"5"'])
    assert await fresh.all() == End("succeeded")
    await second.settle()
    await other.aclose()


@pytest.fixture
async def nodes(new_url: Callable[[str], str]) -> AsyncIterator[tuple[Rig, Rig]]:
    """Yield two nodes on one PostgreSQL: one with the workers, one with the readers."""
    where = new_url("postgres")
    databases = open_database(where), open_database(where)
    await databases[0].migrate()
    rigs = Rig(databases[0], "one"), Rig(databases[1], "two")
    yield rigs
    for rig in rigs:
        await rig.settle()
    for database in databases:
        await database.aclose()


async def test_a_stream_of_what_runs_on_another_node(nodes: tuple[Rig, Rig]) -> None:
    here, there = nodes
    worker, key = await running(here)
    reading = await read(there, key[0], with_logs=True)
    opened = asyncio.create_task(reading.part())
    await say(worker, key, *numbers(0, 2), log="one\n")
    await here.checkpoints.tick()
    await there.streams.tick()
    part = await opened
    assert (list(part.items), part.log) == (numbers(0, 2), b"one\n")
    for first in range(2, 8, 2):
        await say(worker, key, *numbers(first, first + 2), log=f"{first}\n")
        await here.checkpoints.tick()
        await there.streams.tick()
        assert await reading.until(first + 2) == numbers(0, first + 2)
    await worker.finish(key, None, items=8)
    assert await reading.all() == End("succeeded")
    assert reading.log == b"one\n2\n4\n6\n"


async def test_what_starts_over_ends_streams_that_had_shown_something(store: Database) -> None:
    rig = Rig(store)
    worker, key = await running(rig)
    await say(worker, key, b'{"n":1}')
    shown, silent = await read(rig, key[0]), await read(rig, key[0])
    await shown.part()
    row = await predictions_store.get(store, key[0])
    assert row is not None
    await rig.losses.rescue(key, "it died", live=rig.predictions.lives[key[0]], slot_free=True)
    await worker.disconnect()
    await asyncio.sleep(0)
    await rig.settle()
    early = await read(rig, key[0])
    assert await got_within(early, 0.05) is None, "what a lost attempt had shown is shown to nobody else"
    again = await rig.worker()
    await rig.releases.tick()
    key = await again.start(await again.next())
    assert key[1] == 2
    await say(again, key, b'{"n":2}')
    assert (await shown.all(), shown.items) == (STARTED_OVER, [b'{"n":1}'])
    fresh = await read(rig, key[0])
    assert await fresh.until(1) == [b'{"n":2}']
    assert fresh.place == Place(2, 1, 0)
    assert await (await read(rig, key[0], Place(1, 1, 0))).all() == STARTED_OVER
    nothing_yet = await read(rig, key[0], Place(1, 0, 0))
    assert await nothing_yet.until(1) == [b'{"n":2}']
    assert await early.until(1) == [b'{"n":2}']
    # This one had not taken anything of the first attempt when it was over.
    assert await silent.until(1) == [b'{"n":2}']
    await again.finish(key, None, items=1)


async def test_text_that_was_shown_is_not_made_anew(store: Database) -> None:
    rig = Rig(store)
    worker, key = await running(rig, TEXT)
    await say(worker, key, b'"Once"')
    reading = await read(rig, key[0])
    await reading.part()
    await worker.finish(key, None, status="lost", items=1)
    assert await reading.all() == End("failed", INTERRUPTED)
    assert reading.items == [b'"Once"']


async def test_a_slow_reader_takes_all_that_is_new_in_blocks(store: Database) -> None:
    rig = Rig(store)
    worker, key = await running(rig)
    slow, other = await read(rig, key[0]), await read(rig, key[0])
    item = b'"' + b"x" * 50_000 + b'"'
    for _ in range(12):
        await say(worker, key, item)
        await other.part()
    part = await slow.part()
    assert sum(map(len, part.items)) < BLOCK_BYTES + len(item)
    assert len(await slow.until(12)) == 12
    await worker.finish(key, None, items=12)
    assert await slow.all() == End("succeeded")


def test_white_space_around_an_output_is_no_part_of_it() -> None:
    assert split(b' \n["a", "b"] ') == [b'"a"', b'"b"']
    assert split(b' "a"\n') == [b'"a"']
    assert split(b" null") == []


async def test_a_block_of_small_items_is_no_larger_than_its_events(store: Database) -> None:
    rig = Rig(store)
    worker, key = await running(rig)
    worker.end.output(key, [Raw(b'"x"')] * 20_000)
    await worker.pump()
    reading = await read(rig, key[0])
    part = await reading.part()
    assert len(part.items) * (len(b'"x"') + EVENT_BYTES) <= BLOCK_BYTES + 100
    assert len(await reading.until(20_000)) == 20_000


async def test_many_readers_are_woken_some_at_a_time(store: Database) -> None:
    rig = Rig(store)
    worker, key = await running(rig)
    readings = [await read(rig, key[0]) for _ in range(300)]
    tasks = [asyncio.create_task(reading.reader.next()) for reading in readings]
    await rig.settle()
    turns = 0
    await say(worker, key, b'"a"')
    while not all(task.done() for task in tasks):
        before = sum(task.done() for task in tasks)
        await asyncio.sleep(0)
        assert sum(task.done() for task in tasks) - before <= 64
        turns += 1
    assert turns >= 5
    await worker.finish(key, None, items=1)
    for reading in readings:
        part = await reading.reader.next()
        assert part is not None
        assert part.end == End("succeeded")
        rig.streams.leave(reading.reader)
    assert rig.predictions.feeds.elsewhere() == []


async def test_a_stop_ends_streams_without_an_end(store: Database) -> None:
    rig = Rig(store)
    worker, key = await running(rig)
    reading = await read(rig, key[0])
    waiting = asyncio.create_task(reading.reader.next())
    await asyncio.sleep(0)
    rig.streams.stop()
    assert await waiting is None
    assert reading.reader.is_closed
    assert (await read(rig, key[0])).reader.is_closed
    await worker.finish(key)


async def test_an_output_that_was_put_by_http_is_read_from_the_store(store: Database) -> None:
    rig = Rig(store)
    worker, key = await running(rig)
    reading = await read(rig, key[0])
    waiting = asyncio.create_task(reading.all())
    text = '["' + "x" * 600_000 + '","y"]'
    await predictions_store.put_result(store, *key, worker.end.worker, text)
    assert await worker.finish(key, None, uploaded=True) == "committed"
    assert await waiting == End("succeeded")
    assert [len(item) for item in reading.items] == [600_002, 3]
