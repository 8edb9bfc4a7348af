"""What every runner promises, over each kind: Cog of today and of before, functions, RunPod handlers, images."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cogflare.agent.runners.base import Event, Finished, Job, Log, Metric, Offer, Output, RunLost, Started
from support.runners import Rig, Rigger, all_but, finished, old_cogs

pytestmark = pytest.mark.anyio

NO_SCHEMA = "RunPod's handlers take any object"
EARLY = old_cogs("a run says nothing before its end, and cannot be stopped", since="cog08")


def log_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Log))


def items_of(events: list[Event]) -> list[object]:
    """The items of partial outputs, whose indexes have no gap."""
    outputs = [event for event in events if isinstance(event, Output)]
    assert [output.index for output in outputs] == list(range(len(outputs)))
    return [output.item for output in outputs]


def offer_of(model: Rig) -> Offer:
    assert model.offer is not None
    return model.offer


async def until_log(runs: AsyncIterator[Event], text: str, seen: list[Event]) -> None:
    """Consume events until the log holds the text."""
    async for event in runs:
        seen.append(event)
        if text in log_of(seen):
            return


async def test_a_run_starts_and_succeeds(rig: Rigger) -> None:
    model = await rig("noop")
    events = await model.events({"text": "hello there"})
    assert isinstance(events[0], Started)
    end = finished(events)
    assert (end.status, end.output, end.error) == ("succeeded", "hello there", None)
    assert end.predict_time_s is not None
    assert 0 <= end.predict_time_s < 5
    assert items_of(events) == []


async def test_the_offer_describes_the_model(rig: Rigger) -> None:
    offer = offer_of(await rig("noop"))
    assert (offer.owner, offer.name, offer.slots, offer.is_taken_over) == ("acme", "noop", 1, False)
    assert len(bytes.fromhex(offer.version)) == 32
    assert offer.schema is not None
    assert {"Input", "Output"} <= set(offer.schema["components"]["schemas"])


@all_but(function="no Cog is in it", handler="no Cog is in it", **old_cogs("it is another one, if it tells at all"))
async def test_the_offer_names_the_cog(rig: Rigger) -> None:
    assert offer_of(await rig("noop")).cog_version == "0.23.1"


@all_but(handler=NO_SCHEMA)
async def test_the_offer_has_the_inputs(rig: Rigger) -> None:
    offer = offer_of(await rig("noop"))
    assert offer.schema is not None
    text = offer.schema["components"]["schemas"]["Input"]["properties"]["text"]
    assert (text["type"], text["default"]) == ("string", "hello")


async def test_a_failure_carries_message_and_log(rig: Rigger) -> None:
    model = await rig("failing")
    events = await model.events({"message": "too dark in here"})
    end = finished(events)
    assert end.status == "failed"
    assert "too dark in here" in (end.error or "")
    assert log_of(events).startswith("this will not end well\n"), "a traceback may follow"


@all_but(handler=NO_SCHEMA, **old_cogs("numbers become text"))
async def test_bad_input_fails_without_a_start(rig: Rigger) -> None:
    model = await rig("failing")
    events = await model.events({"message": 7})
    assert [type(event) for event in events] == [Finished]
    assert finished(events).status == "failed"
    assert "message: 7 is not" in (finished(events).error or "")


@all_but(**EARLY)
async def test_logs_come_while_it_runs_and_a_cancel_ends_it(rig: Rigger) -> None:
    model = await rig("sleeper")
    seen: list[Event] = []
    runs = model.runner.run(Job(id="p1", attempt=1, input={"seconds": 60}))
    await until_log(runs, "asleep", seen)
    await model.runner.cancel("p1")
    seen += [event async for event in runs]
    assert finished(seen).status == "canceled"
    assert finished(await model.events({"seconds": 0}, id="p2")).output == "rested"


async def test_a_cancel_of_nothing_is_nothing(rig: Rigger) -> None:
    model = await rig("noop")
    await model.runner.cancel("nobody")


@all_but(**EARLY)
async def test_a_cancel_before_the_start_prevents_it(rig: Rigger) -> None:
    model = await rig("sleeper")
    first: list[Event] = []
    runs = model.runner.run(Job(id="p1", attempt=1, input={"seconds": 60}))
    await until_log(runs, "asleep", first)
    second = asyncio.create_task(model.events({"seconds": 60}, id="p2"))
    await asyncio.sleep(0)  # it is waiting for the slot of the first now
    await model.runner.cancel("p2")
    assert await second == [Finished(status="canceled")]
    await model.runner.cancel("p1")
    assert finished([event async for event in runs]).status == "canceled"


async def test_a_crash_loses_the_run_and_breaks_the_runner(rig: Rigger) -> None:
    model = await rig("crasher")
    seen: list[Event] = []
    runs = model.runner.run(Job(id="p1", attempt=1, input={"crash": True}))
    with pytest.raises(RunLost, match="died"):
        await until_log(runs, "nothing more", seen)
    assert isinstance(seen[0], Started)
    assert "died" in await asyncio.wait_for(model.runner.wait_broken(), 5)
    assert "died" in (await model.runner.health() or "")
    with pytest.raises(RunLost):
        await model.events({"crash": False}, id="p2")


async def test_tokens_stream_in_order(rig: Rigger) -> None:
    model = await rig("tokens")
    events = await model.events({"count": 40, "delay_s": 0.005})
    words = [f"w{number} " for number in range(40)]
    assert items_of(events) == words
    assert finished(events).output == words
    assert log_of(events) == "first word\n"


@all_but(**EARLY)
async def test_tokens_come_one_by_one(rig: Rigger) -> None:
    model = await rig("tokens")
    await model.events({"count": 1}, id="p0")  # Cog is slow with the first output of all
    arrivals = []
    async for event in model.runner.run(Job(id="p1", attempt=1, input={"count": 5, "delay_s": 0.1})):
        if isinstance(event, Output):
            arrivals.append(asyncio.get_running_loop().time())
    assert len(arrivals) == 5
    assert arrivals[-1] - arrivals[0] > 0.1, "the words came at once"


@all_but(cog08="it gets slow with the square of the words")
async def test_more_tokens_than_a_stream_remembers(rig: Rigger) -> None:
    model = await rig("tokens")
    events = await model.events({"count": 5000})
    assert items_of(events) == [f"w{number} " for number in range(5000)]


async def test_a_streamed_run_that_ends_at_once_runs_once(rig: Rigger) -> None:
    model = await rig("tokens")
    for number in range(20):
        events = await model.events({"count": 1}, id=f"p{number}")
        assert items_of(events) == ["w0 "]
        assert log_of(events) == "first word\n"


async def test_an_iterator_of_files(rig: Rigger) -> None:
    model = await rig("frames")
    events = await model.events({"count": 3})
    output = finished(events).output
    assert items_of(events) == output
    assert [model.sink.files[item] for item in output] == [b"\x89PNG" + bytes([number]) for number in range(3)]
    assert {(id, kind) for id, _, kind, _ in model.sink.puts} == {("p1", "image/png")}
    assert len(model.sink.puts) == 3
    assert log_of(events) == "frame 0\nframe 1\nframe 2\n"


@all_but(
    function="functions record no metrics",
    handler="RunPod's handlers record no metrics",
    **old_cogs("old models record no metrics"),
)
async def test_metrics_of_a_model(rig: Rigger) -> None:
    model = await rig("frames")
    events = await model.events({"count": 3})
    assert Metric("frames", 3) in events
    assert finished(events).metrics["frames"] == 3


async def test_an_iterator_of_files_keeps_its_order(rig: Rigger) -> None:
    model = await rig("frames")
    for number in range(10):
        events = await model.events({"count": 8}, id=f"p{number}")
        assert [model.sink.files[str(item)][-1] for item in items_of(events)] == list(range(8))
        assert finished(events).output == items_of(events)


async def test_a_list_of_files_keeps_its_order(rig: Rigger) -> None:
    model = await rig("gallery")
    output = finished(await model.events({})).output
    assert [model.sink.files[item][0] for item in output] == list(range(6))


async def test_nested_files_and_text_that_looks_like_one(rig: Rigger) -> None:
    model = await rig("files")
    output = finished(await model.events({"source": "data:text/plain;base64,aGVsbG8="})).output
    assert output["text"] == "data:text/plain,not a file"
    assert model.sink.files[output["single"]] == b"HELLO"
    assert [model.sink.files[item] for item in output["many"]] == [b"HELLO\x00", b"HELLO\x01"]


async def test_a_sink_that_fails_loses_the_run(rig: Rigger) -> None:
    model = await rig("frames")
    model.sink.failure = OSError("no room")
    with pytest.raises(RunLost, match="no room"):
        await model.events({"count": 1})


async def test_fifty_runs_back_to_back(rig: Rigger) -> None:
    model = await rig("noop")
    for number in range(50):
        assert finished(await model.events({"text": str(number)}, id=f"p{number}")).output == str(number)


async def test_another_attempt_is_another_run(rig: Rigger) -> None:
    model = await rig("noop")
    assert finished(await model.events({"text": "one"}, attempt=1)).output == "one"
    assert finished(await model.events({"text": "two"}, attempt=2)).output == "two"


@all_but(**old_cogs("it runs one at a time", since="cog014"))
async def test_slots_run_side_by_side(rig: Rigger) -> None:
    model = await rig("parallel", slots=2)
    both = await asyncio.wait_for(
        asyncio.gather(model.events({"name": "a"}, id="p1"), model.events({"name": "b"}, id="p2")), 10
    )
    assert [finished(events).output for events in both] == ["a", "b"]


@all_but(**EARLY)
async def test_closing_the_events_early_leaves_the_runner_usable(rig: Rigger) -> None:
    model = await rig("sleeper")
    seen: list[Event] = []
    runs = model.runner.run(Job(id="p1", attempt=1, input={"seconds": 0.3}))
    await until_log(runs, "asleep", seen)
    await runs.aclose()
    assert finished(await model.events({"seconds": 0}, id="p2")).output == "rested"


@all_but(**EARLY)
async def test_close_ends_runs_and_may_come_twice(rig: Rigger) -> None:
    model = await rig("sleeper")
    seen: list[Event] = []
    runs = model.runner.run(Job(id="p1", attempt=1, input={"seconds": 60}))
    await until_log(runs, "asleep", seen)
    assert await model.runner.health() is None, "busy is well"
    await model.runner.close()
    assert "not set up" in (await model.runner.health() or "")
    with pytest.raises(RunLost, match="closing"):
        _ = [event async for event in runs]
    await model.runner.close()
    with pytest.raises(RunLost, match="not set up"):
        await model.events({"seconds": 0}, id="p2")
