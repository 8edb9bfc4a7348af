"""What the verbs of workers of 2022 promise, over both dialects."""

import pytest

from cogflare.domain.ids import new_key
from cogflare.store import files, legacy
from cogflare.store.fleet import AttemptKey
from cogflare.store.legacy import Begun, Load, UnnamedFile
from store.scene import Scene

pytestmark = pytest.mark.anyio
OLD = "2022-one"


async def running(scene: Scene, worker: str = OLD) -> AttemptKey:
    """Return an attempt of o/m that a worker has begun."""
    await scene.create()
    key = await scene.claim_key(worker)
    await scene.checkpoint(key)
    return key


async def come(scene: Scene, size: int | None = 10, limit: int = 100, model: str = "o/m") -> str | None:
    """Let a file come; return its id if it is taken."""
    file = UnnamedFile(new_key(), model, "a.txt", "text/plain", scene.tick())
    if not await legacy.add_file(scene.db, file, limit):
        return None
    if size is not None:
        assert await files.complete(scene.db, file.id, size, "0" * 64, "1" * 32)
    return file.id


async def test_what_has_begun_is_told_until_it_ends(scene: Scene) -> None:
    await scene.create()
    key = await scene.claim_key(OLD)
    assert await legacy.begun_of(scene.db, OLD) == []
    await scene.checkpoint(key)
    started_at = (await scene.attempt(key)).started_at
    assert await legacy.begun_of(scene.db, OLD) == [Begun(*key, started_at or 0)]
    assert await legacy.begun_of(scene.db, "2022-two") == []
    await scene.finish(key, OLD)
    assert await legacy.begun_of(scene.db, OLD) == []


async def test_files_come_only_while_such_a_worker_runs_the_model(scene: Scene) -> None:
    assert await come(scene) is None
    await running(scene, "w1")
    assert await come(scene) is None, "what an agent runs takes files in other ways"
    key = await running(scene)
    assert await come(scene) is not None
    assert await come(scene, model="o/other") is None
    await scene.finish(key, OLD)
    assert await come(scene) is None


async def test_files_of_the_attempts_that_run_are_counted(scene: Scene) -> None:
    first = await running(scene)
    assert await legacy.load(scene.db, "o/m", 0) == Load(1, 0, 0, 0, 0)
    named = await come(scene, 10, limit=2)
    assert named is not None
    assert await legacy.name_file(scene.db, named, "o/m", first, OLD)
    assert await come(scene, None, limit=2) is not None
    assert await come(scene, limit=2) is None
    assert await legacy.load(scene.db, "o/m", 0) == Load(1, 2, 10, 1, 0)
    await running(scene, "2022-two")
    assert await come(scene, 5, limit=2) is not None, "each attempt has its own room"
    assert await legacy.load(scene.db, "o/m", 0) == Load(2, 3, 15, 2, 5)


async def test_what_came_for_earlier_attempts_takes_no_room(scene: Scene) -> None:
    first = await running(scene)
    assert await come(scene, limit=1) is not None
    await scene.finish(first, OLD)
    await running(scene)
    assert await legacy.load(scene.db, "o/m", 0) == Load(1, 0, 0, 1, 10), "but lies here"
    assert await come(scene, limit=1) is not None


async def test_a_file_belongs_to_the_attempt_that_names_it_first(scene: Scene) -> None:
    first, second = await running(scene), await running(scene, "2022-two")
    id = await come(scene)
    assert id is not None
    assert not await legacy.name_file(scene.db, id, "o/m", first, "2022-two"), "that worker does not hold it"
    assert not await legacy.name_file(scene.db, id, "o/other", second, "2022-two")
    assert await legacy.name_file(scene.db, id, "o/m", second, "2022-two")
    assert not await legacy.name_file(scene.db, id, "o/m", first, OLD)
    row = await files.get(scene.db, id)
    assert row is not None
    assert (row.account, (row.prediction, row.attempt), row.state) == ("acct", second, "pending")
    await scene.finish(second, "2022-two", has_files=True)
    row = await files.get(scene.db, id)
    assert row is not None
    assert row.state == "bound"


async def test_no_file_is_named_that_is_incomplete_or_too_late(scene: Scene) -> None:
    key = await running(scene)
    id, late = await come(scene, None), await come(scene)
    assert id is not None
    assert late is not None
    assert not await legacy.name_file(scene.db, id, "o/m", key, OLD)
    await scene.finish(key, OLD)
    assert not await legacy.name_file(scene.db, late, "o/m", key, OLD)


async def test_what_no_output_names_is_swept(scene: Scene) -> None:
    await running(scene)
    id = await come(scene)
    assert id is not None
    assert await files.expire_unbound(scene.db, scene.tick(), 10) == 1
    row = await files.get(scene.db, id)
    assert row is not None
    assert row.state == "expired"
