"""Messages about ends: each arrives, at least once and under one id, over both databases."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import structlog
from starlette.responses import Response

from cogflare.blobs.local import LocalBlobStore
from cogflare.domain.phases import Status
from cogflare.domain.signatures import verify
from cogflare.engine import hosts
from cogflare.engine.requeues import requeue
from cogflare.engine.sweeps import DELIVERIES_US, Sweeps
from cogflare.engine.views import PredictionView
from cogflare.net.base import Answered
from cogflare.store import deliveries, predictions, retention
from cogflare.store.base import Conflict, Database, Statement
from engine.hooked import ORIGIN, Hooked, dead_url, hooked, receiver

pytestmark = pytest.mark.anyio

ENDS = ["completed"]
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


async def test_an_end_arrives_once_and_signed(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        id = await rig.run(worker, ada, taker.url, ENDS)
        await rig.deliver()
        assert taker.events == [("succeeded", f"msg_{id}")]
        [(_, body)] = taker.got
        assert body["urls"]["get"] == f"{ORIGIN}/v1/predictions/{id}"
        assert (body["output"], body["webhook"], body["webhook_events_filter"]) == ("done", taker.url, ENDS)
        assert "source" not in body
        key = await rig.secrets.secret(ada.account, "webhooks")
        verify(key, taker.headers[0], taker.bodies[0], time.time())
        [row] = await rig.log(ada)
        assert (row.state, row.tries, row.event) == ("delivered", 1, "completed")
        [tried] = await deliveries.tries(store, row.id)
        assert (tried.status, tried.error, tried.answer) == (200, None, "")
        rig.pass_by(HOUR_S)
        await rig.deliver()
        assert len(taker.got) == 1


async def test_what_no_worker_ended_arrives_too(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        canceled, _ = await rig.begin(worker, ada, taker.url)
        await worker.disconnect()
        queued = await rig.hooked(ada, taker.url)
        await rig.predictions.cancel(ada.account, queued)
        await rig.predictions.cancel(ada.account, canceled)
        await rig.deliver()
        assert set(taker.events) == {("canceled", f"msg_{queued}"), ("canceled", f"msg_{canceled}")}


async def test_predictions_without_webhooks_leave_nothing(store: Database) -> None:
    async with hooked(store) as (rig, ada, worker):
        await rig.create(ada)
        await worker.finish(await worker.start(await worker.next()))
        assert await rig.log(ada) == []


async def test_a_receiver_that_is_down_for_an_hour_gets_the_event_once(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        taker.answer = lambda: Response(status_code=500)
        ids = {f"msg_{await rig.run(worker, ada, taker.url, ENDS)}" for _ in range(3)}
        while rig.moved.ahead_s < HOUR_S:
            await rig.deliver()
            await rig.pass_to_next(ada)
        before = taker.ids
        assert before.keys() == ids
        assert 8 <= min(before.values()) <= max(before.values()) <= 12
        taker.answer = Response
        taker.got.clear()
        for _ in range(3):
            rig.pass_by(HOUR_S)
            await rig.deliver()
        assert taker.ids == dict.fromkeys(ids, 1)
        for row in await rig.log(ada):
            tries = await deliveries.tries(store, row.id)
            assert [one.number for one in tries] == list(range(1, row.tries + 1))
            pauses = [(later.at - one.at) / 1e6 for one, later in pairwise(tries[:-1])]
            bounds = [5 * 2**number for number in range(len(pauses))]
            assert all(bound / 2 <= pause <= bound + 5 for bound, pause in zip(bounds, pauses, strict=True)), (
                "they grow"
            )
            assert (row.state, tries[0].error, tries[-1].error) == ("delivered", "answered 500", None)


async def test_after_a_day_the_message_is_given_up(store: Database) -> None:
    async with hooked(store) as (rig, ada, worker):
        await rig.run(worker, ada, dead_url(), ENDS)
        began = rig.moved.ahead_s
        while (rows := await rig.log(ada))[0].state == "pending":
            await rig.deliver()
            await rig.pass_to_next(ada)
        [row] = rows
        assert row.state == "failed"
        assert DAY_S - 60 <= rig.moved.ahead_s - began <= DAY_S + 60
        tries = await deliveries.tries(store, row.id)
        assert len(tries) == row.tries > 24
        assert "no connection to 127.0.0.1" in str(tries[-1].error)
        assert tries[-1].status is None


async def test_a_redirect_is_not_followed_and_says_so(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        elsewhere = taker.url + "/moved"
        taker.answer = lambda: Response(status_code=301, headers={"location": elsewhere})
        await rig.run(worker, ada, taker.url, ENDS)
        await rig.deliver()
        assert len(taker.got) == 1
        [row] = await rig.log(ada)
        [tried] = await deliveries.tries(store, row.id)
        assert (row.state, tried.status) == ("pending", 301)
        assert (
            tried.error == f"answered 301 to {elsewhere}: redirects are not followed; use that address as the webhook"
        )


async def test_a_receiver_that_is_gone_gets_no_more(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        taker.answer = lambda: Response("closed\0for good" + "x" * 5000, status_code=410)
        await rig.run(worker, ada, taker.url, ENDS)
        await rig.deliver()
        [row] = await rig.log(ada)
        assert (row.state, row.tries) == ("failed", 1)
        [tried] = await deliveries.tries(store, row.id)
        assert tried.answer is not None
        assert (len(tried.answer), tried.answer[:15]) == (1000, "closed for good")


@pytest.mark.parametrize(("asked", "least_s", "most_s"), [("600", 600, 601), ("86400", 3600, 3601), ("-5", 2, 6)])
async def test_a_receiver_may_ask_for_a_pause(store: Database, asked: str, least_s: float, most_s: float) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        taker.answer = lambda: Response(status_code=503, headers={"retry-after": asked})
        await rig.run(worker, ada, taker.url, ENDS)
        await rig.deliver()
        assert least_s - 1 <= await rig.pass_to_next(ada) <= most_s


async def test_a_host_that_hangs_takes_nothing_from_others(store: Database) -> None:
    async with receiver() as slow, receiver() as quick, hooked(store, timeout_s=30) as (rig, ada, worker):
        slow.gate.clear()
        for _ in range(20):
            await rig.run(worker, ada, slow.url, ENDS)
        await rig.deliveries.tick()
        await slow.wait(8)
        for _ in range(20):
            await rig.run(worker, ada, quick.url, ENDS)
        await quick.wait(20)
        assert len(slow.got) == slow.most_open == 8
        slow.gate.set()
        await slow.wait(20)
        assert slow.most_open == 8


async def test_a_host_that_is_down_gets_one_try_at_a_time(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        taker.answer = lambda: Response(status_code=503)
        for _ in range(12):
            await rig.run(worker, ada, taker.url, ENDS)
        await rig.deliver()
        first = len(taker.got)
        assert first <= 8
        for turn in range(3):
            rig.pass_by(60)
            await rig.deliver()
            assert len(taker.got) == first + turn + 1
        taker.answer = Response
        rig.pass_by(HOUR_S)
        await rig.deliver()
        await rig.deliver()
        assert {row.state for row in await rig.log(ada)} == {"delivered"}


async def test_hosts_have_turns(store: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count in (("PLACES", 6), ("PLACES_AN_ACCOUNT", 6), ("PLACES_A_HOST", 1)):
        monkeypatch.setattr(hosts, name, count)
    served: list[str] = []
    gate = asyncio.Event()

    async def post(url: str, headers: Mapping[str, str], body: bytes) -> Answered:
        served.append(url)
        await gate.wait()
        await asyncio.sleep(0.002)
        return Answered(200, b"")

    async with hooked(store) as (rig, ada, _):
        monkeypatch.setattr(rig.outgoing, "post", post)
        urls = [f"http://h{number}.example/" for number in range(20)] * 6
        for id in await asyncio.gather(*(rig.hooked(ada, url, ENDS) for url in urls)):
            await rig.predictions.cancel(ada.account, id)
        gate.set()
        await rig.deliver()
        assert Counter(served) == Counter(urls)
        last_begins = max(served.index(url) for url in set(urls))
        assert max(Counter(served[:last_begins]).values()) <= 4, "each has a turn before any has had most of its own"


async def test_one_account_finds_a_host_overloaded_and_others_go_on(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        taker.answer = lambda: Response(status_code=503)
        await rig.run(worker, ada, f"{taker.url}/of-ada", ENDS)
        await rig.deliver()
        assert len(taker.got) == 1
        taker.answer = Response
        bob = (await rig.worker("bob")).caller
        for caller in (ada, bob):
            await rig.predictions.cancel(caller.account, await rig.hooked(caller, f"{taker.url}/also", ENDS))
        await rig.deliver()
        assert [row.state for row in await rig.log(ada)] == ["pending", "pending"]
        assert [row.state for row in await rig.log(bob)] == ["delivered"]


async def test_where_a_redirect_leads_is_told_to_the_client_only(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        taker.answer = lambda: Response(
            status_code=308, headers={"location": "https://elsewhere.example/?token=t0ps3cret"}
        )
        with structlog.testing.capture_logs() as logs:
            id = await rig.run(worker, ada, taker.url, ENDS)
            await rig.deliver()
            rig.pass_by(DAY_S + 60)
            await rig.deliver()
        [row] = await rig.log(ada)
        assert row.state == "failed"
        assert "t0ps3cret" in str((await deliveries.tries(store, row.id))[-1].error)
        assert [entry["error"] for entry in logs if entry.get("delivery") == f"msg_{id}"] == ["answered 308"]
        assert "t0ps3cret" not in str(logs)


async def test_two_nodes_deliver_once(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        other = Hooked(store, clock=rig.moved)
        ids = [await rig.run(worker, ada, taker.url, ENDS) for _ in range(20)]
        await asyncio.gather(rig.deliver(), other.deliver())
        assert taker.ids == {f"msg_{id}": 1 for id in ids}
        await other.aclose()


async def test_what_its_node_did_not_settle_is_tried_by_others(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        taker.gate.clear()
        id = await rig.run(worker, ada, taker.url, ENDS)
        await rig.deliveries.tick()
        await taker.wait(1)
        [row] = await rig.log(ada)
        assert row.tries == 1
        other = Hooked(store, clock=rig.moved)
        await other.deliver()
        assert len(taker.got) == 1, "its holder has time"
        rig.pass_by(20)
        await other.deliveries.tick()
        await taker.wait(2)
        taker.gate.set()
        assert taker.ids == {f"msg_{id}": 2}
        await asyncio.gather(rig.deliveries.settle(), other.deliveries.settle())
        assert [row.state for row in await rig.log(ada)] == ["delivered"]
        await other.aclose()


async def test_a_stop_leaves_what_is_under_way_to_the_next_start(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        taker.gate.clear()
        id = await rig.run(worker, ada, taker.url, ENDS)
        await taker.wait(1)
        await rig.deliveries.stop(0.05)
        taker.gate.set()
        again = Hooked(store, clock=rig.moved)
        await again.deliver()
        assert taker.ids == {f"msg_{id}": 2}
        await again.aclose()


@pytest.mark.parametrize("ahead_s", [600, DAY_S])
async def test_a_clock_that_was_set_back_holds_nothing_up(store: Database, ahead_s: float) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        await rig.deliver()
        rig.pass_by(60)
        rig.moved.wall_ahead_s += ahead_s
        taker.answer = lambda: Response(status_code=500)
        await rig.run(worker, ada, taker.url, ENDS)
        await rig.deliver()
        tried = await rig.log(ada)
        await rig.deliveries.stop(1)
        await rig.run(worker, ada, taker.url, ENDS)
        rig.moved.wall_ahead_s -= ahead_s
        taker.answer = Response
        again = Hooked(store, clock=rig.moved)
        await again.deliver()
        assert [row.state for row in await rig.log(ada)] == ["delivered"] * 2
        assert taker.ids[tried[0].id] == 2
        await again.aclose()


async def test_a_node_whose_clock_is_set_back_sees_it(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        await rig.deliver()
        rig.pass_by(60)
        for _ in range(9):
            rig.pass_by(5)
            await rig.deliver()
        rig.moved.wall_ahead_s += 600
        taker.answer = lambda: Response(status_code=500)
        await rig.run(worker, ada, taker.url, ENDS)
        await rig.deliver()
        rig.moved.wall_ahead_s -= 600
        taker.answer = Response
        await rig.deliver()
        assert [row.state for row in await rig.log(ada)] == ["delivered"]


async def test_a_start_does_not_shorten_the_pause_that_a_receiver_asked_for(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        taker.answer = lambda: Response(status_code=500, headers={"Retry-After": "1800"})
        await rig.run(worker, ada, taker.url, ENDS)
        await rig.deliver()
        again = Hooked(store, clock=rig.moved)
        for _ in range(3):
            again.pass_by(10)
            await again.deliver()
        assert len(taker.got) == 1
        await again.aclose()


async def test_removed_data_is_shown_as_such(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        await rig.deliveries.stop(1)
        id = await rig.run(worker, ada, taker.url)
        await retention.remove_data(store, [id])
        again = Hooked(store, clock=rig.moved)
        await again.deliver()
        [(_, body)] = taker.got
        assert (body["status"], body["data_removed"], body["output"]) == ("succeeded", True, None)
        await again.aclose()


async def test_a_replay_goes_out_under_the_same_id(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        id = f"msg_{await rig.run(worker, ada, taker.url, ENDS)}"
        await rig.deliver()
        again = await deliveries.replay(store, ada.account, id, rig.clock.wall())
        assert again is not None
        assert (again.state, again.tries) == ("pending", 1)
        assert await deliveries.replay(store, ada.account, id, rig.clock.wall()) is None
        assert await deliveries.replay(store, "eve", id, rig.clock.wall()) is None
        await rig.deliver()
        assert taker.ids == {id: 2}
        assert [one.number for one in await deliveries.tries(store, id)] == [1, 2]


async def test_another_life_keeps_the_webhook(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        work, _ = await rig.begin(worker, ada, taker.url, ENDS)
        await rig.predictions.cancel(ada.account, work)
        new, _ = await requeue(rig.predictions, ada, work)
        await worker.finish(await worker.start(await worker.next()))
        await rig.deliver()
        # Messages about different predictions may overtake each other.
        assert sorted(taker.events) == [("canceled", f"msg_{work}"), ("succeeded", f"msg_{new.id}")]
        assert all(body["urls"]["get"].startswith(ORIGIN) for _, body in taker.got)


async def test_a_unit_that_fails_leaves_no_message(store: Database) -> None:
    async with hooked(store) as (rig, ada, worker):
        key = await rig.begin(worker, ada, dead_url(), ENDS)
        ended = predictions.end(*key, Status.FAILED, now=rig.clock.wall())
        with pytest.raises(Conflict):
            await store.write(
                *ended, Statement("mark_requeued", {"prediction": "none", "requeued_as": ""}, needs="row")
            )
        assert await rig.log(ada) == []


async def test_what_this_node_cannot_send_is_a_failed_try(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        await rig.deliveries.stop(1)
        id = await rig.run(worker, ada, taker.url, ENDS)
        again = Hooked(store, clock=rig.moved, render=broken)
        await again.deliver()
        [row] = await rig.log(ada)
        assert (row.state, row.tries, len(taker.got)) == ("pending", 1, 0)
        [tried] = await deliveries.tries(store, row.id)
        assert tried.error == "an error of the server that sends it"
        well = Hooked(store, clock=rig.moved)
        rig.pass_by(60)
        await well.deliver()
        assert taker.ids == {f"msg_{id}": 1}
        await again.aclose()
        await well.aclose()


async def test_large_ones_wait_for_each_other_and_arrive(store: Database) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        taker.takes_s = 0.02
        keys = [await rig.begin(worker, ada, taker.url, ENDS) for _ in range(12)]
        large = b'"' + b"x" * 100_000 + b'"'
        await asyncio.gather(*(worker.finish(key, large) for key in keys))
        await rig.deliver()
        await taker.wait(12)
        assert {len(body["output"]) for _, body in taker.got} == {100_000}
        await rig.deliveries.settle()
        assert {row.state for row in await rig.log(ada)} == {"delivered"}


async def test_old_messages_are_swept(store: Database, tmp_path: Path) -> None:
    async with receiver() as taker, hooked(store) as (rig, ada, worker):
        await rig.run(worker, ada, taker.url, ENDS)
        await rig.run(worker, ada, dead_url(), ENDS)
        await rig.deliver()
        sweeps = Sweeps(store, LocalBlobStore(tmp_path / "files"))
        assert not await sweeps.deliveries(rig.clock.wall() + DELIVERIES_US - 60_000_000)
        assert len(await rig.log(ada)) == 2
        await sweeps.deliveries(rig.clock.wall() + DELIVERIES_US)
        assert [row.state for row in await rig.log(ada)] == ["pending"]


async def broken(view: PredictionView, origin: str | None) -> bytes:
    raise ZeroDivisionError(view.id)
