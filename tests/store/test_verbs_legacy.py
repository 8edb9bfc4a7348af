"""What the verbs of workers of 2022 promise, over both dialects."""

import msgspec
import pytest

from cogflare.domain.ids import new_key
from cogflare.store import files, fleet, legacy
from cogflare.store.fleet import AttemptKey
from cogflare.store.legacy import Begun, Load, Running, Sender, Sum, UnnamedFile
from store.scene import Scene

pytestmark = pytest.mark.anyio
OLD = "2022-one"


async def running(scene: Scene, worker: str = OLD) -> AttemptKey:
    """Return an attempt of o/m that a worker has begun."""
    await scene.create()
    key = await scene.claim_key(worker)
    await scene.checkpoint(key)
    return key


HOME = Sender("o/m", "192.0.2.1", is_home=True)
NONE = Sum(0, 0)


async def come(
    scene: Scene, size: int | None = 10, limit: int = 100, sender: Sender = HOME, pool_limit: int = 100
) -> str | None:
    """Let a file come; return its id if it is taken."""
    file = UnnamedFile(new_key(), sender, "a.txt", "text/plain", scene.tick())
    if not await legacy.add_file(scene.db, file, limit, pool_limit):
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
    assert await come(scene, sender=HOME._replace(model="o/other")) is None
    await scene.finish(key, OLD)
    assert await come(scene) is None


async def test_files_of_the_attempts_that_run_are_counted(scene: Scene) -> None:
    first = await running(scene)
    assert await legacy.load(scene.db, HOME, 0) == Load(NONE, NONE, NONE, NONE)
    named = await come(scene, 10, limit=2)
    assert named is not None
    assert await legacy.name_file(scene.db, named, "o/m", first, OLD)
    assert await come(scene, None, limit=2) is not None
    assert await come(scene, limit=2) is None
    both, unnamed = Sum(2, 10), Sum(1, 0)
    assert await legacy.load(scene.db, HOME, 0) == Load(both, both, unnamed, unnamed)


async def test_what_came_for_earlier_attempts_takes_no_room(scene: Scene) -> None:
    first = await running(scene)
    assert await come(scene, limit=1) is not None
    await scene.finish(first, OLD)
    await running(scene)
    lies_here = Sum(1, 10)
    assert await legacy.load(scene.db, HOME, 0) == Load(NONE, NONE, lies_here, lies_here)
    assert await come(scene, limit=1) is not None


async def test_senders_at_home_and_strangers_are_counted_apart(scene: Scene) -> None:
    key = await running(scene)
    one, two = (Sender("o/m", address, is_home=False) for address in ("192.0.2.7", "192.0.2.8"))
    id = await come(scene, 5, 1, one)
    assert id is not None
    assert await come(scene, 5, 1, one) is None, "all that this one may send"
    assert await come(scene, 5, 9, two, pool_limit=1) is None, "all that they may send together"
    assert await come(scene, 6, 1, two) is not None
    assert await come(scene, 7, 1) is not None, "whatever they send"
    both, first, home = Sum(2, 11), Sum(1, 5), Sum(1, 7)
    assert await legacy.load(scene.db, one, 0) == Load(first, both, first, both)
    assert await legacy.load(scene.db, HOME, 0) == Load(home, home, home, home)
    assert await legacy.name_file(scene.db, id, "o/m", key, OLD)
    assert await legacy.load(scene.db, one, 0) == Load(first, both, NONE, Sum(1, 6))


async def test_attempts_are_told_by_where_their_workers_dialled_from(scene: Scene) -> None:
    assert await legacy.running_of(scene.db, "o/m", "192.0.2.1") == Running(0, 0)
    link = msgspec.structs.replace(scene.hello(OLD), agent='{"version": "2022", "address": "192.0.2.1"}')
    opened = await fleet.open_link(scene.db, link, [])
    assert opened is not None
    scene.epochs[OLD] = opened.epoch
    for worker in (OLD, "2022-two", "w1"):
        await running(scene, worker)
    assert await legacy.running_of(scene.db, "o/m", "192.0.2.1") == Running(2, 1)
    assert await legacy.running_of(scene.db, "o/m", "192.0.2.9") == Running(2, 0)


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
