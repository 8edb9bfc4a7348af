"""Cogflares as providers, seen for what they are and as Replicate: marks, files, streams of text, faults in between."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from cogflare.domain.ids import new_key
from cogflare.providers.base import Gone, Refused, Sight, Terms, Unanswered
from providers.rig import CogflarePlace, HiddenPlace, Rig
from support.until import until
from support.upstream import Upstream

pytestmark = pytest.mark.anyio

TEXT = Terms("me/text", "3" * 64)
SINGLE = Terms("me/single", "1" * 64)


@pytest.fixture(params=["cogflare", "replicate"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    place: CogflarePlace = request.getfixturevalue(str(request.param))
    rig = Rig(place)
    yield rig
    place.heal()
    await rig.client.aclose()


@pytest.fixture
async def hidden(replicate: HiddenPlace) -> AsyncIterator[Rig]:
    rig = Rig(replicate)
    yield rig
    replicate.heal()
    await rig.client.aclose()


@pytest.fixture
async def open_rig(cogflare: CogflarePlace) -> AsyncIterator[Rig]:
    rig = Rig(cogflare)
    yield rig
    cogflare.heal()
    await rig.client.aclose()


def place_of(rig: Rig) -> CogflarePlace:
    assert isinstance(rig.place, CogflarePlace)
    return rig.place


def upstream_of(rig: Rig) -> Upstream:
    return place_of(rig).upstream


async def ended(rig: Rig, made: Sight, terms: Terms = SINGLE) -> Sight:
    async with asyncio.timeout(20):
        while not (found := await rig.executor.poll(made.remote_id, terms)).is_ended:
            await asyncio.sleep(0.02)
    return found


def shown(sight: Sight) -> Any:
    """Return the output as a value."""
    return msgspec.json.decode(sight.output or b"null")


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for piece in given:
        yield piece


async def read(body: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in body])


def now_us() -> int:
    return time.time_ns() // 1000


# --- text and logs ----------------------------------------------------------------------------------------------------


async def test_text_and_logs_grow_with_each_hint(rig: Rig) -> None:
    order = msgspec.structs.replace(rig.order(items=6, log=6, seconds=0.6), terms=TEXT)
    made = await rig.executor.submit(order)
    outputs: list[list[str]] = []
    logs: list[str] = []
    async for _ in rig.executor.changes(made, TEXT):
        found = await rig.executor.poll(made.remote_id, TEXT)
        outputs.append(msgspec.json.decode(found.output or b"[]"))
        logs.append(found.logs)
    assert outputs[-1] == [f"w{index} " for index in range(6)]
    assert len({len(items) for items in outputs}) > 2
    assert all(outputs[-1][: len(items)] == items for items in outputs)
    assert all(logs[-1].startswith(log) for log in logs)
    found = await ended(rig, made, TEXT)
    assert found.logs == "".join(f"line {index}\n" for index in range(6))
    assert "predict_time" in found.metrics


async def test_hints_come_back_after_the_stream_broke(rig: Rig) -> None:
    order = msgspec.structs.replace(rig.order(items=8, seconds=2.4), terms=TEXT)
    made = await rig.executor.submit(order)
    hints = 0
    async for _ in rig.executor.changes(made, TEXT):
        hints += 1
        if hints == 2:
            upstream_of(rig).cut()
    assert hints > 4
    assert (await rig.executor.poll(made.remote_id, TEXT)).state == "succeeded"


# --- files ------------------------------------------------------------------------------------------------------------


async def test_a_file_of_an_output_is_fetched(rig: Rig) -> None:
    made = await rig.executor.submit(rig.order(file="ü" * 100_000))
    url = shown(await ended(rig, made))
    assert rig.executor.is_file(url)
    file = await rig.executor.fetch(url)
    assert (file.name, file.size) == ("answer.txt", 200_000)
    assert file.content_type.startswith("text/plain")
    assert (await read(file.body)).decode() == "ü" * 100_000


async def test_a_file_that_is_not_there_is_gone(rig: Rig) -> None:
    with pytest.raises(Gone):
        await rig.executor.fetch(f"{rig.place.url}/f/{'0' * 40}/answer.txt")


async def test_half_a_file_is_no_file(rig: Rig) -> None:
    made = await rig.executor.submit(rig.order(file="x" * 100_000))
    url = shown(await ended(rig, made))
    upstream_of(rig).fail("tear", "file", times=1)
    file = await rig.executor.fetch(url)
    with pytest.raises(Unanswered):
        await read(file.body)
    assert await read((await rig.executor.fetch(url)).body) == b"x" * 100_000


async def test_a_file_may_be_left_unread(rig: Rig) -> None:
    made = await rig.executor.submit(rig.order(file="x" * 3_000_000))
    url = shown(await ended(rig, made))
    for _ in range(3):
        file: Any = await rig.executor.fetch(url)
        await file.body.aclose()


async def test_an_upload_arrives_whole(rig: Rig) -> None:
    content = [b"a" * 70_000, b"", b"b" * 70_001]
    size = sum(map(len, content))
    url = await rig.executor.upload('my "cät".png', "image/png", size, pieces(*content))
    assert url.startswith(rig.place.url)
    found = place_of(rig).server.ask("GET", url.removeprefix(rig.place.url))
    assert (found["content_type"], found["size"]) == ("image/png", size)
    assert found["name"].startswith("my ")
    assert found["checksums"]["sha256"] == hashlib.sha256(b"".join(content)).hexdigest()


@pytest.mark.parametrize("said", [3, 5])
async def test_an_upload_of_another_size_than_said_does_not_happen(rig: Rig, said: int) -> None:
    with pytest.raises(Unanswered, match="another size"):
        await rig.executor.upload("x", "text/plain", said, pieces(b"four"))


@pytest.mark.parametrize(
    ("url", "is_one"),
    [
        ("https://replicate.delivery/pbxt/abc/out.png", True),
        ("https://xezq.replicate.delivery/a/out-0.webp", True),
        ("https://replicate.delivery.evil.example/a.png", False),
        ("https://evilreplicate.delivery/a.png", False),
        (f"https://elsewhere.example/f/{'0' * 40}/out.png", True),
        ("https://elsewhere.example/out.png", False),
        ("HERE/out.png", True),
        ("HERE/v1/predictions/abc", False),
        ("HERE/", False),
        ("HERE/out", False),
        ("HERE/account", False),
        ("HERE/v1/predictions", False),
        ("HERE/v1/predictions/a.png", False),
        ("HERE/v1//predictions/a.png", False),
        ("HERE/%70redictions/a.png", False),
        ("HERE/files/../predictions/a.png", False),
        ("HERE/files/..%2fpredictions%2fa.png", False),
        ("HERE/models/me/single.v1", False),
        ("HERE/files/c%C3%A4t.png?x=1", True),
        ("HERE/a b", False),
        ("see HERE/out.png", False),
        ("data:text/plain;base64,eA==", False),
        ("ftp://replicate.delivery/a", False),
        ("https://[::1", False),
    ],
)
async def test_what_a_file_is(rig: Rig, url: str, is_one: bool) -> None:
    assert rig.executor.is_file(url.replace("HERE", rig.place.url)) == is_one


# --- marks ------------------------------------------------------------------------------------------------------------


async def test_a_run_at_replicate_has_its_mark_in_its_webhook(hidden: Rig) -> None:
    order = hidden.order(output=1)
    made = await hidden.executor.submit(order)
    found = place_of(hidden).server.get(made.remote_id)
    assert found["webhook"] == f"https://cogflare.invalid/v1/hooks/{order.mark}"
    assert found["webhook_events_filter"] == ["completed"]
    callback = f"https://here.example/v1/hooks/{order.mark}"
    made = await hidden.executor.submit(msgspec.structs.replace(order, callback=callback))
    assert place_of(hidden).server.get(made.remote_id)["webhook"] == callback


async def test_a_run_at_a_cogflare_needs_no_webhook(open_rig: Rig) -> None:
    order = open_rig.order(output=1)
    made = await open_rig.executor.submit(order)
    assert made.remote_id == order.mark
    assert "webhook" not in place_of(open_rig).server.get(made.remote_id)


async def test_other_urls_of_the_same_files_meet_the_same_run(open_rig: Rig) -> None:
    mark = new_key()
    first = await open_rig.executor.submit(open_rig.order(output="https://here.example/1.png", mark=mark))
    await ended(open_rig, first)
    again = await open_rig.executor.submit(open_rig.order(output="https://here.example/2.png", mark=mark))
    assert again.remote_id == first.remote_id
    assert shown(again) == "https://here.example/1.png"


@pytest.mark.parametrize("fault", ["lose", "late_error"])
async def test_a_lost_answer_is_found_at_replicate(hidden: Rig, fault: Any) -> None:
    begun, since, order = hidden.place.begun(), now_us(), hidden.order(output="once")
    upstream_of(hidden).fail(fault, "create", times=1)
    with pytest.raises(Unanswered):
        await hidden.executor.submit(order)
    found = await hidden.executor.find(order.mark, since)
    assert found is not None
    assert shown(await ended(hidden, found)) == "once"
    assert hidden.place.begun() == begun + 1


@pytest.mark.parametrize("fault", ["cut", "error"])
async def test_what_did_not_arrive_is_not_found(rig: Rig, fault: Any) -> None:
    begun, since, order = rig.place.begun(), now_us(), rig.order(output="never")
    upstream_of(rig).fail(fault, "create", times=1)
    with pytest.raises(Unanswered):
        await rig.executor.submit(order)
    assert await rig.executor.find(order.mark, since) is None
    assert rig.place.begun() == begun


async def test_a_search_goes_back_through_the_pages(hidden: Rig) -> None:
    since, order = now_us(), hidden.order("cold")
    made = await hidden.executor.submit(order)
    server = place_of(hidden).server
    for _ in range(130):
        server.create("me/iterator")
    upstream = upstream_of(hidden)
    before = upstream.calls.copy()
    found = await hidden.executor.find(order.mark, since)
    assert found is not None
    assert found.remote_id == made.remote_id
    assert upstream.calls["list"] - before["list"] == 2
    # What it made by itself has no webhook, which a list might have left out.
    assert await hidden.executor.find(new_key(), now_us()) is None
    assert upstream.calls["poll"] - before["poll"] >= 130
    server.ask("POST", "/v1/predictions/cancel?model=me/iterator&status=starting")


async def test_a_search_that_fails_tells_nothing(hidden: Rig) -> None:
    upstream_of(hidden).fail("error", "list", times=1)
    with pytest.raises(Unanswered):
        await hidden.executor.find(new_key(), now_us())


async def test_a_provider_of_the_wrong_kind_takes_nothing(hidden: Rig) -> None:
    executor, begun = hidden.opened(kind="cogflare"), hidden.place.begun()
    report = await executor.check()
    assert not report.ok
    assert "no Cogflare" in report.text
    with pytest.raises(Refused):
        await executor.submit(hidden.order(output=1))
    assert hidden.place.begun() == begun


async def test_each_step_of_a_submit_can_be_met(rig: Rig) -> None:
    upstream, server, order = upstream_of(rig), place_of(rig).server, rig.order("cold")
    steps: list[tuple[str, int]] = []

    def waiting() -> int:
        return len(server.ask("GET", "/v1/predictions?model=me/iterator&status=starting")["results"])

    for step in ("arrived", "answered", "passed"):
        upstream.hooks[step] = lambda create, step=step: steps.append((step, waiting()))  # type: ignore[misc]
    before, accepted = waiting(), len(upstream.accepted)
    try:
        made = await rig.executor.submit(order)
        await until(lambda: len(steps) == 3)
    finally:
        upstream.hooks.clear()
    assert steps == [("arrived", before), ("answered", before + 1), ("passed", before + 1)]
    assert [create.remote_id for create in upstream.accepted[accepted:]] == [made.remote_id]
    await rig.executor.cancel(made.remote_id, order.terms)


# --- models and orders ------------------------------------------------------------------------------------------------


async def test_a_run_of_a_model_without_a_version_takes_what_there_is(rig: Rig) -> None:
    order = msgspec.structs.replace(rig.order(output=5), terms=Terms("me/single"))
    assert shown(await ended(rig, await rig.executor.submit(order))) == 5


async def test_terms_name_a_version_where_one_is_needed(rig: Rig) -> None:
    newest = await rig.executor.describe("me/single", None, Terms(""))
    assert newest.version == "1" * 64
    assert newest.terms == Terms("me/single", None if rig.place.kind == "cogflare" else "1" * 64)
    pinned = await rig.executor.describe("me/single", "1" * 64, Terms("me/single"))
    assert pinned.terms == Terms("me/single", "1" * 64)
    with pytest.raises(Refused, match="no version"):
        await rig.executor.describe("me/single", "f" * 64, Terms("me/single"))


async def test_servers_before_this_one_are_counted(rig: Rig) -> None:
    upstream = upstream_of(rig)
    await rig.executor.submit(rig.order(output=1))
    await rig.executor.submit(msgspec.structs.replace(rig.order(output=1), hops=3))
    told = [{name.lower(): value for name, value in create.headers.items()} for create in upstream.creates[-2:]]
    assert "cogflare-hops" not in told[0]
    assert told[1]["cogflare-hops"] == "3"


async def test_an_older_state_is_shown_as_it_is(rig: Rig) -> None:
    made = await rig.executor.submit(rig.order(output=1))
    await ended(rig, made)
    upstream_of(rig).fail("stale", "poll", times=1)
    assert not (await rig.executor.poll(made.remote_id, SINGLE)).is_ended
    assert (await rig.executor.poll(made.remote_id, SINGLE)).is_ended


async def test_who_hangs_is_given_up(rig: Rig) -> None:
    upstream_of(rig).fail("hang", "poll")
    waiting = asyncio.create_task(rig.executor.poll(new_key(), SINGLE))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    upstream_of(rig).heal()
    with pytest.raises(Unanswered):
        await waiting
