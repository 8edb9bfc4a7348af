"""Tokens that are limited: what is stored of the limits, and how many workers connect with one."""

import msgspec
import pytest

from cogflare.store import catalog, fleet, predictions
from cogflare.store.catalog import NewToken
from store.scene import OTHER_QUEUE, QUEUE, Scene

pytestmark = pytest.mark.anyio


async def limit(scene: Scene, id: str, most: int | None, models: tuple[str, ...] | None = None) -> None:
    token = NewToken(id, "ann", "worker", "a friend's", f"hash of {id}", "cfw_1", 5, None, models, most)
    assert await catalog.add_token(scene.db, "a1", token)


def hello(scene: Scene, worker: str, token: str) -> fleet.Link:
    return msgspec.structs.replace(scene.hello(worker), token=token)


async def opens(scene: Scene, worker: str, token: str) -> bool:
    return await fleet.open_link(scene.db, hello(scene, worker, token), []) is not None


async def test_limits_are_stored_and_told(scene: Scene) -> None:
    await limit(scene, "t1", 2, ("ann/x", "bob/*"))
    await limit(scene, "t2", None)
    assert [(row.models, row.max_connections) for row in await catalog.list_tokens(scene.db, None, "", 9)] == [
        (("ann/x", "bob/*"), 2),
        (None, None),
    ]
    caller = await catalog.find_token(scene.db, "hash of t1")
    assert caller is not None
    assert caller.models == ("ann/x", "bob/*")
    assert await opens(scene, "w1", "t1")
    assert await opens(scene, "w2", "t2")
    row = await catalog.get_token(scene.db, "t1")
    assert row is not None
    assert (row.id, row.connections) == ("t1", 1)
    assert await catalog.get_token(scene.db, "t9") is None


async def test_so_many_workers_connect_and_no_more(scene: Scene) -> None:
    await limit(scene, "t1", 2)
    assert [await opens(scene, worker, "t1") for worker in ("w1", "w2", "w3", "w1", "w2")] == [
        True,
        True,
        False,
        True,
        True,
    ]
    assert await scene.rows.fetch("SELECT id FROM workers WHERE id = 'w3'") == [], "nothing is left of the one refused"
    await scene.db.write(fleet.close_link("w1", 2, "away", 9))
    assert await opens(scene, "w3", "t1")
    assert not await opens(scene, "w1", "t1"), "who comes back finds its place taken"
    assert await opens(scene, "w1", "of nobody"), "what is no limited token has room"


async def test_a_worker_that_changes_its_token_counts_with_the_new_one(scene: Scene) -> None:
    await limit(scene, "t1", 1)
    await limit(scene, "t2", 1)
    assert await opens(scene, "w1", "t1")
    assert await opens(scene, "w1", "t2")
    assert await opens(scene, "w2", "t1")
    assert not await opens(scene, "w3", "t2")


async def test_a_claim_for_one_model_leaves_the_others(scene: Scene) -> None:
    other = await scene.create(queues=(OTHER_QUEUE,), name="other")
    own = await scene.create(queues=(OTHER_QUEUE,), name="m")
    last = await scene.create(queues=(OTHER_QUEUE,), name="other")
    await scene.link("w1")
    wish = msgspec.structs.replace(scene.wish(queues=(QUEUE, OTHER_QUEUE)), model="o/m")
    for expected in (own, None):
        claim = msgspec.structs.replace(wish, id=f"claim of {expected}")
        claimed = predictions.claimed(await scene.db.write(*predictions.claim(claim, scene.tick())))
        assert (claimed and claimed.prediction) == expected
    for expected in (other, last):
        got = await scene.claim("w2", queues=(QUEUE, OTHER_QUEUE))
        assert got is not None
        assert got.prediction == expected
