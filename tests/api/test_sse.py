"""Streams over HTTP: what is sent, when, and under which ids."""

import asyncio
import json

import pytest
from msgspec import Raw

from api.listener import Listener
from api.node import BASE, Node
from cogflare.api import sse
from cogflare.protocol.messages import Assign
from cogflare.store import retention
from engine.rig import RigWorker
from support.events import Event, events_of

pytestmark = pytest.mark.anyio


async def started(node: Node) -> tuple[RigWorker, Assign, str]:
    """Return a worker, what it has begun to run, and the URL of its stream."""
    worker, assigned = await node.running()
    shown = (await node.call("GET", f"/v1/predictions/{assigned.prediction}")).json()
    return worker, assigned, shown["urls"]["stream"]


async def say(worker: RigWorker, assigned: Assign, *items: object, log: str = "") -> None:
    """Have the model show output items, and a piece of its log."""
    key = (assigned.prediction, assigned.attempt)
    for item in items:
        worker.end.output(key, [Raw(json.dumps(item).encode())])
    if log:
        worker.end.log(key, log)
    await worker.pump()


async def end(worker: RigWorker, assigned: Assign, output: bytes | None = None, **fields: object) -> None:
    """End a prediction; without `output`, what was shown is all of it."""
    assert await worker.finish((assigned.prediction, assigned.attempt), output, **fields) == "committed"


def texts(events: list[Event]) -> list[str]:
    return [event.data for event in events if event.kind == "output"]


async def test_tokens_are_sent_as_they_come_and_the_end_last(node: Node) -> None:
    worker, assigned, url = await started(node)
    async with Listener(node.app, url) as reader:
        await say(worker, assigned, "Once", " upon")
        assert texts(await reader.until(2)) == ["Once", " upon"]
        await say(worker, assigned, " a\ntime")
        await reader.until(3)
        await end(worker, assigned, items=3)
        events = await reader.all()
    assert reader.status == 200
    assert reader.headers["content-type"] == "text/event-stream"
    assert reader.headers["access-control-allow-origin"] == "*"
    assert reader.headers["cache-control"] == "no-store"
    assert reader.parser.comments[0] == "hi"
    assert events == [
        ("output", "Once", "1:1:0"),
        ("output", " upon", "1:2:0"),
        ("output", " a\ntime", "1:3:0"),
        ("done", "{}", "1:3:0:done"),
    ]
    assert reader.is_complete


async def test_the_stream_of_an_ended_prediction_is_replayed(node: Node) -> None:
    worker, assigned, url = await started(node)
    await end(worker, assigned, b'"all at once"')
    answer = await node.http.get(url)
    assert events_of(answer.text) == [("output", "all at once", "1:1:0"), ("done", "{}", "1:1:0:done")]
    assert url.startswith(f"{BASE}/v1/streams/")


async def test_events_of_a_failure(node: Node) -> None:
    worker, assigned, url = await started(node)
    await say(worker, assigned, "a")
    await end(worker, assigned, status="failed", error='no "luck"\nat all', items=1)
    error = json.dumps({"detail": 'no "luck"\nat all'}, separators=(",", ":"))
    assert events_of((await node.http.get(url)).text) == [
        ("output", "a", "1:1:0"),
        ("error", error, "1:1:0"),
        ("done", '{"reason":"error"}', "1:1:0:done"),
    ]


async def test_events_of_a_cancel(node: Node) -> None:
    worker, assigned, url = await started(node)
    async with Listener(node.app, url) as reader:
        await say(worker, assigned, "a")
        await reader.until(1)
        await node.call("POST", f"/v1/predictions/{assigned.prediction}/cancel")
        assert (await reader.all())[1:] == [("done", '{"reason":"canceled"}', "1:1:0:done")]


@pytest.mark.parametrize(
    ("raw", "data"),
    [
        (b'" leading and trailing "', " leading and trailing "),
        (b'""', ""),
        (b'"\\n"', "\n"),
        (b'"a\\r\\nb\\rc\\nd"', "a\nb\nc\nd"),
        (b'"tab\\tquote\\"\\u00fc\\ud83d\\ude00"', 'tab\tquote"ü😀'),
        (b'"data: x"', "data: x"),
        (b'{"a": [1, 2.50]}', '{"a": [1, 2.50]}'),
        (b"1.50", "1.50"),
        (b"null", "null"),
        (b'"\\"cogflare-file:/f/x\\""', '"cogflare-file:/f/x"'),
    ],
)
async def test_how_items_are_written(node: Node, raw: bytes, data: str) -> None:
    worker, assigned, url = await started(node)
    worker.end.output((assigned.prediction, assigned.attempt), [Raw(raw), Raw(b'"next"')])
    await worker.pump()
    await end(worker, assigned, items=2)
    answer = await node.http.get(url)
    assert texts(events_of(answer.text)) == [data, "next"]
    assert b"\r" not in answer.content


async def test_logs_are_sent_only_when_asked_for(node: Node) -> None:
    worker, assigned, url = await started(node)
    await say(worker, assigned, "a", log="one\ntwo\n")
    await end(worker, assigned, items=1)
    assert [event.kind for event in events_of((await node.http.get(url)).text)] == ["output", "done"]
    events = events_of((await node.http.get(url, params={"logs": "true"})).text)
    assert events == [("output", "a", "1:1:0"), ("logs", "one\ntwo\n", "1:1:8"), ("done", "{}", "1:1:8:done")]
    assert (await node.http.get(url, params={"logs": "yes"})).status_code == 400


async def test_a_client_that_comes_back_gets_what_follows(node: Node) -> None:
    worker, assigned, url = await started(node)
    await say(worker, assigned, *"abcdef")
    async with Listener(node.app, url) as first:
        last = (await first.until(6))[3].id
    async with Listener(node.app, url, last) as second, Listener(node.app, f"{url}?last_event_id={last}") as third:
        await say(worker, assigned, "g")
        for reader in (second, third):
            assert texts(await reader.until(3)) == ["e", "f", "g"]
        await end(worker, assigned, items=7)
        assert (await second.all())[-1].id == "1:7:0:done"
    # Whoever has seen the end is told that there is nothing to come back for.
    over = await node.http.get(url, headers={"Last-Event-ID": "1:7:0:done"})
    assert (over.status_code, over.headers["access-control-allow-origin"]) == (204, "*")
    assert events_of((await node.http.get(url, headers={"Last-Event-ID": "1:7:0"})).text)[0].kind == "done"


@pytest.mark.parametrize("text", ["x", "1", "1:2", "1:2:3:4", "-1:0:0", "1:2:3:over", "1:١:0", "1:99999999999:0"])
async def test_an_id_that_is_none_is_refused(node: Node, text: str) -> None:
    _, _, url = await started(node)
    answer = await node.http.get(url, headers={b"Last-Event-ID": text.encode()})
    assert answer.status_code == 400
    assert answer.json()["title"] == "Invalid event id"
    assert answer.headers["access-control-allow-origin"] == "*"


async def test_no_token_is_needed_and_no_other_url_opens_a_stream(node: Node) -> None:
    worker, assigned, url = await started(node)
    await end(worker, assigned)
    path = url.removeprefix(BASE)
    for opens in (path, path.removeprefix("/v1"), f"/v1{path}", f"{path}/", path.replace("streams", "files")):
        answer = await node.http.get(opens, headers={"Authorization": "Bearer nonsense"})
        assert answer.status_code == 200, opens
    wrong = path[:-1] + ("0" if path[-1] != "0" else "1")
    for closed in (wrong, path[:-1], f"{path}0", "/v1/streams/x", "/v1/streams/"):
        assert (await node.http.get(closed)).status_code in (401, 404), closed
    refused = await node.http.get(wrong)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (404, "*")
    assert (await node.http.get("/v1/files/" + "a" * 40)).status_code == 401


async def test_browsers_of_any_origin_may_read(node: Node) -> None:
    _, _, url = await started(node)
    asked = {"Origin": "https://app.example.org", "Access-Control-Request-Headers": "last-event-id"}
    answer = await node.http.request("OPTIONS", url, headers=asked)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "Last-Event-ID" in answer.headers["access-control-allow-headers"]
    head = await node.http.head(url)
    assert (head.status_code, head.headers["content-type"], head.content) == (200, "text/event-stream", b"")


FILES = b'{"components":{"schemas":{"Output":{"type":"array","items":{"type":"string","format":"uri"}}}}}'


async def test_files_are_urls_on_a_path_that_clients_make_files_of(node: Node) -> None:
    worker = await node.worker(schema=FILES)
    created = (await node.call("POST", "/v1/models/ada/noop/predictions", json={"input": {}})).json()
    url = created["urls"]["stream"]
    assert url.startswith(f"{BASE}/v1/files/")
    assigned = await worker.next()
    await worker.start(assigned)
    served = await node.file(worker, assigned, b"bytes")
    await say(worker, assigned, f"cogflare-file:{served}")
    async with Listener(node.app, url) as reader, Listener(node.app, url, scheme="http") as plain:
        assert texts(await reader.until(1)) == [f"{BASE}{served}"]
        assert texts(await plain.until(1)) == [f"http://{BASE.partition('//')[2]}{served}"]
    await end(worker, assigned, json.dumps([f"cogflare-file:{served}"] * 2).encode())
    assert texts(events_of((await node.http.get(url)).text)) == [f"{BASE}{served}"] * 2


async def test_every_answer_has_the_stream_until_the_data_is_removed(node: Node) -> None:
    worker = await node.worker()
    created = (await node.call("POST", "/v1/models/ada/noop/predictions", json={"input": {}})).json()
    url = created["urls"]["stream"]
    assigned = await worker.next()
    await worker.start(assigned)
    await end(worker, assigned)
    listed = (await node.call("GET", "/v1/predictions")).json()["results"][0]
    canceled = (await node.call("POST", f"/v1/predictions/{created['id']}/cancel")).json()
    assert listed["urls"]["stream"] == canceled["urls"]["stream"] == url
    await retention.remove_data(node.db, [created["id"]])
    shown = (await node.call("GET", f"/v1/predictions/{created['id']}")).json()
    assert shown["data_removed"] is True
    assert "stream" not in shown["urls"]
    assert (await node.http.get(url)).status_code == 404


async def test_a_comment_is_sent_while_nothing_is_new(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "COMMENT_S", 0.05)
    worker, assigned, url = await started(node)
    async with Listener(node.app, url) as reader:
        while len(reader.parser.comments) < 4:
            await asyncio.sleep(0.01)
        assert reader.events == []
        await end(worker, assigned)
        assert [event.kind for event in await reader.all()] == ["done"]


async def test_a_reader_that_takes_nothing_is_cut_off_and_comes_back(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "STALL_S", 0.2)
    monkeypatch.setattr(sse, "COMMENT_S", 0.1)
    worker, assigned, url = await started(node)
    cut = asyncio.Event()
    extensions = {sse.CUT: {"abort": cut.set}}
    async with Listener(node.app, url, extensions=extensions) as stalled, Listener(node.app, url) as other:
        await say(worker, assigned, "a")
        await stalled.until(1)
        stalled.stall()
        for number in range(200):
            await say(worker, assigned, f" {number}")
            await other.until(number + 2)
        await asyncio.wait_for(cut.wait(), 10)
        stalled.leave()
        await stalled.all()
        assert not stalled.is_complete
        async with Listener(node.app, url, stalled.events[-1].id) as again:
            assert len(await again.until(200)) == 200
            assert stalled.events + again.events == other.events


async def test_large_items_are_sent_in_pieces(node: Node) -> None:
    worker, assigned, url = await started(node)
    await say(worker, assigned, *["x" * 100_000] * 9)
    await end(worker, assigned, items=9)
    async with Listener(node.app, url) as reader:
        assert texts(await reader.all()) == ["x" * 100_000] * 9
        assert reader.largest <= 256_000


async def test_a_stop_ends_a_stream_that_can_be_resumed(node: Node) -> None:
    worker, assigned, url = await started(node)
    async with Listener(node.app, url) as reader:
        await say(worker, assigned, "a")
        await reader.until(1)
        node.streams.stop()
        assert [event.kind for event in await reader.all()] == ["output"]
        assert reader.is_complete
        assert len(reader.parser.comments) == 2


async def test_a_stop_does_not_wait_for_a_reader_that_stalls(node: Node) -> None:
    worker, assigned, url = await started(node)
    cut = asyncio.Event()
    extensions = {sse.CUT: {"abort": cut.set}}
    async with Listener(node.app, url, extensions=extensions) as stalled:
        await say(worker, assigned, "a")
        await stalled.until(1)
        stalled.stall()
        await say(worker, assigned, "b")
        await node.settle()
        node.streams.stop()
        await asyncio.wait_for(cut.wait(), 5)
        stalled.leave()


async def test_an_id_inside_a_character_of_the_log(node: Node) -> None:
    worker, assigned, url = await started(node)
    await say(worker, assigned, "a", log="\u00fc!")
    await end(worker, assigned, items=1)
    answer = await node.http.get(url, params={"logs": "true", "last_event_id": "1:1:1"})
    assert events_of(answer.content.decode())[0] == ("logs", "\ufffd!", "1:1:3")


async def test_a_reader_that_stalls_at_the_very_end_is_cut_off(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "STALL_S", 0.2)
    monkeypatch.setattr(sse, "COMMENT_S", 0.1)
    worker, assigned, url = await started(node)
    cut = asyncio.Event()
    extensions = {sse.CUT: {"abort": cut.set}}
    async with Listener(node.app, url, extensions=extensions, stall_after=b"event: done") as stalled:
        await end(worker, assigned)
        await asyncio.wait_for(cut.wait(), 5)
        assert not stalled.is_complete
        assert stalled.events[-1].kind == "done"
        stalled.leave()
