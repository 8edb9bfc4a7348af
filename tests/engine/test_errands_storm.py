"""Errands through a storm: a provider that fails in every way, processes that are killed, clients that cancel."""

import asyncio
import random
from collections import Counter
from contextlib import suppress

import pytest

from cogflare.providers.base import Busy, Sight, Unanswered
from cogflare.store import errands as errands_store
from cogflare.store import fleet
from cogflare.store.base import Conflict, Database, Unavailable
from cogflare.store.catalog import Caller
from engine.far import Far, Node, Run
from support.memory_blobs import MemoryBlobStore

pytestmark = pytest.mark.anyio

PREDICTIONS = 42
KILL_AFTER = 6
UNITS = ("submit_errand", "finish_prediction", "settle_errand", "requeue_prediction", "checkpoint_attempts")


class Storm(Far):
    """A provider that loses requests before and after they are carried out, is busy, and shows what is old."""

    def __init__(self, chance: random.Random, *, is_repeatable: bool) -> None:
        super().__init__(is_repeatable=is_repeatable)
        self._chance = chance
        self._seen: dict[str, list[Sight]] = {}
        self.is_calm = False
        self.stale = self._shown

    async def enter(self, call: str) -> None:
        await super().enter(call)
        await self._weather(call)

    async def gate(self, step: str) -> None:
        await super().gate(step)
        if step.startswith("after "):
            await self._weather(step)

    async def _weather(self, call: str) -> None:
        if self.is_calm:
            return
        await asyncio.sleep(self._chance.random() * 0.01)
        lot = self._chance.random()
        if lot < 0.12:
            raise Unanswered("500 Internal Server Error")
        if lot < 0.2 and not call.startswith("after "):
            raise Busy("429 Too Many Requests", 0.01)

    def _shown(self, run: Run) -> Sight:
        known = self._seen.setdefault(run.id, [])
        known.append(run.sight())
        return known[-1] if self.is_calm or self._chance.random() < 0.8 else self._chance.choice(known)

    async def go_on(self) -> None:
        """Let runs begin, say something, and end, as chance has it."""
        while True:
            await asyncio.sleep(0.005)
            for run in list(self.runs.values()):
                lot = self._chance.random()
                if run.sight().is_ended or lot > 0.2:
                    continue
                if not run.started:
                    run.start()
                    run.output = b'["0"]'
                elif lot < 0.1:
                    run.logs += f"line {len(run.logs)}\n"
                    run.output = (run.output or b"")[:-1] + b',"%d"]' % len(run.logs)
                elif lot < 0.15:
                    run.succeed(run.output or b"null")
                elif lot < 0.16:
                    run.state = "canceled"


class Clients:
    """What clients do, and a router that sends all that waits to the provider."""

    def __init__(self, client: Caller, chance: random.Random) -> None:
        self.client = client
        self.known: list[str] = []
        self.canceled: set[str] = set()
        self._chance = chance

    async def act(self, node: Node) -> None:
        with suppress(Unavailable):
            if len(self.known) < PREDICTIONS:
                self.known.append((await node.create(self.client)).id)
            if self.known and self._chance.random() < 0.1:
                one = self._chance.choice(self.known)
                if (await node.predictions.cancel(self.client.account, one)).status == "canceled":
                    self.canceled.add(one)
            for id in self.known:
                [row] = await node.mortal.read("get_prediction", id=id)
                if row[7] == "queued" and not node.mortal.is_dead:
                    with suppress(Conflict):
                        node.errands.start(await node.claim(self.client, id))


@pytest.mark.parametrize("is_repeatable", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_whatever_happens_everything_ends_once_and_nothing_is_paid_unseen(
    store: Database, seed: int, is_repeatable: bool
) -> None:
    chance = random.Random(seed)
    far = Storm(chance, is_repeatable=is_repeatable)
    node = Node(store, far, MemoryBlobStore())
    clients = Clients(await node.known(), chance)
    await node.provider(clients.client.account)
    world = asyncio.create_task(far.go_on())
    kills = 0
    node.begin()
    async with asyncio.timeout(60):
        while not await all_ended(store, clients):
            await clients.act(node)
            node.mortal.refused = {chance.choice(UNITS)} if chance.random() < 0.1 else set()
            node.mortal.lost = {chance.choice(UNITS)} if chance.random() < 0.1 else set()
            await asyncio.sleep(0.002)
            if len(clients.known) // KILL_AFTER > kills:
                kills += 1
                await node.kill()
                node = node.again()
                node.begin()
            far.is_calm = len(clients.known) == PREDICTIONS and chance.random() < 0.5
        node.mortal.refused, node.mortal.lost = set(), set()
        far.is_calm = True
        while await errands_store.open_of(store, None):
            await asyncio.sleep(0.01)
    world.cancel()
    await node.halt()
    await check(store, far, clients)


async def all_ended(db: Database, clients: Clients) -> bool:
    if len(clients.known) < PREDICTIONS:
        return False
    rows = [(await db.read("get_prediction", id=id))[0] for id in clients.known]
    return all(row[7] == "ended" for row in rows)


async def check(db: Database, far: Storm, clients: Clients) -> None:
    """See to it that both sides agree on what was run, and on what it cost."""
    named = Counter[str]()
    delivered = Counter[str]()
    for id in clients.known:
        [row] = await db.read("get_prediction", id=id)
        errands = {errand.attempt: errand for errand in await errands_store.for_prediction(db, id)}
        attempts = await fleet.list_attempts(db, id)
        assert len(errands) == len(attempts)
        assert all(attempt.ended_at is not None and attempt.slot_freed_at is not None for attempt in attempts)
        assert (row[8] == "canceled") == (id in clients.canceled)
        for attempt in attempts:
            errand = errands[attempt.attempt]
            assert errand.is_over
            delivered[id] += attempt.outcome in ("succeeded", "failed", "canceled")
            if errand.remote_id is not None:
                named[errand.remote_id] += 1
                run = far.runs[errand.remote_id]
                assert run.order.mark == errand.mark
                assert run.sight().is_ended
                assert attempt.outcome != "succeeded" or run.state == "succeeded"
                assert errand.is_in_doubt or run.state != "succeeded" or errand.cost == 3_000
        assert delivered[id] <= 1
    # Nothing runs there that no errand names, and no mark has two runs.
    assert dict(named) == dict.fromkeys(far.runs, 1)
    assert len({run.order.mark for run in far.runs.values()}) == len(far.runs)
