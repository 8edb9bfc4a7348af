"""Frames of workers of 2022 that mean ill, or come of broken programs, at a node: what they say of ends well or badly.

After each the same socket brings the next prediction to its end, so nothing was lost and nobody was held up.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from api.node import Node
from api.oldsocket import MODEL, OldSocket, attempts, ended

pytestmark = pytest.mark.anyio

DEEP = "[" * 900 + "]" * 900
NESTED = "[" * 120 + '"https://api.example.net/v1/models/ada/noop/files/x/y"' + "]" * 120
ENDS: dict[str, tuple[str, str]] = {
    "metrics too deep": (f'"output": 1, "metrics": {{"a": {DEEP}}}', "succeeded"),
    "metrics of surrogates": (r'"output": 1, "metrics": {"\ud800": "\udfff", "a\u0000": "\u0000"}', "succeeded"),
    "metrics that are none": ('"output": 1, "metrics": [1, 2]', "succeeded"),
    "metrics beyond all numbers": ('"output": 1, "metrics": {"predict_time": 1e999, "a": 1e999}', "succeeded"),
    "metrics of no numbers": ('"output": 1, "metrics": {"predict_time": NaN, "b": Infinity}', "succeeded"),
    "an output too deep": (f'"output": {DEEP}', "failed"),
    "an output as deep as it may be": (f'"output": {NESTED}', "succeeded"),
    "an output of no numbers": ('"output": [NaN, -Infinity]', "succeeded"),
    "an output of zeros": (r'"output": ["\u0000", {"\u0000": "\u0000"}]', "succeeded"),
    "an output twice": ('"output": 1, "output": {"a": 1, "a": 2}', "succeeded"),
    "an output of surrogates": (r'"output": ["\ud800"]', "succeeded"),
    "an output of brackets": ('"output": "%s"' % ("[" * 1_000_000), "succeeded"),
    "logs too deep": (f'"output": 1, "logs": [{DEEP}, {{"a": {DEEP}}}]', "succeeded"),
    "logs of anything": (r'"output": 1, "logs": [null, 1, {"a": "\u0000"}, "\u0000", "\ud800", true]', "succeeded"),
    "an error too deep": (f'"error": {DEEP}', "failed"),
    "an error of anything": (r'"error": {"\u0000": ["\u0000"]}', "failed"),
    "times of nobody": (
        '"output": 1, "x-experimental-timestamps": {"started_at": "", "completed_at": {}}',
        "succeeded",
    ),
}


@pytest.fixture
async def socket(node: Node) -> AsyncIterator[OldSocket]:
    opened = await OldSocket(node, await node.token("ada", "worker")).open()
    yield opened
    await opened.drop()


async def begun(node: Node, socket: OldSocket) -> str:
    """Let the worker begin a prediction."""
    created = await node.call("POST", f"/v1/models/{MODEL}/predictions", json={"input": {}})
    assert created.status_code == 201, created.text
    assert await socket.begin() == created.json()["id"]
    return str(created.json()["id"])


async def go_on(node: Node, socket: OldSocket, *before: str) -> None:
    """Check that nothing but one attempt each was made of what came before, and that the next prediction ends well."""
    prediction = await begun(node, socket)
    await socket.say(prediction, "succeeded", output="well", metrics={"predict_time": 1})
    assert (await ended(node, prediction))["output"] == "well"
    for earlier in before:
        assert len(await attempts(node, earlier)) == 1


@pytest.mark.parametrize("is_binary", [False, True])
@pytest.mark.parametrize("case", ENDS)
async def test_an_end_that_says_it(node: Node, socket: OldSocket, case: str, is_binary: bool) -> None:
    said, status = ENDS[case]
    prediction = await begun(node, socket)
    text = f'{{"id": "{prediction}", "status": "{status}", {said}}}'
    socket.send(text.encode() if is_binary else text)
    assert (await ended(node, prediction))["status"] == status
    await go_on(node, socket, prediction)


@pytest.mark.parametrize("field", ["output", "metrics", "logs", "error"])
async def test_bytes_that_are_no_text(node: Node, socket: OldSocket, field: str) -> None:
    prediction = await begun(node, socket)
    value = b'{"a": "\xff"}' if field == "metrics" else b'["\xff"]'
    socket.send(b'{"id": "%b", "status": "processing", "%b": %b}' % (prediction.encode(), field.encode(), value))
    socket.send(b'{"id": "%b", "status": "failed", "%b": %b}' % (prediction.encode(), field.encode(), value))
    assert (await ended(node, prediction))["status"] == "failed"
    await go_on(node, socket, prediction)


async def test_on_the_way_it_may_say_anything(node: Node, socket: OldSocket) -> None:
    prediction = await begun(node, socket)
    for said, _ in ENDS.values():
        socket.send(f'{{"id": "{prediction}", "status": "processing", {said}}}')
    await socket.say(prediction, "succeeded", output=[1], logs=["last"], metrics={"predict_time": 1})
    assert (await ended(node, prediction))["output"] == [1]
    await go_on(node, socket, prediction)


async def test_very_many_tiny_frames(node: Node, socket: OldSocket) -> None:
    prediction = await begun(node, socket)
    for _ in range(20_000):
        socket.send("{}")
    for _ in range(2_000):
        socket.send(f'{{"id":"{prediction}"}}')
    await socket.say(prediction, "succeeded", output=1, metrics={"predict_time": 1})
    assert (await ended(node, prediction))["output"] == 1
    await go_on(node, socket, prediction)


async def test_what_comes_after_a_cancel_or_an_end_changes_nothing(node: Node, socket: OldSocket) -> None:
    canceled = await begun(node, socket)
    await node.call("POST", f"/v1/predictions/{canceled}/cancel")
    for status in ("processing", "succeeded", "failed", "succeeded"):
        await socket.say(canceled, status, output=["late"], logs=["late"], error="late", metrics={"predict_time": 1})
    over = await begun(node, socket)
    await socket.say(over, "succeeded", output="first", metrics={"predict_time": 1})
    assert (await ended(node, over))["output"] == "first"
    for earlier in (canceled, over):
        await socket.say(earlier, "failed", output="late", error="late", metrics={"predict_time": 9})
    await go_on(node, socket, canceled, over)
    shown = [(await node.call("GET", f"/v1/predictions/{one}")).json() for one in (canceled, over)]
    assert [(one["status"], one["output"], one["error"]) for one in shown] == [
        ("canceled", None, None),
        ("succeeded", "first", None),
    ]


async def test_sessions_that_begin_alike_are_not_the_same(node: Node) -> None:
    secret = await node.token("ada", "worker")
    sessions = [*("x" * 30_000 + tail for tail in "ab"), "%00", "%FF", "%E2%98%83" * 1_000, "%0A"]
    opened: list[OldSocket] = [await OldSocket(node, secret, session=session).open() for session in sessions]
    assert [socket.refusal for socket in opened] == [None] * len(opened)
    assert len(node.fleet.links) == len(opened)
    names: list[Any] = [w["name"] for w in (await node.call("GET", "/v1/workers", kind="admin")).json()["results"]]
    assert max(map(len, names)) < 60
    for socket in opened:
        assert not socket.is_over
        await socket.drop()


@pytest.mark.parametrize("model", ["ada/мир", "ada/%00", "ada/\0", "ada/..", "ada/" + "a" * 3_000])
async def test_models_that_nobody_has(node: Node, model: str) -> None:
    socket = await OldSocket(node, await node.token("ada", "worker"), model=model).open()
    assert socket.refusal is not None
    assert socket.refusal[0] == 404
