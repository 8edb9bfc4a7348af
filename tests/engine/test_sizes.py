"""Limits on the sizes of logs and outputs, whatever a worker sends, over both databases."""

import asyncio
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from cogflare.engine import live as lives
from cogflare.engine.live import Live
from cogflare.engine.pending import Pending
from cogflare.engine.sizes import Sizes, is_cut_log, is_cut_output
from cogflare.engine.views import PredictionView
from cogflare.protocol.codec import ProtocolError, encode
from cogflare.protocol.messages import AttemptKey, Finish, Log, Message, Output, Started
from cogflare.store.base import Database
from cogflare.store.catalog import Caller
from engine.rig import Rig, RigWorker

pytestmark = pytest.mark.anyio

SMALL = Sizes(log_bytes=1000, output_bytes=1000, result_bytes=1000, items=100)
LOG_MARK = "[log cut off at 1000 bytes]\n"
OUTPUT_MARK = "[output cut off at 1000 bytes]"


async def running(store: Database, sizes: Sizes = SMALL) -> tuple[Rig, RigWorker, Caller, AttemptKey]:
    """Return an engine with a worker that has begun to run a prediction."""
    rig = Rig(store, sizes=sizes)
    worker, client = await rig.worker(), await rig.caller("ada")
    await rig.create(client)
    key = await worker.start(await worker.next())
    await rig.checkpoints.tick()
    return rig, worker, client, key


async def say(worker: RigWorker, *messages: Message) -> None:
    """Send messages that no agent of ours would."""
    assert worker.link is not None
    await worker.link.receive(encode(messages))


async def shown(rig: Rig, client: Caller, key: AttemptKey) -> PredictionView:
    return await rig.predictions.get(client.account, key[0])


def items_of(view: PredictionView) -> list[object]:
    found: list[object] = msgspec.json.decode(view.output or b"[]")
    return found


# --- logs -------------------------------------------------------------------------------------------------------------


async def test_a_long_log_is_cut_and_the_prediction_succeeds(store: Database) -> None:
    rig, worker, client, key = await running(store)
    for _ in range(500):
        worker.end.log(key, "0123456789")
        await worker.pump()
    assert (await shown(rig, client, key)).logs == "0123456789" * 100 + "\n" + LOG_MARK
    assert await worker.finish(key) == "committed"
    ended = await shown(rig, client, key)
    assert (ended.status, ended.logs) == ("succeeded", "0123456789" * 100 + "\n" + LOG_MARK)


async def test_a_log_as_long_as_the_limit_is_whole(store: Database) -> None:
    rig, worker, client, key = await running(store)
    worker.end.log(key, "x" * 999 + "\n")
    worker.end.log(key, "")
    await worker.finish(key)
    assert (await shown(rig, client, key)).logs == "x" * 999 + "\n"


async def test_a_log_is_cut_before_a_character_and_not_inside_it(store: Database) -> None:
    rig, worker, client, key = await running(store)
    worker.end.log(key, "x" + "🙂" * 400)
    await worker.finish(key)
    assert (await shown(rig, client, key)).logs == "x" + "🙂" * 249 + "\n" + LOG_MARK


async def test_no_agent_is_trusted_with_the_limit(store: Database) -> None:
    """One that knows no limits goes on from its own positions: no gap, no second mark, over reconnects and restarts."""
    rig, worker, client, key = await running(store)
    for offset in range(0, 5000, 500):
        await say(worker, Log(*key, offset, "y" * 500))
    await rig.checkpoints.tick()
    assert worker.closed is None
    await worker.disconnect()
    for again in (rig, Rig(store, sizes=SMALL), Rig(store, sizes=Sizes(log_bytes=3000)), Rig(store)):
        await worker.connect(again)
        await say(worker, Started(*key, 0), Log(*key, 5000, "y" * 500), Log(*key, 400, "y" * 900))
        await again.checkpoints.tick()
        assert worker.closed is None
        assert (await shown(again, client, key)).logs == "y" * 1000 + "\n" + LOG_MARK
        last = again
        await worker.disconnect()
    await worker.connect(last)
    assert await worker.finish(key) == "committed"
    assert (await shown(last, client, key)).logs == "y" * 1000 + "\n" + LOG_MARK


async def test_a_cut_that_was_not_committed_is_made_again_after_a_restart(store: Database) -> None:
    rig, worker, client, key = await running(store)
    worker.end.log(key, "z" * 600)
    await worker.pump()
    await rig.checkpoints.tick()
    for _ in range(10):
        worker.end.log(key, "z" * 600)
        await worker.pump()
    # The node dies: nothing of the link is saved.
    worker.link = None
    worker.end.disconnected()
    again = Rig(store, sizes=SMALL)
    await worker.connect(again)
    await worker.finish(key)
    assert (await shown(again, client, key)).logs == "z" * 1000 + "\n" + LOG_MARK


async def test_a_limit_that_was_lowered_cuts_where_the_log_is(store: Database) -> None:
    rig, worker, client, key = await running(store, Sizes())
    worker.end.log(key, "a" * 2000)
    await worker.pump()
    await rig.checkpoints.tick()
    await worker.disconnect()
    again = Rig(store, sizes=SMALL)
    await worker.connect(again)
    await say(worker, Log(*key, 2000, "b"), Log(*key, 2001, "b"))
    assert (await shown(again, client, key)).logs == "a" * 2000 + "\n[log cut off at 2000 bytes]\n"
    await worker.disconnect()
    await worker.connect(again)
    await say(worker, Log(*key, 2002, "b"))
    assert (await shown(again, client, key)).logs == "a" * 2000 + "\n[log cut off at 2000 bytes]\n"


async def test_a_gap_in_a_log_that_is_not_cut_is_still_a_breach(store: Database) -> None:
    _, worker, _, key = await running(store)
    await say(worker, Log(*key, 5, "x"))
    assert worker.closed is not None


# --- outputs ----------------------------------------------------------------------------------------------------------


async def test_a_long_text_is_cut_and_the_prediction_succeeds(store: Database) -> None:
    rig, worker, client, key = await running(store)
    for number in range(200):
        worker.end.output(key, [Raw(b'"token %03d"' % number)])
        await worker.pump()
    whole = [f"token {number:03d}" for number in range(90)]
    assert items_of(await shown(rig, client, key)) == [*whole, OUTPUT_MARK]
    await worker.disconnect()
    again = Rig(store, sizes=SMALL)
    await worker.connect(again)
    finish = Finish(*key, "succeeded", items=len(worker.end.kept[key].items), slot_free=True)
    worker.end.finish(finish, 0.0)
    await worker.pump()
    await again.settle()
    ended = await shown(again, client, key)
    assert (ended.status, items_of(ended)) == ("succeeded", [*whole, OUTPUT_MARK])


async def test_a_text_of_too_many_items_is_cut(store: Database) -> None:
    rig, worker, client, key = await running(store)
    await say(worker, Output(*key, 0, [Raw(b'"x"')] * 150), Output(*key, 150, [Raw(b'"x"')]))
    assert items_of(await shown(rig, client, key)) == ["x"] * 100 + ["[output cut off at 100 items]"]


async def test_positions_after_a_cut_mean_nothing(store: Database) -> None:
    rig, worker, client, key = await running(store)
    for index in range(50):
        await say(worker, Output(*key, index, [Raw(b'"%s"' % (b"x" * 98))]))
    await rig.checkpoints.tick()
    await worker.disconnect()
    for again in (rig, Rig(store, sizes=SMALL), Rig(store)):
        await worker.connect(again)
        await say(worker, Started(*key, 0), Output(*key, 50, [Raw(b'"y"')]), Output(*key, 3, [Raw(b'"y"')] * 20))
        await again.checkpoints.tick()
        assert worker.closed is None
        assert items_of(await shown(again, client, key)) == ["x" * 98] * 10 + [OUTPUT_MARK]
        await worker.disconnect()


@pytest.mark.parametrize("item", [{"x": "y" * 90}, "cogflare-file:/f/0/" + "x" * 80, "https://a.example/" + "x" * 80])
async def test_an_output_that_cannot_be_cut_fails_at_once(store: Database, item: object) -> None:
    rig, worker, client, key = await running(store)
    data = msgspec.json.encode(item)
    for index in range(50):
        await say(worker, Output(*key, index, [Raw(data)]))
    await rig.settle()
    ended = await shown(rig, client, key)
    assert (ended.status, ended.error) == ("failed", "Output is larger than 1000 bytes")
    assert items_of(ended) == [item] * (1000 // len(data))
    assert worker.closed is None
    assert key in worker.canceled, "the model is told to stop"
    assert await worker.finish(key, status="canceled") == "superseded"
    assert await store.read("occupied_slots") == []


async def test_a_finish_in_the_same_breath_does_not_make_a_cut_list_a_success(store: Database) -> None:
    rig, worker, client, key = await running(store)
    finish = Finish(*key, "succeeded", items=30, slot_free=True)
    await say(worker, Output(*key, 0, [Raw(b'{"x": "%s"}' % (b"y" * 50))] * 30), finish)
    await rig.settle()
    ended = await shown(rig, client, key)
    assert (ended.status, ended.error) == ("failed", "Output is larger than 1000 bytes")
    assert len(items_of(ended)) == 16


async def test_a_value_that_is_too_large_fails(store: Database) -> None:
    rig, worker, client, key = await running(store)
    await worker.finish(key, output=b'"%s"' % (b"x" * 1000))
    ended = await shown(rig, client, key)
    assert (ended.status, ended.error, ended.output) == ("failed", "Output is larger than 1000 bytes", None)
    work = (await rig.create(client)).id
    key = await worker.start(await worker.next())
    assert key[0] == work
    await worker.finish(key, output=b'"%s"' % (b"x" * 998))
    assert (await shown(rig, client, key)).status == "succeeded"


# --- the marks themselves ---------------------------------------------------------------------------------------------


class NoLink:
    worker, epoch = "w", 1

    def cancel(self, key: AttemptKey) -> None: ...


def new_live(limit: int) -> Live:
    return Live("p", 1, "a", "v", 0, NoLink(), sizes=Sizes(log_bytes=limit, output_bytes=limit))


def revived(live: Live, upto: int | None = None) -> Live:
    """Return what another node makes of the first bytes that were committed."""
    again = new_live(live.sizes.log_bytes)
    again.restore(list(live.items), live.log[:upto])
    return again


@given(st.integers(1, 60), st.lists(st.text(max_size=12), max_size=12), st.data())
def test_a_log_ends_the_same_however_often_it_is_taken_up_again(
    limit: int, pieces: Sequence[str], data: st.DataObject
) -> None:
    whole = "".join(pieces).encode(errors="replace").replace(b"\0", b" ")
    live, sent = new_live(limit), 0
    for piece in pieces:
        live.add_log(sent, piece)
        sent += len(piece.encode(errors="replace"))
        if data.draw(st.booleans()):
            live = revived(live)
    if len(whole) <= limit:
        assert bytes(live.log) == whole
        return
    kept = whole[:limit].decode(errors="ignore").encode()
    mark = b"[log cut off at %d bytes]\n" % limit
    assert bytes(live.log) == kept + (b"" if kept.endswith(b"\n") or not kept else b"\n") + mark
    assert is_cut_log(live.log)


def test_a_line_like_the_mark_at_another_place_is_only_a_line() -> None:
    for text in (LOG_MARK, "x\n" + LOG_MARK, "x" * 900 + "\n" + LOG_MARK, "x" * 1010 + "\n" + LOG_MARK):
        assert not is_cut_log(text.encode())
    assert is_cut_log(b"x" * 998 + b"\n" + LOG_MARK.encode())
    assert not is_cut_output([b'"[output cut off at"'])


def test_a_gap_in_an_output_is_a_breach() -> None:
    live = new_live(100)
    with pytest.raises(ProtocolError):
        live.add_items(1, [Raw(b"1")])


# --- checkpoints ------------------------------------------------------------------------------------------------------


async def test_a_flood_is_committed_in_units_of_a_bounded_size(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    kept = lives.save

    def save(portions: Sequence[lives.Portion]) -> list[object]:
        sizes.append(sum(len(chunk.data) for portion in portions for chunk in portion.chunks))
        return kept(portions)  # type: ignore[return-value]

    monkeypatch.setattr(lives, "save", save)
    rig = Rig(store)
    client = await rig.caller("ada")
    flooding, quiet = await rig.worker(), await rig.worker()
    keys = []
    for worker in (flooding, quiet):
        await rig.create(client)
        keys.append(await worker.start(await worker.next()))
    for number in range(15):
        flooding.end.output(keys[0], [Raw(b'"%s"' % (b"%d" % (number % 10) * 699_000))])
    quiet.end.log(keys[1], "a word\n")
    await flooding.pump()
    await quiet.pump()
    assert await rig.checkpoints.tick() < 0.5
    await rig.checkpoints.tick()
    assert "a word" in "".join(row[4] for row in await store.read("read_chunks", attempts=_keys(keys[1])))
    while await rig.checkpoints.tick() < 0.5:
        pass
    assert max(sizes) < lives.UNIT_BYTES + 1_000_000
    assert sum(sizes) == 15 * 699_002 + 7
    await flooding.disconnect()
    again = Rig(store)
    await flooding.connect(again)
    assert len(again.predictions.lives[keys[0][0]].items) == 15


def _keys(*keys: AttemptKey) -> str:
    return msgspec.json.encode(keys).decode()


# --- what a link has under way ----------------------------------------------------------------------------------------


async def test_work_under_way_is_bounded() -> None:
    tasks: list[asyncio.Task[None]] = []
    gate = asyncio.Event()

    def spawn(work: object) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(work))  # type: ignore[arg-type]
        return tasks[-1]

    async def work() -> None:
        await gate.wait()

    pending = Pending(spawn, 3)
    for _ in range(3):
        assert not pending.is_full
        pending.start(work())
    assert pending.is_full
    waiting = asyncio.create_task(pending.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.set()
    await asyncio.wait_for(waiting, 5)
    assert not pending.is_full
