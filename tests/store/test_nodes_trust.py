"""Several nodes on one PostgreSQL, and what only so many may have: links of a token, files of an attempt."""

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from cogflare.store import files
from cogflare.store.base import Statement, Value
from store.scene import Scene
from store.test_nodes import uncommitted, waits_for_a_lock
from store.test_verbs_tokens import hello, limit, opens

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(new_url: Callable[[str], str]) -> str:
    return new_url("postgres")


async def test_two_nodes_do_not_both_give_the_last_place_away(scene: Scene, url: str) -> None:
    await limit(scene, "t1", 1)
    first = hello(scene, "w1", "t1")
    statements = [
        Statement("limited_token", {"token": "t1"}),
        Statement("token_has_room", {"token": "t1", "worker": "w1"}),
        Statement("open_link", msgspec.structs.asdict(first)),
    ]
    async with uncommitted(url, *statements):
        opening = asyncio.ensure_future(opens(scene, "w2", "t1"))
        await waits_for_a_lock(scene.rows)
    assert await opening is False
    assert await opens(scene, "w1", "t1")


async def test_two_nodes_do_not_both_take_the_last_file_of_an_attempt(scene: Scene, url: str) -> None:
    await scene.create()
    prediction, attempt = await scene.claim_key("w1")
    key: dict[str, Value] = {"prediction": prediction, "attempt": attempt}
    file: dict[str, Value] = {"name": "a", "content_type": "b", "now": 5, "most": 1}
    statements = [
        Statement("hold_attempt", {**key, "worker": "w1"}),
        Statement("insert_output_file", {**key, **file, "id": "f1"}),
    ]

    async def add(id: str) -> bool | None:
        about = {"prediction": prediction, "attempt": attempt, "worker": "w1", "name": "a", "content_type": "b"}
        return await files.add_output(scene.db, id=id, now=5, most=1, **about)  # type: ignore[arg-type]

    async with uncommitted(url, *statements):
        adding = asyncio.ensure_future(add("f2"))
        await waits_for_a_lock(scene.rows)
    assert await adding is False
    assert await scene.rows.fetch("SELECT id FROM files") == [("f1",)]
