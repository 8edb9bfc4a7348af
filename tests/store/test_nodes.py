"""Several nodes on one PostgreSQL: each pair of verbs that may meet on one prediction, and all of them at once."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncpg
import msgspec
import pytest

from cogflare.domain.phases import Status
from cogflare.store import fleet, predictions, recovery
from cogflare.store.base import Conflict, Statement
from cogflare.store.fleet import AttemptKey
from cogflare.store.postgres import PostgresDatabase
from cogflare.store.sql import Library, package_folder
from store.scene import QUEUE, Rows, Scene

pytestmark = pytest.mark.anyio

LIBRARY = Library(package_folder(), "postgres")
PAUSE_US = 20_000


@pytest.fixture
def url(new_url: Callable[[str], str]) -> str:
    return new_url("postgres")


@asynccontextmanager
async def uncommitted(url: str, *statements: Statement) -> AsyncIterator[None]:
    """Run statements as another node would, and commit them when the block ends."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("BEGIN")
        for statement in statements:
            step = LIBRARY.step(statement)
            await connection.fetch(step.sql, *step.values)
        yield
        await connection.execute("COMMIT")
    finally:
        await connection.close()


async def waits_for_a_lock(rows: Rows, sessions: int = 1) -> None:
    """Return once so many sessions wait for others."""
    async with asyncio.timeout(10):
        while len(await rows.fetch("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")) < sessions:
            await asyncio.sleep(0.005)


def cancel(scene: Scene, id: str, attempt: int) -> list[Statement]:
    ended = predictions.end(id, attempt, Status.CANCELED, now=scene.tick())
    return [*ended, predictions.end_attempt(id, attempt, "canceled", now=scene.now)]


async def test_a_claim_goes_around_what_another_node_claims(scene: Scene, url: str) -> None:
    first, second = await scene.create(), await scene.create()
    for worker in ("w1", "w2"):
        await scene.link(worker)
    async with uncommitted(url, *predictions.claim(scene.wish("w1"), scene.tick())[:1]):
        # Without the rest of the unit nothing but the lock of the row stands between the two.
        assert await scene.claim_key("w2") == (second, 1)
        assert await scene.claim("w2") is None
    assert [live.prediction for live in await fleet.live_attempts(scene.db)] == [first, second]


async def test_a_claim_goes_around_a_flow_that_is_taken(scene: Scene, url: str) -> None:
    await scene.create("a")
    other = await scene.create("b")
    await scene.rows.run("UPDATE flows SET virtual_time = 5 WHERE flow = 'b'")
    for worker in ("w1", "w2"):
        await scene.link(worker)
    async with uncommitted(url, *predictions.claim(scene.wish("w1"), scene.tick())):
        claiming = asyncio.ensure_future(scene.claim_key("w2"))
        # It has chosen; the turns of the flows are counted by one transaction after the other.
        await waits_for_a_lock(scene.rows)
    assert await claiming == (other, 1)


async def test_a_claim_leaves_what_is_being_canceled(scene: Scene, url: str) -> None:
    id = await scene.create()
    await scene.link()
    async with uncommitted(url, *cancel(scene, id, 0)):
        assert await scene.claim() is None
    assert await scene.claim() is None
    assert (await scene.row(id)).status == "canceled"


async def test_a_cancel_waits_for_the_claim_and_loses(scene: Scene, url: str) -> None:
    id = await scene.create()
    await scene.link()
    async with uncommitted(url, *predictions.claim(scene.wish(), scene.tick())):
        canceling = asyncio.ensure_future(scene.db.write(*cancel(scene, id, 0)))
        await waits_for_a_lock(scene.rows)
    with pytest.raises(Conflict):
        await canceling
    assert ((await scene.row(id)).phase, await scene.waiting()) == ("assigned", {(QUEUE, "acct"): 0})


async def test_a_cancel_waits_for_the_finish_and_loses(scene: Scene, url: str) -> None:
    await scene.create()
    key = await scene.claim_key()
    ending = predictions.Ending(*key, "w1", 1, "succeeded", completed_at=scene.tick(), output="1")
    async with uncommitted(url, *predictions.finish(ending, [])):
        canceling = asyncio.ensure_future(scene.cancel(key))
        await waits_for_a_lock(scene.rows)
    with pytest.raises(Conflict):
        await canceling
    assert (await scene.row(key[0])).status == "succeeded"


async def test_an_enqueue_waits_for_the_cancel_and_adds_nothing(scene: Scene, url: str) -> None:
    id = await scene.create()
    async with uncommitted(url, *cancel(scene, id, 0)):
        adding = asyncio.ensure_future(scene.db.write(*predictions.enqueue(id, ["other"])))
        await waits_for_a_lock(scene.rows)
    await adding
    assert await scene.entries() == []


async def test_a_newer_link_waits_for_the_claim_of_the_older(scene: Scene, url: str) -> None:
    id = await scene.create()
    await scene.link()
    async with uncommitted(url, *predictions.claim(scene.wish(), scene.tick())):
        opening = asyncio.ensure_future(scene.link("w1"))
        await waits_for_a_lock(scene.rows)
    await opening
    assert await fleet.live_of(scene.db, "w1", 2) == {(id, 1): 0}


async def test_the_older_link_claims_nothing_while_the_newer_opens(scene: Scene, url: str) -> None:
    await scene.create()
    await scene.link()
    opening = Statement("close_link", {"id": "w1", "epoch": 1, "state": "away", "now": scene.tick()})
    async with uncommitted(url, opening):
        assert await scene.claim() is None


async def test_a_link_waits_for_the_rescue_and_takes_the_attempt_up_again(scene: Scene, url: str) -> None:
    await scene.create()
    key = await scene.claim_key()
    rescue = [
        predictions.requeue(*key, None),
        predictions.end_attempt(*key, "lost", now=scene.tick(), slot_free=True),
        *predictions.enqueue(key[0], [QUEUE]),
    ]
    async with uncommitted(url, *rescue):
        opening = asyncio.ensure_future(scene.link("w1", held=[key]))
        await waits_for_a_lock(scene.rows)
    assert [(item.prediction, item.attempt) for item in await opening] == [key]
    state = await scene.attempt(key)
    assert (state.phase, state.outcome, await scene.entries()) == ("assigned", None, [])
    assert await scene.waiting() == {(QUEUE, "acct"): 0}


async def test_a_late_word_of_loss_does_not_end_what_is_taken_up_again(scene: Scene, url: str) -> None:
    await scene.create()
    key = await scene.claim_key()
    await scene.requeue(key)
    held = {"worker": "w1", "held": f'[["{key[0]}", 1]]'}
    link = [
        Statement("readopt_predictions", held),
        Statement("drop_held_entries", {"held": held["held"]}),
        Statement("adopt_attempts", held),
    ]
    async with uncommitted(url, *link):
        lost = predictions.end_attempt(*key, "lost", now=scene.tick(), slot_free=True)
        ending = asyncio.ensure_future(scene.db.write(lost))
        await waits_for_a_lock(scene.rows)
    await ending
    assert (await scene.attempt(key)).ended_at is None
    assert await scene.occupied() == {key}


async def test_a_link_that_opens_first_keeps_its_attempts(scene: Scene, url: str) -> None:
    await scene.create()
    key = await scene.claim_key()
    held = {"worker": "w1", "held": f'[["{key[0]}", 1]]'}
    opening = [
        Statement("open_link", msgspec.structs.asdict(scene.hello("w1")), needs="row"),
        Statement("readopt_predictions", held),
        Statement("adopt_attempts", held),
    ]
    async with uncommitted(url, *opening):
        point = predictions.Checkpoint(*key, scene.tick(), 5, 5, 1)
        late = scene.db.write(*predictions.checkpoint([point], [predictions.Chunk(*key, "log", 0, "stale")]))
        saving = asyncio.ensure_future(late)
        await waits_for_a_lock(scene.rows)
        # The units of one node go one after the other: another one rescues.
        other = PostgresDatabase(url)
        rescuing = asyncio.ensure_future(Scene(other, scene.rows).requeue(key, renewals=0))
        await waits_for_a_lock(scene.rows, 2)
    await saving
    with pytest.raises(Conflict):
        await rescuing
    await other.aclose()
    row, state = await scene.row(key[0]), await scene.attempt(key)
    assert (row.phase, row.output_items, row.log_bytes, state.log_bytes) == ("assigned", None, 0, 0)
    assert await predictions.chunks(scene.db, [key]) == []


async def any_verb(scene: Scene, random_: random.Random, key: AttemptKey, worker: str) -> None:
    verb = random_.choice(["finish", "cancel", "requeue", "checkpoint"])
    if verb == "cancel":
        await scene.cancel(key)
    elif not key[1]:
        return
    elif verb == "finish":
        await scene.finish(key, worker)
    elif verb == "requeue":
        await scene.requeue(key, pause_us=random_.choice([0, PAUSE_US]))
    else:
        await scene.checkpoint(key)


async def test_nodes_at_once_keep_the_books_right(scene: Scene, url: str) -> None:
    """Three nodes do everything to the same predictions, and the rules hold at the end."""
    nodes = [PostgresDatabase(url, writers=2) for _ in range(3)]
    random_ = random.Random(7)
    epochs: dict[str, int] = {}
    ids: list[str] = []

    async def one(db: PostgresDatabase, worker: str) -> None:
        mine = Scene(db, scene.rows)
        mine.epochs = epochs
        mine.now = scene.tick()
        turn = random_.random()
        try:
            if turn < 0.3 or not ids:
                ids.append(await mine.create(random_.choice("abc"), [QUEUE, "extra"]))
            elif turn < 0.6:
                await mine.claim(worker)
            elif turn < 0.63:
                await mine.release(latest_us=PAUSE_US)
            elif turn < 0.68:
                await mine.link(worker, random_.sample(live, min(len(live), 2)))
            else:
                row = await mine.row(random_.choice(ids))
                await any_verb(mine, random_, (row.id, row.attempt), worker)
        except Conflict:
            pass

    live: list[tuple[str, int]] = []
    for number, db in enumerate(nodes):
        mine = Scene(db, scene.rows)
        mine.epochs = epochs
        await mine.link(f"w{number + 1}")
    for _ in range(25):
        live = [(item.prediction, item.attempt) for item in await fleet.live_attempts(scene.db)]
        await asyncio.gather(*(one(nodes[n % 3], f"w{n % 3 + 1}") for n in range(36)))
    for db in nodes:
        await db.aclose()
    await books_are_right(scene)
    assert len(await scene.rows.fetch("SELECT 1 FROM predictions WHERE phase = 'ended'")) > 20


async def books_are_right(scene: Scene) -> None:
    drifted = await scene.rows.fetch(
        "SELECT f.queue, f.flow FROM flows AS f WHERE f.waiting <> (SELECT count(*) FROM queue_entries AS e"
        " WHERE e.queue = f.queue AND e.flow = f.flow AND e.not_before IS NULL)"
    )
    assert drifted == []
    astray = await scene.rows.fetch(
        "SELECT p.id FROM predictions AS p WHERE (p.phase = 'queued') <> EXISTS"
        " (SELECT 1 FROM queue_entries AS e WHERE e.prediction = p.id AND e.not_before IS NULL)"
        " OR (p.phase = 'parked') <> EXISTS"
        " (SELECT 1 FROM queue_entries AS e WHERE e.prediction = p.id AND e.not_before IS NOT NULL)"
    )
    assert astray == []
    wrong = await scene.rows.fetch(
        "SELECT p.id FROM predictions AS p LEFT JOIN attempts AS a ON a.prediction = p.id AND a.ended_at IS NULL"
        " GROUP BY p.id, p.phase, p.attempt HAVING count(a.attempt) <>"
        " CASE WHEN p.phase IN ('assigned', 'running') THEN 1 ELSE 0 END"
        " OR (count(a.attempt) = 1 AND max(a.attempt) <> p.attempt)"
    )
    assert wrong == []


# --- releases --------------------------------------------------------------------------------------------------------


async def paused(scene: Scene) -> AttemptKey:
    """Return a prediction whose pause is over."""
    await scene.create()
    key = await scene.claim_key()
    await scene.checkpoint(key)
    await scene.requeue(key, pause_us=1)
    scene.tick()
    return key


def release(scene: Scene, id: str) -> list[Statement]:
    now = scene.tick()
    return recovery.release([id], now, now + 1_000_000, now)


@pytest.mark.parametrize("how", ["cancel", "return", "release"])
async def test_a_release_goes_around_what_another_node_holds(scene: Scene, url: str, how: str) -> None:
    key = await paused(scene)
    held = {"worker": "w1", "held": f'[["{key[0]}", 1]]'}
    others = {
        "cancel": cancel(scene, *key),
        "return": [
            Statement("readopt_predictions", held),
            Statement("drop_held_entries", {"held": held["held"]}),
            Statement("adopt_attempts", held),
        ],
        "release": release(scene, key[0]),
    }
    async with uncommitted(url, *others[how]):
        assert (await scene.db.write(*release(scene, key[0])))[0] == []
    phases = {"cancel": "ended", "return": "running", "release": "queued"}
    assert (await scene.row(key[0])).phase == phases[how]
    is_queued = how == "release"
    assert len(await scene.entries()) == int(is_queued)
    assert await scene.waiting() == {(QUEUE, "acct"): int(is_queued)}
    assert await recovery.pauses(scene.db) is None


@pytest.mark.parametrize("how", ["cancel", "return", "finish"])
async def test_what_waited_for_a_release_finds_its_entries(scene: Scene, url: str, how: str) -> None:
    key = await paused(scene)
    async with uncommitted(url, *release(scene, key[0])):
        if how == "return":
            verb: asyncio.Future[object] = asyncio.ensure_future(scene.link("w1", held=[key]))
        else:
            verb = asyncio.ensure_future(scene.cancel(key) if how == "cancel" else scene.finish(key))
        await waits_for_a_lock(scene.rows)
    await verb
    assert (await scene.row(key[0])).phase == ("running" if how == "return" else "ended")
    assert await scene.entries() == []
    assert await scene.waiting() == {(QUEUE, "acct"): 0}


async def test_one_of_two_makes_a_new_one(scene: Scene, url: str) -> None:
    old = await scene.create()
    await scene.strike_out((old, 0))
    async with uncommitted(url, recovery.mark_requeued(old, "the-first")):
        making = asyncio.ensure_future(scene.make_anew(old))
        await waits_for_a_lock(scene.rows)
    assert await making is None
    assert (await scene.row(old)).requeued_as == "the-first"


async def test_a_link_waits_for_the_loss_that_sets_its_worker_aside(scene: Scene, url: str) -> None:
    await scene.link("w1")
    loss = recovery.Loss("w1", "gone", scene.tick(), scene.tick(), 1)
    async with uncommitted(url, Statement("count_loss", msgspec.structs.asdict(loss))):
        opening = asyncio.ensure_future(fleet.open_link(scene.db, scene.hello("w1"), []))
        await waits_for_a_lock(scene.rows)
    opened = await opening
    assert opened is not None
    assert (opened.epoch, opened.standing.quarantine) == (2, "gone")
