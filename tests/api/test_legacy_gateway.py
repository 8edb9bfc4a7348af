"""Sockets of workers of 2022 at a node: what their frames do, and what becomes of what they hold."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from api.node import BASE, MAX_INLINE_BYTES, Node
from api.oldsocket import MODEL, OldSocket, attempts, ended, started
from cogflare.engine.accounts import Limits

pytestmark = pytest.mark.anyio


@pytest.fixture
async def sockets(node: Node) -> AsyncIterator["Sockets"]:
    opened = Sockets(node)
    yield opened
    for socket in opened.opened:
        with contextlib.suppress(TimeoutError):
            await socket.drop()


class Sockets:
    """Opens sockets, and drops them in the end."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.opened: list[OldSocket] = []

    async def __call__(self, account: str = "ada", **options: Any) -> OldSocket:
        """Open the socket of a worker of an account."""
        socket = OldSocket(self._node, await self._node.token(account, "worker"), **options)
        self.opened.append(socket)
        return await socket.open()


async def create(node: Node, **given: Any) -> str:
    created = await node.call("POST", f"/v1/models/{MODEL}/predictions", json={"input": given})
    assert created.status_code == 201, created.text
    return str(created.json()["id"])


async def begun(node: Node, socket: OldSocket) -> str:
    """Create a prediction and let the worker begin it."""
    prediction = await create(node)
    assert await socket.begin() == prediction
    return prediction


# --- frames ----------------------------------------------------------------------------------------------------------


async def test_a_prediction_from_its_job_to_the_frame_that_comes_last(node: Node, sockets: Sockets) -> None:
    socket = await sockets()
    prediction = await create(node, text="hello")
    job = await socket.next()
    assert (job["id"], job["input"], job["model"]) == (prediction, {"text": "hello"}, MODEL)
    await socket.say(prediction, logs=["one"])
    await started(node, prediction)
    await socket.say(prediction, "succeeded", output={"a": 1}, logs=["one", "two"])
    await socket.say(prediction, "succeeded", output={"a": 1}, logs=["one", "two"], metrics={"predict_time": 4.5})
    shown = await ended(node, prediction)
    assert (shown["status"], shown["output"], shown["logs"]) == ("succeeded", {"a": 1}, "one\ntwo\n")
    assert shown["metrics"]["predict_time"] == 4.5


async def test_what_is_shown_on_the_way(node: Node, sockets: Sockets) -> None:
    socket = await sockets()
    prediction = await begun(node, socket)
    await socket.say(prediction, output=["a"], logs=["one"])
    await socket.say(prediction, output=["a", "b"], logs=["one"])
    async with asyncio.timeout(5):
        while (shown := (await node.call("GET", f"/v1/predictions/{prediction}")).json())["output"] != ["a", "b"]:
            await asyncio.sleep(0.01)
    assert (shown["status"], shown["logs"]) == ("processing", "one\n")
    await socket.say(prediction, "failed", output=["a", "b"], error="no more")
    shown = await ended(node, prediction)
    assert (shown["status"], shown["error"], shown["output"]) == ("failed", "no more", ["a", "b"])


async def test_the_first_last_frame_is_enough(node: Node, sockets: Sockets) -> None:
    socket = await sockets()
    prediction = await begun(node, socket)
    times = {"started_at": "2022-11-05T10:00:00", "completed_at": "2022-11-05T10:00:03"}
    await socket.say(prediction, "succeeded", output=1, **{"x-experimental-timestamps": times})
    shown = await ended(node, prediction)
    assert (shown["status"], shown["metrics"]["predict_time"]) == ("succeeded", 3.0)


async def test_the_first_last_frame_counts(node: Node, sockets: Sockets) -> None:
    socket = await sockets()
    prediction = await begun(node, socket)
    await socket.say(prediction, "succeeded", output="first")
    await socket.say(prediction, "failed", error="second")
    shown = await ended(node, prediction)
    assert (shown["status"], shown["output"]) == ("succeeded", "first")


async def test_garbage_and_what_is_about_nothing_change_nothing(node: Node, sockets: Sockets) -> None:
    socket = await sockets()
    prediction = await begun(node, socket)
    for text in ("garbage", "[]", "{", '{"id": 3}', json.dumps({"id": "other", "status": "succeeded"})):
        socket.send(text)
    await socket.say("01k0000000000000000000000a", "succeeded", output="stranger's")
    await socket.say(prediction, "succeeded", output="mine", metrics={"predict_time": 1})
    assert (await ended(node, prediction))["output"] == "mine"


async def test_one_at_a_time(node: Node, sockets: Sockets) -> None:
    socket = await sockets()
    first, second = await begun(node, socket), await create(node)
    assert socket.jobs.empty()
    await socket.say(first, "succeeded", output=1, metrics={"predict_time": 1})
    assert (await socket.next())["id"] == second


async def test_a_large_output(node: Node, sockets: Sockets) -> None:
    socket = await sockets()
    prediction = await begun(node, socket)
    large = ["x" * 900_000, "y" * 900_000]
    await socket.say(prediction, output=large[:1])
    await socket.say(prediction, "succeeded", output=large, metrics={"predict_time": 1})
    assert (await ended(node, prediction))["output"] == large


async def test_a_data_url_becomes_a_file(node: Node, sockets: Sockets) -> None:
    socket = await sockets()
    prediction = await begun(node, socket)
    small, large = "data:text/plain,abc", f"data:text/plain,{'x' * MAX_INLINE_BYTES}"
    await socket.say(prediction, "succeeded", output=[small, large], metrics={"predict_time": 1})
    shown = await ended(node, prediction)
    assert shown["output"][0] == small
    assert shown["output"][1].startswith(f"{BASE}/f/")
    assert (await node.http.get(shown["output"][1])).text == "x" * MAX_INLINE_BYTES


async def test_a_cancel_is_not_heard(node: Node, sockets: Sockets) -> None:
    """The slot stays taken until the last frame, and what the frames say is dropped."""
    socket = await sockets()
    prediction = await begun(node, socket)
    assert (await node.call("POST", f"/v1/predictions/{prediction}/cancel")).json()["status"] == "canceled"
    following = await create(node)
    await socket.say(prediction, output=["late"], logs=["late"])
    await asyncio.sleep(0.3)
    assert socket.jobs.empty()
    await socket.say(prediction, "succeeded", output=["late"], logs=["late"])
    assert (await socket.next())["id"] == following
    await socket.say(prediction, "succeeded", output=["late"], metrics={"predict_time": 1})
    shown = await ended(node, prediction)
    assert (shown["status"], shown["output"], shown["logs"]) == ("canceled", None, "")


async def test_one_that_says_it_is_busy_fails_nothing(node: Node, sockets: Sockets) -> None:
    socket = await sockets()
    prediction = await create(node)
    busy = "Worker is already processing a job, cannot accept another"
    await socket.next()
    await socket.say(prediction, "failed", error=busy)
    assert (await socket.next())["id"] == prediction
    await socket.say(prediction, "succeeded", output="then", metrics={"predict_time": 1})
    assert (await ended(node, prediction))["output"] == "then"
    assert await attempts(node, prediction) == ["lost", "succeeded"]


# --- reconnects ------------------------------------------------------------------------------------------------------


async def test_a_worker_that_comes_back_and_goes_on(node: Node, sockets: Sockets) -> None:
    first = await sockets()
    prediction = await begun(node, first)
    await first.say(prediction, output=["a"], logs=["one"])
    await first.drop()
    second = await sockets()
    await second.say(prediction, output=["a", "b"], logs=["one", "two"])
    await asyncio.sleep(0.5)
    await second.say(prediction, "succeeded", output=["a", "b"], logs=["one", "two"], metrics={"predict_time": 1})
    shown = await ended(node, prediction)
    assert (shown["output"], shown["logs"]) == (["a", "b"], "one\ntwo\n")
    assert await attempts(node, prediction) == ["succeeded"]


async def test_a_worker_that_comes_back_and_says_nothing_has_lost_it(node: Node, sockets: Sockets) -> None:
    first = await sockets()
    prediction = await begun(node, first)
    await first.drop()
    second = await sockets()
    assert second.jobs.empty(), "it may still speak of what it had begun"
    await node.releases.tick()
    async with asyncio.timeout(5):
        while second.jobs.empty():
            await node.releases.tick()
            await node.dispatcher.tick()
            await asyncio.sleep(0.02)
    assert (await second.next())["id"] == prediction
    await second.say(prediction, "succeeded", output="again", metrics={"predict_time": 1})
    await ended(node, prediction)
    assert await attempts(node, prediction) == ["lost", "succeeded"]


async def test_a_word_about_anything_else_ends_the_grace(node: Node, sockets: Sockets) -> None:
    first = await sockets()
    prediction = await begun(node, first)
    await first.drop()
    second = await sockets()
    await second.say("something-else")
    assert (await second.next())["id"] == prediction
    lost = (await node.call("GET", f"/v1/predictions/{prediction}/attempts")).json()["results"][0]
    assert (lost["outcome"], lost["reason"]) == ("lost", "the worker came back with something else")


async def test_what_had_not_begun_comes_again_at_once(node: Node, sockets: Sockets) -> None:
    first = await sockets()
    prediction = await create(node)
    await first.next()
    await first.drop()
    second = await sockets()
    assert (await second.next())["id"] == prediction


async def test_what_was_said_last_before_the_socket_broke_is_kept(node: Node, sockets: Sockets) -> None:
    socket = await sockets()
    prediction = await begun(node, socket)
    await socket.say(prediction, "succeeded", output="kept")
    await socket.drop()
    assert (await ended(node, prediction))["output"] == "kept"


async def test_a_newer_socket_of_a_session_ends_the_older(node: Node, sockets: Sockets) -> None:
    first = await sockets()
    prediction = await begun(node, first)
    second = await sockets()
    await first.over()
    await second.say(prediction, "succeeded", output="over the second", metrics={"predict_time": 1})
    assert (await ended(node, prediction))["output"] == "over the second"
    assert len((await node.call("GET", "/v1/workers", kind="admin")).json()["results"]) == 1


async def test_a_link_that_the_store_ends_is_opened_anew_and_the_worker_sees_nothing(
    node: Node, sockets: Sockets
) -> None:
    socket = await sockets()
    prediction = await begun(node, socket)
    [link] = node.fleet.links.values()
    link.close(1013, "the server's store does not answer; come back")
    await socket.say(prediction, "succeeded", output="meanwhile", metrics={"predict_time": 1})
    assert (await ended(node, prediction))["output"] == "meanwhile"
    assert await attempts(node, prediction) == ["succeeded"]
    following = await create(node)
    assert (await socket.next())["id"] == following


async def test_a_token_revoked_between_two_links_opens_none(node: Node, sockets: Sockets) -> None:
    socket = await sockets()
    [link] = node.fleet.links.values()
    link.close(1013, "the server's store does not answer; come back")
    await asyncio.sleep(0)
    await node.fleet.links[link.worker].closed()
    assert not node.fleet.links
    await node.accounts.revoke(link.caller.token, None)
    await socket.over()
    assert socket.closed is not None
    assert socket.closed[0] == 4401


async def test_sockets_of_one_session_that_come_at_once(node: Node) -> None:
    secret = await node.token("ada", "worker")
    sockets = [OldSocket(node, secret) for _ in range(10)]
    await asyncio.gather(*(socket.open() for socket in sockets))
    async with asyncio.timeout(5):
        while len(left := [socket for socket in sockets if not socket.is_over]) > 1:
            await asyncio.sleep(0.01)
    prediction = await create(node)
    assert await left[0].begin() == prediction
    assert len(node.fleet.links) == 1
    await left[0].drop()


async def test_a_frame_of_very_many_values_holds_nobody_up(node: Node, sockets: Sockets) -> None:
    """As many small messages it would keep this node busy for seconds."""
    socket = await sockets()
    prediction = await begun(node, socket)
    many = ",".join("1" for _ in range(2_000_000))
    socket.send(f'{{"id": "{prediction}", "status": "processing", "output": [{many}], "logs": [{many}]}}')
    began = time.thread_time()
    await socket.say(prediction, "succeeded", output=[1, 2], metrics={"predict_time": 1})
    assert (await ended(node, prediction))["output"] == [1, 2]
    assert time.thread_time() - began < 2


async def test_without_a_session_each_connection_is_a_worker(node: Node, sockets: Sockets) -> None:
    await sockets(session="")
    await sockets(session="")
    assert len(node.fleet.links) == 2


async def test_one_without_a_session_that_comes_back_all_night_is_one_worker(node: Node, sockets: Sockets) -> None:
    staying = await sockets(session="")
    prediction = await begun(node, staying)
    for _ in range(5):
        await (await sockets(session="")).drop()
    await sockets(session="", remote="192.0.2.1")
    listed = (await node.call("GET", "/v1/workers", kind="admin")).json()["results"]
    assert len(listed) == 3, "the one that stays, the one that comes back, and one elsewhere"
    await staying.say(prediction, "succeeded", output="undisturbed", metrics={"predict_time": 1})
    assert (await ended(node, prediction))["output"] == "undisturbed"
    assert await attempts(node, prediction) == ["succeeded"]


async def test_no_session_leads_to_a_worker_without_one(node: Node, sockets: Sockets) -> None:
    first = await sockets(session="")
    [link] = node.fleet.links.values()
    lines = ("", link.caller.token, f"{node.ground.node} 127.0.0.1", "0")
    for session in ("%0A".join(lines), "%0A".join(lines[1:])):
        await sockets(session=session.replace(" ", "%20"))
    assert not first.is_over
    assert len(node.fleet.links) == 3


# --- who may come ----------------------------------------------------------------------------------------------------


async def test_a_token_that_does_not_count_is_refused_and_told_to_nobody(node: Node) -> None:
    socket = await OldSocket(node, "no-such-token").open()
    assert socket.refusal is not None
    assert socket.refusal[0] == 401
    assert "no-such-token" not in socket.refusal[1] + socket.path


async def test_a_token_of_clients_is_refused(node: Node) -> None:
    secret = await node.token("ada")
    socket = await OldSocket(node, secret).open()
    assert socket.refusal is not None
    assert socket.refusal[0] == 403
    assert secret not in socket.refusal[1] + socket.path


async def test_a_secret_in_a_path_is_told_to_nobody(node: Node) -> None:
    for path in ("/models/a/b/websocket/my-secret", "/v1/v1/v1/models/a/b/websockets/my-secret/more"):
        answer = await node.call("GET", path)
        assert answer.status_code == 404
        assert "my-secret" not in answer.text


@pytest.mark.parametrize("model", ["-a/b", "a/b c", "a/" + "b" * 200])
async def test_a_model_that_cannot_be_one(node: Node, sockets: Sockets, model: str) -> None:
    socket = await sockets(model=model)
    assert socket.refusal is not None
    assert socket.refusal[0] == 404


async def test_a_token_that_is_revoked_ends_the_socket(node: Node, sockets: Sockets) -> None:
    socket = await sockets()
    [link] = node.fleet.links.values()
    await node.accounts.revoke(link.caller.token, None)
    await socket.over()
    assert socket.closed is not None
    assert socket.closed[0] == 4401


async def test_a_token_for_other_models_is_refused(node: Node) -> None:
    created = await node.accounts.create("ada", "worker", "a friend's", limits=Limits(("ada/other",), None))
    assert created is not None
    socket = await OldSocket(node, created.secret).open()
    assert socket.refusal is not None
    assert socket.refusal[0] == 403
    assert "ada/other" in socket.refusal[1]


async def test_a_token_for_one_connection(node: Node, sockets: Sockets) -> None:
    """The same session may come back over and over; another one has to wait."""
    created = await node.accounts.create("ada", "worker", "one", limits=Limits(None, 1))
    assert created is not None
    first = await OldSocket(node, created.secret).open()
    again = await OldSocket(node, created.secret).open()
    await first.over()
    other = await OldSocket(node, created.secret, session="session-2").open()
    assert again.refusal is None
    assert other.refusal is not None
    assert other.refusal[0] == 503
    await again.drop()


async def test_a_session_of_another_account_is_another_worker(node: Node, sockets: Sockets) -> None:
    mine = await sockets()
    prediction = await begun(node, mine)
    theirs = await sockets("eve")
    await theirs.say(prediction, "succeeded", output="theirs")
    await mine.say(prediction, "succeeded", output="mine", metrics={"predict_time": 1})
    assert (await ended(node, prediction))["output"] == "mine"


async def test_it_runs_the_version_that_the_model_has(node: Node, sockets: Sockets) -> None:
    await node.worker()
    shown = (await node.call("GET", f"/v1/models/{MODEL}")).json()["latest_version"]["id"]
    await sockets()
    versions = (await node.call("GET", f"/v1/models/{MODEL}/versions")).json()["results"]
    assert [version["id"] for version in versions] == [shown]


async def test_a_model_that_is_new_gets_a_version(node: Node, sockets: Sockets) -> None:
    await sockets()
    shown = (await node.call("GET", f"/v1/models/{MODEL}")).json()["latest_version"]
    assert len(shown["id"]) == 64
