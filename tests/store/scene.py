"""A small world for the tests of the verbs: short ways to create, claim and finish, and a look at the bare rows."""

from collections.abc import Sequence
from typing import Any, Self

import apsw
import asyncpg

from cogflare.domain.ids import new_id, new_key
from cogflare.domain.phases import Status
from cogflare.store import fleet, predictions, recovery
from cogflare.store.base import Conflict, Database, Row, Statement, Value
from cogflare.store.catalog import Version, register
from cogflare.store.fleet import AttemptKey, HeldAttempt
from cogflare.store.predictions import Chunk, Claim, Claimed, Ending, NewPrediction, PredictionRow
from cogflare.store.sql import Dialect

QUEUE = "shared/o/m"
OTHER_QUEUE = "shared:v1"
TURN = 1_000_000  # what a claim adds to the virtual time of its flow


class Rows:
    """Statements that are no queries of the program, on a connection of their own."""

    def __init__(self, sqlite: apsw.Connection | None, postgres: "asyncpg.Connection[asyncpg.Record] | None") -> None:
        self._sqlite = sqlite
        self._postgres = postgres
        self.dialect: Dialect = "postgres" if sqlite is None else "sqlite"

    @classmethod
    async def open(cls, url: str) -> Self:
        if url.startswith("sqlite"):
            return cls(apsw.Connection(url.removeprefix("sqlite:///")), None)
        return cls(None, await asyncpg.connect(url))

    async def fetch(self, sql: str, *values: Value) -> list[Row]:
        if self._sqlite is not None:
            return list(self._sqlite.execute(sql, values))
        assert self._postgres is not None
        return [tuple(record) for record in await self._postgres.fetch(sql, *values)]

    def sqlite(self) -> apsw.Connection:
        """Return the connection itself."""
        assert self._sqlite is not None
        return self._sqlite

    async def run(self, script: str) -> None:
        """Run statements that return nothing."""
        if self._sqlite is not None:
            self._sqlite.execute(script)
        else:
            assert self._postgres is not None
            await self._postgres.execute(script)

    async def aclose(self) -> None:
        if self._sqlite is not None:
            self._sqlite.close()
        if self._postgres is not None:
            await self._postgres.close()


class Scene:
    """Workers `w1`, `w2`, … that serve two queues, and what happens to predictions. Time moves with every step."""

    def __init__(self, db: Database, rows: Rows) -> None:
        self.db = db
        self.rows = rows
        self.now = 1_700_000_000_000_000
        self.epochs: dict[str, int] = {}

    def tick(self, us: int = 1000) -> int:
        self.now += us
        return self.now

    async def create(
        self, flow: str = "acct", queues: Sequence[str] = (QUEUE,), input: str = '{"prompt": "x"}', **fields: Any
    ) -> str:
        new = self.new(flow, queues, input, **fields)
        await self.db.write(*predictions.insert(new))
        return new.id

    def new(
        self, flow: str = "acct", queues: Sequence[str] = (QUEUE,), input: str = '{"prompt": "x"}', **fields: Any
    ) -> NewPrediction:
        now = self.tick()
        return NewPrediction(
            id=new_id(now),
            account=fields.pop("account", flow),
            token="t1",
            catalog=fields.pop("catalog", "shared"),
            owner="o",
            name=fields.pop("name", "m"),
            version=fields.pop("version", "v1"),
            pinned=fields.pop("pinned", False),
            queues=tuple(queues),
            flow=flow,
            input=input,
            created_at=now,
            stream_key=new_key(),
            **fields,
        )

    def hello(self, worker: str, account: str = "shared") -> fleet.Link:
        return fleet.Link(worker, account, "t2", f"name of {worker}", "i1", "node1", "[]", "{}", self.tick())

    async def link(self, worker: str = "w1", held: Sequence[AttemptKey] = ()) -> list[HeldAttempt]:
        """Open a (newer) link of a worker; returns what goes on."""
        opened = await fleet.open_link(self.db, self.hello(worker), held)
        assert opened is not None
        self.epochs[worker] = opened.epoch
        return opened.held

    def wish(self, worker: str = "w1", epoch: int | None = None, queues: tuple[str, str] | None = None) -> Claim:
        model_queue, version_queue = queues or (QUEUE, OTHER_QUEUE)
        return Claim(
            new_id(self.now), worker, epoch or self.epochs[worker], model_queue, version_queue, version=f"of {worker}"
        )

    async def claim(self, worker: str = "w1", **wish: Any) -> Claimed | None:
        if worker not in self.epochs:
            await self.link(worker)
        return predictions.claimed(await self.db.write(*predictions.claim(self.wish(worker, **wish), self.tick())))

    async def claim_key(self, worker: str = "w1") -> AttemptKey:
        """Claim what is there to be claimed."""
        claimed = await self.claim(worker)
        assert claimed is not None
        return claimed.prediction, claimed.attempt

    async def finish(self, key: AttemptKey, worker: str = "w1", chunks: Sequence[Chunk] = (), **fields: Any) -> None:
        fields = {"status": "succeeded", "output": '"done"', **fields}
        await self.db.write(
            *predictions.finish(
                Ending(*key, worker, self.epochs.get(worker, 1), completed_at=self.tick(), **fields), chunks
            )
        )

    async def cancel(self, key: AttemptKey) -> None:
        """End a prediction and, where an attempt runs, that attempt."""
        ended = predictions.end(*key, Status.CANCELED, now=self.tick())
        await self.db.write(*ended, predictions.end_attempt(*key, "canceled", now=self.now))

    async def requeue(
        self,
        key: AttemptKey,
        queues: Sequence[str] = (QUEUE,),
        avoid: str | None = None,
        avoid_us: int = 0,
        renewals: int | None = None,
        pause_us: int = 0,
    ) -> None:
        """Take an attempt back as a rescuer does; it is a strike if the attempt had started."""
        state = await fleet.get_attempt(self.db, *key)
        assert state is not None
        requeue = predictions.requeue(*key, state.started_at, renewals, parked=bool(pause_us))
        lost = predictions.end_attempt(*key, "lost", now=self.tick(), reason="silent", slot_free=True)
        not_before = self.now + pause_us
        avoid_until = not_before + avoid_us if avoid else None
        if pause_us:
            entries = recovery.park(key[0], queues, not_before, avoid, avoid_until)
        else:
            entries = predictions.enqueue(key[0], queues, avoid, avoid_until)
        await self.db.write(requeue, lost, *entries)

    async def release(self, latest_us: int = 1_000_000, avoid_us: int = 0) -> set[str]:
        """Take what has paused long enough back to the queue, or what would pause longer than `latest_us`."""
        now = self.tick()
        latest = now + latest_us
        due = await recovery.due(self.db, now, latest, 100)
        rows = await self.db.write(*recovery.release(due, now, latest, now + avoid_us))
        return {id for (id,) in rows[0]}

    async def strike_out(self, key: AttemptKey) -> None:
        """Fail a prediction because its attempts were lost."""
        ended = predictions.end(*key, Status.FAILED, now=self.tick(), error="lost 3 times", struck_out=True)
        await self.db.write(*ended, predictions.end_attempt(*key, "lost", now=self.now))

    async def make_anew(self, old: str, flow: str = "acct", queues: Sequence[str] = (QUEUE,)) -> str | None:
        """Make a new prediction of one that ended without success; None if that cannot be."""
        new = self.new(flow, queues)
        try:
            await self.db.write(recovery.mark_requeued(old, new.id), *predictions.insert(new))
        except Conflict:
            return None
        return new.id

    async def checkpoint(
        self,
        key: AttemptKey,
        items: int | None = None,
        log_bytes: int = 0,
        chunks: Sequence[Chunk] = (),
        epoch: int | None = None,
    ) -> None:
        """Commit live data as the link of that epoch does; by default, the newest of the holder."""
        state = await fleet.get_attempt(self.db, *key)
        if epoch is None:
            epoch = self.epochs[state.holder] if state is not None else 0
        point = predictions.Checkpoint(*key, self.tick(), items, log_bytes, epoch)
        await self.db.write(*predictions.checkpoint([point], chunks))

    async def row(self, prediction: str) -> PredictionRow:
        row = await predictions.get(self.db, prediction)
        assert row is not None
        return row

    async def attempt(self, key: AttemptKey) -> fleet.AttemptState:
        state = await fleet.get_attempt(self.db, *key)
        assert state is not None
        return state

    async def entries(self) -> list[Row]:
        return await self.rows.fetch("SELECT prediction, queue FROM queue_entries ORDER BY prediction, queue")

    async def waiting(self) -> dict[tuple[str, str], int]:
        return {(queue, flow): n for queue, flow, n in await self.rows.fetch("SELECT queue, flow, waiting FROM flows")}

    async def occupied(self) -> set[AttemptKey]:
        return {(prediction, attempt) for prediction, attempt, *_ in await self.db.read("occupied_slots")}

    async def model(self, account: str, owner: str, name: str, version: str, output_kind: str = "single") -> None:
        offered = Version(account, owner, name, version, "0.16", '{"a": "\\u0000"}', output_kind, self.tick())
        await self.db.write(*register(offered))

    async def account(self, name: str) -> None:
        fields: dict[str, Value] = {"id": name, "username": name, "name": name, "kind": "user", "now": self.tick()}
        await self.db.write(Statement("insert_account", fields))
