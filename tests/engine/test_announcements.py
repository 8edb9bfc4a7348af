"""Messages about predictions that go on: in order, never ahead of the store, few, and sent once, on both databases."""

import asyncio
from typing import Any

import pytest
from msgspec import Raw
from starlette.responses import Response

from cogflare.protocol.messages import AttemptKey
from cogflare.store import deliveries
from cogflare.store.base import Database
from engine.hooked import Hooked, Receiver, hooked, receiver
from engine.rig import RigWorker

pytestmark = pytest.mark.anyio

ALL = ["start", "output", "logs", "completed"]


async def show(rig: Hooked, worker: RigWorker, key: AttemptKey, *items: str, log: str = "") -> None:
    """Show items and a log, and tell of them."""
    if items:
        worker.end.output(key, [Raw(f'"{item}"'.encode()) for item in items])
    if log:
        worker.end.log(key, log)
    await worker.pump()
    await rig.tell()


def shown(taker: Receiver) -> list[tuple[str, Any, str]]:
    """Return what came: status, output and log."""
    return [(body["status"], body["output"], body["logs"]) for _, body in taker.got]


async def events(rig: Hooked, account: str = "ada") -> list[str]:
    """Return the events in the log of deliveries, the first first."""
    rows = await rig.log(await rig.caller(account))
    return [row.event for row in sorted(rows, key=lambda row: (row.event == "completed", row.created_at, row.id))]


async def test_a_life_is_told_step_by_step(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        key = await rig.begin(worker, ada, taker.url, ALL)
        await rig.tell()
        assert shown(taker) == [("processing", None, "")]
        await show(rig, worker, key, "a")
        rig.pass_by(1)
        await show(rig, worker, key, log="x\n")
        rig.pass_by(1)
        await show(rig, worker, key, "b", log="y\n")
        rig.pass_by(1)
        await worker.finish(key, None)
        await rig.deliver()
        assert shown(taker)[1:] == [
            ("processing", ["a"], ""),
            ("processing", ["a"], "x\n"),
            ("processing", ["a", "b"], "x\ny\n"),
            ("succeeded", ["a", "b"], "x\ny\n"),
        ]
        assert await events(rig) == ["start", "output", "logs", "output", "completed"]
        assert max(taker.ids.values()) == 1
        assert {row.state for row in await rig.log(ada)} == {"delivered"}


async def test_outputs_and_logs_come_at_most_twice_a_second(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        key = await rig.begin(worker, ada, taker.url, ["output", "logs"])
        for number in range(5):
            await show(rig, worker, key, str(number), log=f"{number}\n")
        assert shown(taker) == [("processing", ["0"], "0\n")]
        rig.pass_by(0.6)
        await rig.tell()
        assert shown(taker)[1:] == [("processing", ["0", "1", "2", "3", "4"], "0\n1\n2\n3\n4\n")]
        rig.pass_by(10)
        await rig.tell()
        assert len(taker.got) == 2, "nothing new"


async def test_nothing_is_told_before_it_is_durable(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        key = await rig.begin(worker, ada, taker.url, ["output"])
        await show(rig, worker, key, "a")
        rig.pass_by(1)
        worker.end.output(key, [Raw(b'"b"')])
        await worker.pump()
        await rig.announcements.tick()
        await rig.deliveries.settle()
        assert shown(taker) == [("processing", ["a"], "")]


async def test_while_one_is_under_way_the_newest_waits(store: Database) -> None:
    async with receiver() as taker, hooked(store, timeout_s=30) as (rig, ada, worker):
        taker.gate.clear()
        key = await rig.begin(worker, ada, taker.url, ["output", "completed"])
        worker.end.output(key, [Raw(b'"a"')])
        await worker.pump()
        await rig.checkpoints.tick()
        await taker.wait(1)
        for item in (b'"b"', b'"c"'):
            rig.pass_by(1)
            worker.end.output(key, [Raw(item)])
            await worker.pump()
            await rig.checkpoints.tick()
            await rig.announcements.tick()
        assert taker.most_open == 1
        taker.gate.set()
        await rig.deliveries.settle()
        await rig.tell()
        assert shown(taker) == [("processing", ["a"], ""), ("processing", ["a", "b", "c"], "")]


async def test_the_end_waits_for_what_is_under_way_and_drops_the_rest(store: Database) -> None:
    async with receiver() as taker, hooked(store, timeout_s=30) as (rig, ada, worker):
        other = Hooked(store, clock=rig.moved)
        taker.gate.clear()
        key = await rig.begin(worker, ada, taker.url, ["start", "logs", "completed"])
        await rig.checkpoints.tick()
        await taker.wait(1)
        rig.pass_by(1)
        worker.end.log(key, "late\n")
        await worker.pump()
        await rig.checkpoints.tick()
        await worker.finish(key)
        await asyncio.gather(rig.deliveries.tick(), other.deliver())
        assert len(taker.got) == 1
        taker.gate.set()
        await rig.deliveries.settle()
        await rig.deliver()
        assert [body["status"] for _, body in taker.got][-1] == "succeeded"
        assert taker.most_open == 1
        assert max(taker.ids.values()) == 1
        await other.aclose()


async def test_a_short_life_is_told_in_full(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        id = await rig.run(worker, ada, taker.url, ALL)
        await rig.deliver()
        assert shown(taker) == [("processing", None, ""), ("processing", "done", ""), ("succeeded", "done", "")]
        assert [body["completed_at"] is None for _, body in taker.got] == [True, True, False]
        assert await events(rig) == ["start", "output", "completed"]
        assert [id for id, _ in taker.got][-1] == f"msg_{id}"
        assert max(taker.ids.values()) == 1


async def test_without_a_filter_outputs_and_the_end_are_told(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        await rig.run(worker, ada, taker.url)
        await rig.deliver()
        assert shown(taker) == [("processing", "done", ""), ("succeeded", "done", "")]


@pytest.mark.parametrize(
    ("wanted", "told"), [(["start"], ["start"]), (["output"], ["output"]), (["logs"], []), ([], [])]
)
async def test_a_filter_may_leave_the_end_out(store: Database, wanted: list[str], told: list[str]) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        await rig.run(worker, ada, taker.url, wanted)
        await rig.deliver()
        assert await events(rig) == told
        assert [status for status, *_ in shown(taker)] == ["processing"] * len(told)


async def test_what_was_told_just_now_is_not_told_again_at_the_end(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        key = await rig.begin(worker, ada, taker.url, ALL)
        await rig.tell()
        await show(rig, worker, key, "a")
        worker.end.output(key, [Raw(b'"b"')])
        await worker.finish(key, None)
        await rig.deliver()
        assert await events(rig) == ["start", "output", "completed"]


async def test_one_that_never_started_has_no_start(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        await worker.disconnect()
        id = await rig.hooked(ada, taker.url, ALL)
        await rig.predictions.cancel(ada.account, id)
        await rig.deliver()
        assert shown(taker) == [("canceled", None, "")]


async def test_what_does_not_arrive_is_sent_once(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        taker.answer = lambda: Response(status_code=500)
        key = await rig.begin(worker, ada, taker.url, ["start", "logs"])
        await rig.tell()
        await show(rig, worker, key, log="x")
        rig.pass_by(3600)
        await rig.deliver()
        await rig.tell()
        assert len(taker.got) == 2
        assert {(row.state, row.tries) for row in await rig.log(ada)} == {("failed", 1)}
        [tried] = await deliveries.tries(store, (await rig.log(ada))[0].id)
        assert tried.error == "answered 500"


async def test_what_comes_before_the_end_is_told_once_though_the_end_is_refused(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        taker.answer = lambda: Response(status_code=500)
        id = await rig.run(worker, ada, taker.url, ALL)
        for _ in range(3):
            await rig.deliver()
            await rig.pass_to_next(ada)
        assert await events(rig) == ["start", "output", "completed"]
        assert taker.ids[f"msg_{id}"] == 3
        assert len(taker.got) == 5


async def test_nothing_comes_before_the_end_once_that_may_have_arrived(store: Database) -> None:
    """What was told half a second before the end keeps the rest back, and a later try finds it old."""
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        key = await rig.begin(worker, ada, taker.url, ALL)
        await rig.tell()
        await show(rig, worker, key, "a")
        worker.end.output(key, [Raw(b'"b"')])
        await worker.finish(key, None)
        taker.answer = lambda: Response(status_code=500)
        await rig.deliver()
        await rig.pass_to_next(ada)
        await rig.deliver()
        assert await events(rig) == ["start", "output", "completed"]
        assert [status for status, *_ in shown(taker)] == ["processing", "processing", "succeeded", "succeeded"]


async def test_a_clock_that_was_set_back_leaves_each_message_an_id(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        rig.moved.wall_ahead_s = 600
        await rig.deliveries.stop(1)
        await rig.run(worker, ada, taker.url, ALL)
        rig.moved.wall_ahead_s = 0
        again = Hooked(store, clock=rig.moved)
        await again.deliver()
        assert [status for status, *_ in shown(taker)] == ["processing", "processing", "succeeded"]
        assert max(taker.ids.values()) == 1
        await again.aclose()


async def test_a_node_goes_on_where_another_was(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        key = await rig.begin(worker, ada, taker.url, ["start", "output"])
        await rig.tell()
        await show(rig, worker, key, "a")
        await worker.disconnect()
        other = Hooked(store, clock=rig.moved)
        worker.rig = other
        await worker.connect(other)
        rig.pass_by(1)
        await show(other, worker, key)
        assert len(taker.got) == 2, "nothing new"
        await show(other, worker, key, "b")
        assert shown(taker)[2:] == [("processing", ["a", "b"], "")]
        assert await events(other) == ["start", "output", "output"]
        await other.aclose()


async def test_one_that_was_cut_off_holds_the_end_up_for_a_moment_only(store: Database) -> None:
    async with receiver() as taker, hooked(store, timeout_s=5) as (rig, ada, worker):
        key = await rig.begin(worker, ada, taker.url, ["completed"])
        now = rig.clock.wall()
        news = deliveries.News(f"msg_{key[0]}_1", *key, "start", "127.0.0.1:9", 0, 0)
        assert await deliveries.announce(store, [news], now, now + 10_000_000) == {news.id}
        assert await deliveries.announce(store, [news], now, now + 10_000_000) == set()
        await worker.finish(key)
        await rig.deliver()
        assert taker.got == []
        rig.pass_by(11)
        await rig.deliver()
        await rig.deliver()
        assert [status for status, *_ in shown(taker)] == ["succeeded"]
        states = {row.event: row.state for row in await rig.log(ada)}
        assert states == {"start": "failed", "completed": "delivered"}


async def test_a_replay_shows_what_is_the_case_now(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        key = await rig.begin(worker, ada, taker.url, ["start"])
        await rig.tell()
        [(id, _)] = taker.got
        await worker.finish(key)
        await rig.deliver()
        assert await deliveries.replay(store, ada.account, id, rig.clock.wall()) is not None
        await rig.deliver()
        assert taker.ids == {id: 2}
        assert [status for status, *_ in shown(taker)] == ["processing", "succeeded"]
        assert [row.state for row in await rig.log(ada)] == ["delivered"]


async def test_a_crowd_on_two_nodes_is_told_in_order(store: Database) -> None:
    async with receiver() as taker, hooked(store, timeout_s=30) as (rig, ada, worker):
        taker.takes_s = 0.005
        other = Hooked(store, clock=rig.moved)
        over = asyncio.Event()

        async def keep(node: Hooked) -> None:
            while not over.is_set():
                await node.checkpoints.tick()
                await node.announcements.tick()
                await node.deliveries.tick()
                await asyncio.sleep(0.001)

        async def live(number: int) -> str:
            key = await rig.begin(worker, ada, taker.url, ALL)
            for step in range(number):
                worker.end.output(key, [Raw(b"%d" % step)])
                await worker.pump()
                rig.pass_by(0.3)
                await asyncio.sleep(0.003)
            await worker.finish(key, None if number else b"1")
            return key[0]

        keepers = [asyncio.create_task(keep(node)) for node in (rig, other)]
        ids = [await live(number % 7) for number in range(25)]
        expected = {f"msg_{id}" for id in ids}
        async with asyncio.timeout(20):
            while not expected <= taker.ids.keys():
                await asyncio.sleep(0.01)
        over.set()
        await asyncio.gather(*keepers)
        await asyncio.gather(rig.deliveries.settle(), other.deliveries.settle())
        assert taker.overlaps == []
        assert set(taker.ids.values()) == {1}
        for id in ids:
            told = [body for _, body in taker.got if body["id"] == id]
            assert [body["status"] for body in told] == ["processing"] * (len(told) - 1) + ["succeeded"]
            assert len(told) >= 3
            sizes = [len(body["output"]) for body in told if isinstance(body["output"], list)]
            assert sizes == sorted(sizes)
        await other.aclose()


async def test_an_end_is_told_however_much_goes_on_at_its_receiver(store: Database) -> None:
    async with receiver() as taker, hooked(store, timeout_s=30) as (rig, ada, worker):
        taker.takes_s = 0.1
        going = [await rig.begin(worker, ada, taker.url, ["output"]) for _ in range(19)]
        over = asyncio.Event()

        async def go_on() -> None:
            while not over.is_set():
                for key in going:
                    worker.end.output(key, [Raw(b"1")])
                await worker.pump()
                rig.pass_by(0.6)
                for role in (rig.checkpoints, rig.announcements, rig.deliveries):
                    await role.tick()
                await asyncio.sleep(0)

        keeper = asyncio.create_task(go_on())
        await taker.wait(20)
        ended = await rig.begin(worker, ada, taker.url, ["completed"])
        await worker.finish(ended)
        before = len(taker.got)
        async with asyncio.timeout(20):
            while ("succeeded", f"msg_{ended[0]}") not in taker.events and len(taker.got) < before + 300:
                await asyncio.sleep(0.01)
        later = taker.events[before:]
        over.set()
        await keeper
        assert ("succeeded", f"msg_{ended[0]}") in later[:30], len(later)
