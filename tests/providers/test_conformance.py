"""What every executor does, against real services."""

import asyncio
import time
from contextlib import aclosing
from typing import Any

import pytest

from cogflare.agent.runners.process import free_port
from cogflare.domain.ids import new_key
from cogflare.providers.base import Busy, Denied, Gone, ProviderError, Refused, Sight, Submission, Unanswered
from providers.rig import Call, Fault, Rig, Where

pytestmark = pytest.mark.anyio

WRONG = "wrong_KEYTHATNOBODYKNOWS0123456789"
PATIENCE_S = 20


async def seen(rig: Rig, sight: Sight, *states: str, where: Where = "plain") -> Sight:
    """Poll until the run is in one of these states."""
    async with asyncio.timeout(PATIENCE_S):
        while (found := await rig.poll(sight, where)).state not in states:
            assert not found.is_ended, found
            await asyncio.sleep(0.02)
    return found


async def ended(rig: Rig, sight: Sight, where: Where = "plain") -> Sight:
    return await seen(rig, sight, "succeeded", "failed", "canceled", where=where)


async def failing(rig: Rig, order: Submission) -> ProviderError:
    with pytest.raises(ProviderError) as failed:
        await rig.executor.submit(order)
    assert rig.place.key not in repr(failed.value)
    return failed.value


# --- what there is ----------------------------------------------------------------------------------------------------


async def test_a_key_that_works_is_in_order(rig: Rig) -> None:
    report = await rig.executor.check(rig.place.terms("plain").endpoint)
    assert report.ok, report
    assert report.is_cogflare == (rig.place.kind == "cogflare")
    assert rig.place.key not in repr(report)


async def test_a_key_that_does_not_work_is_told(rig: Rig) -> None:
    report = await rig.opened(key=WRONG).check(rig.place.terms("plain").endpoint)
    assert not report.ok
    assert report.text
    assert WRONG not in repr(report)


async def test_a_provider_that_is_not_there_is_told(rig: Rig) -> None:
    report = await rig.opened(url=f"http://127.0.0.1:{free_port()}").check(rig.place.terms("plain").endpoint)
    assert not report.ok
    assert "no connection" in report.text


async def test_a_model_is_described_with_its_schema(rig: Rig) -> None:
    if not rig.place.can_describe:
        pytest.skip("this provider has no descriptions")
    terms = rig.place.terms("plain")
    found = await rig.executor.describe("me/ours", None, terms)
    assert f"{found.owner}/{found.name}" == "me/ours"
    assert found.terms.model == terms.model
    assert found.schema is not None
    assert len(found.version) == 64
    with pytest.raises(Refused):
        await rig.executor.describe("me/ours", None, rig.place.terms("absent"))


# --- runs -------------------------------------------------------------------------------------------------------------


async def test_a_run_succeeds(rig: Rig) -> None:
    made = await rig.executor.submit(rig.order(output={"a": ["ü", 1.5, None]}, seconds=0.2))
    assert made.remote_id
    assert made.state in ("waiting", "running")
    found = await ended(rig, made)
    assert found.state == "succeeded"
    assert found.remote_id == made.remote_id
    assert found.started
    assert found.output is not None
    assert bytes(found.output).replace(b" ", b"").decode("utf-8") == '{"a":["ü",1.5,null]}'
    assert found.error is None
    assert found.run_s is not None
    assert 0.1 < found.run_s < PATIENCE_S
    assert found.queue_s is not None


async def test_a_run_is_seen_to_run(rig: Rig) -> None:
    made = await rig.executor.submit(rig.order(seconds=600))
    running = await seen(rig, made, "running")
    assert running.started
    await rig.executor.cancel(made.remote_id, rig.place.terms("plain"))


async def test_the_words_of_a_failure_are_kept(rig: Rig) -> None:
    made = await rig.executor.submit(rig.order(fail="out of memory: 24 GB"))
    found = await ended(rig, made)
    assert found.state == "failed"
    assert found.error is not None
    assert "out of memory: 24 GB" in found.error


async def test_a_cold_run_waits_and_has_never_started(rig: Rig) -> None:
    made = await rig.executor.submit(rig.order("cold"))
    found = await rig.poll(made, "cold")
    assert (found.state, found.started) == ("waiting", False)
    await rig.executor.cancel(made.remote_id, rig.place.terms("cold"))
    found = await ended(rig, made, "cold")
    assert (found.state, found.started) == ("canceled", False)
    assert not found.run_s


async def test_a_run_is_canceled(rig: Rig) -> None:
    made = await rig.executor.submit(rig.order(seconds=600))
    await seen(rig, made, "running")
    await rig.executor.cancel(made.remote_id, rig.place.terms("plain"))
    found = await ended(rig, made)
    assert (found.state, found.started) == ("canceled", True)


async def test_what_has_ended_stays_as_it_is(rig: Rig) -> None:
    made = await rig.executor.submit(rig.order(output="x"))
    await ended(rig, made)
    await rig.executor.cancel(made.remote_id, rig.place.terms("plain"))
    assert (await rig.poll(made)).state == "succeeded"


async def test_a_run_that_is_not_known_is_gone(rig: Rig) -> None:
    terms = rig.place.terms("plain")
    with pytest.raises(Gone):
        await rig.executor.poll(new_key(), terms)
    with pytest.raises(Gone):
        await rig.executor.cancel(new_key(), terms)


async def test_the_same_mark_makes_one_run_where_that_is_promised(rig: Rig) -> None:
    if not rig.executor.is_repeatable:
        pytest.skip("this provider makes a run each time")
    order = rig.order(seconds=0.2)
    made = await asyncio.gather(*(rig.executor.submit(order) for _ in range(5)))
    assert len({sight.remote_id for sight in made}) == 1
    found = await ended(rig, made[0])
    assert await rig.executor.submit(order) == found


async def test_a_run_is_found_by_its_mark(rig: Rig) -> None:
    if not rig.place.can_list:
        with pytest.raises(Unanswered):
            await rig.executor.find(new_key(), now_us())
        return
    since, order = now_us(), rig.order(output=1)
    assert await rig.executor.find(order.mark, since) is None
    made = [await rig.executor.submit(rig.order(output=number)) for number in range(3)]
    mine = await rig.executor.submit(order)
    found = await rig.executor.find(order.mark, since)
    assert found is not None
    assert found.remote_id == mine.remote_id
    assert found.remote_id not in {sight.remote_id for sight in made}


async def test_many_runs_at_once(rig: Rig) -> None:
    made = await asyncio.gather(*(rig.executor.submit(rig.order(output=number)) for number in range(12)))
    found = await asyncio.gather(*(ended(rig, sight) for sight in made))
    assert [int(bytes(sight.output or b"-1")) for sight in found] == list(range(12))


# --- what goes wrong --------------------------------------------------------------------------------------------------


async def test_what_is_not_there_is_refused_in_words(rig: Rig) -> None:
    error = await failing(rig, rig.order("absent"))
    assert isinstance(error, Refused), repr(error)
    assert len(str(error)) > 10


async def test_a_wrong_key_is_denied(rig: Rig) -> None:
    denied, terms = rig.opened(key=WRONG), rig.place.terms("plain")
    made = await rig.executor.submit(rig.order(output="x"))
    calls = (denied.submit(rig.order()), denied.poll(made.remote_id, terms), denied.cancel(made.remote_id, terms))
    for call in calls:
        with pytest.raises(Denied) as failed:
            await call
        assert WRONG not in repr(failed.value)


async def test_a_pause_that_it_asks_for_is_kept_by_all(rig: Rig) -> None:
    begun = rig.place.begun()
    rig.place.fail("busy", "submit")
    for _ in range(3):
        error = await failing(rig, rig.order())
        assert isinstance(error, Busy)
        assert error.retry_after_s is not None
        assert 50 < error.retry_after_s <= 60
    assert rig.place.begun() == begun


@pytest.mark.parametrize("call", ["poll", "cancel"])
async def test_being_busy_is_told_by_other_calls_too(rig: Rig, call: Call) -> None:
    made = await rig.executor.submit(rig.order(output="x"))
    rig.place.fail("busy", call)
    with pytest.raises(Busy):
        await act(rig, call, made)


@pytest.mark.parametrize("fault", ["error", "late_error"])
@pytest.mark.parametrize("call", ["submit", "poll", "cancel"])
async def test_an_error_of_the_server_is_no_answer(rig: Rig, call: Call, fault: Fault) -> None:
    made = await rig.executor.submit(rig.order(output="x"))
    rig.place.fail(fault, call)
    with pytest.raises(Unanswered):
        await act(rig, call, made)
    await act(rig, call, made)


async def test_nothing_was_done_where_nobody_is(rig: Rig) -> None:
    absent = rig.opened(url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Busy):
        await absent.submit(rig.order())
    with pytest.raises(Unanswered):
        await absent.poll(new_key(), rig.place.terms("plain"))


async def test_the_key_is_shown_nowhere(rig: Rig) -> None:
    key = rig.place.key
    shown = [repr(rig.executor), str(rig.executor), repr(rig.client), repr(rig.order())]
    for value in vars(rig.executor).values():
        shown += [repr(value), str(value)]
    assert not [text for text in shown if key in text]
    with pytest.raises(ValueError, match="key") as failed:
        rig.opened(key=f"{key}\r\nX-Evil: 1")
    assert key not in repr(failed.value)


# --- hints ------------------------------------------------------------------------------------------------------------


async def test_hints_come_while_it_runs_and_end_with_it(rig: Rig) -> None:
    made = await rig.executor.submit(rig.order(seconds=0.3, output="x"))
    hints = 0
    async with asyncio.timeout(PATIENCE_S):
        async for _ in rig.executor.changes(made, rig.place.terms("plain")):
            hints += 1
    if rig.place.can_hint:
        assert hints
        assert (await rig.poll(made)).state == "succeeded"


async def test_who_has_heard_enough_leaves(rig: Rig) -> None:
    made = await rig.executor.submit(rig.order(seconds=600))
    changes: Any = rig.executor.changes(made, rig.place.terms("plain"))
    async with aclosing(changes):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(forever(changes), 0.3)
    await rig.executor.cancel(made.remote_id, rig.place.terms("plain"))


async def forever(changes: Any) -> None:
    async for _ in changes:
        pass
    await asyncio.Event().wait()


async def act(rig: Rig, call: Call, made: Sight) -> None:
    """Make a call."""
    terms = rig.place.terms("plain")
    match call:
        case "submit":
            await rig.executor.submit(rig.order(output="y"))
        case "poll":
            await rig.executor.poll(made.remote_id, terms)
        case "cancel":
            await rig.executor.cancel(made.remote_id, terms)


def now_us() -> int:
    return time.time_ns() // 1000
