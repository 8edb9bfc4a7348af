"""The last chapter of a history: what the store says once all is quiet, and whether the files are there."""

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from typing import Any

import httpx2
import msgspec

from cogflare.cli.verification.history import (
    FILE_PREFIX,
    TAG,
    Begun,
    Event,
    Leftover,
    Over,
    Recorder,
    Stored,
    StoredAttempt,
    StoredDelivery,
    StoredFile,
    now,
)
from cogflare.cli.verification.model import Script, answer
from cogflare.cli.verification.stage import is_alive
from cogflare.engine import views
from cogflare.store import predictions as store
from cogflare.store.base import Database, Statement
from cogflare.store.open import open_database

_PAUSE_S = 0.3
_TRIES = 20
_BATCH = 50
_LEFTOVERS = ("left_entries", "unsettled_flows")
_REFERENCE = re.compile(re.escape(FILE_PREFIX) + r"([^/]+)/([^/]+)")
_BEGIN_OF_FILE = 200


def _open(url: str) -> Database:
    """Return the database with the queries of this package."""
    return open_database(url, sql=files("cogflare.cli.verification") / "sql")


async def is_empty(url: str) -> bool:
    """Whether there is no table in the database; raises `Unavailable`, or `ValueError` of a wrong URL."""
    db = _open(url)
    try:
        return not (await db.read("count_tables"))[0][0]
    finally:
        await db.aclose()


async def clear(url: str) -> None:
    """Remove everything from a database that is not a file."""
    db = _open(url)
    try:
        await db.write(Statement("drop_everything", {}))
    finally:
        await db.aclose()


class Archive:
    """The store of a run, read past the server."""

    def __init__(self, url: str) -> None:
        self._product = open_database(url)
        self._own = _open(url)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._own.aclose()
        await self._product.aclose()

    async def quiet(self, limit_s: float) -> bool:
        """Wait until nothing is under way; False if that takes too long."""
        end = asyncio.get_running_loop().time() + limit_s
        while (await self._own.read("under_way"))[0][0]:
            if asyncio.get_running_loop().time() > end:
                return False
            await asyncio.sleep(_PAUSE_S)
        return True

    async def stored(self) -> list[tuple[Stored, dict[str, Any]]]:
        """Return all predictions with their inputs."""
        accounts: list[tuple[str, str]] = [(row[0], row[1]) for row in await self._own.read("all_predictions")]
        found: list[tuple[Stored, dict[str, Any]]] = []
        for start in range(0, len(accounts), _BATCH):
            found += await _load(self._product, dict(accounts[start : start + _BATCH]))
        return found

    async def attempts(self) -> list[StoredAttempt]:
        """Return all attempts."""
        rows = await self._own.read("all_attempts")
        return [
            StoredAttempt(now(), prediction, attempt, holder, started, ended, outcome, freed is not None)
            for prediction, attempt, holder, started, ended, outcome, freed in rows
        ]

    async def deliveries(self) -> list[StoredDelivery]:
        """Return all messages about ends."""
        return [StoredDelivery(now(), *row) for row in await self._own.read("all_ends_told")]

    async def file_states(self) -> dict[str, str]:
        """Return the states of all files by id."""
        return {str(row[0]): str(row[1]) for row in await self._own.read("all_files")}

    async def leftovers(self) -> list[Leftover]:
        """Return what should be gone."""
        return [
            Leftover(now(), name, " ".join(map(str, row))) for name in _LEFTOVERS for row in await self._own.read(name)
        ]


async def _load(db: Database, accounts: Mapping[str, str]) -> list[tuple[Stored, dict[str, Any]]]:
    """Return these predictions, whose accounts are given by their ids, as the store has them."""
    rows = [row for row in [await store.get(db, one) for one in accounts] if row is not None]
    parts = await views.load_parts(db, rows)
    found = []
    for row in rows:
        shown = views.view(row, parts)
        script: dict[str, Any] = msgspec.json.decode(shown.input)
        output = None if shown.output is None else msgspec.json.decode(shown.output)
        told = (row.phase, row.status, row.attempt, row.strikes, row.completed_at, output, row.error, shown.logs)
        found.append((Stored(now(), row.id, accounts[row.id], script.get("tag"), *told), script))
    return found


async def collect(archive: Archive, url: str, events: Iterable[Event], recorder: Recorder) -> None:
    """Write the last chapter: predictions, attempts, files (fetched from the server at `url`) and leftovers.

    `events` are those so far; they tell which runs have not ended.
    """
    stored = await archive.stored()
    for prediction, _ in stored:
        recorder.note(prediction)
    for attempt in await archive.attempts():
        recorder.note(attempt)
    for delivery in await archive.deliveries():
        recorder.note(delivery)
    for leftover in (*await archive.leftovers(), *_endless_runs(events, [prediction for prediction, _ in stored])):
        recorder.note(leftover)
    states = await archive.file_states()
    async with httpx2.AsyncClient(base_url=url, timeout=20, trust_env=False) as http:
        for prediction, script in stored:
            if isinstance(prediction.output, str) and (named := _REFERENCE.fullmatch(prediction.output)):
                recorder.note(await _file(http, prediction, script, named[0], states.get(named[1])))


def _endless_runs(events: Iterable[Event], stored: Iterable[Stored]) -> Iterator[Leftover]:
    """Yield the runs that go on in a living model, though everything is said to have ended."""
    canceled = {prediction.prediction for prediction in stored if prediction.status == "canceled"}
    runs: dict[tuple[str, int, int], Begun] = {}
    for event in events:
        if isinstance(event, Begun):
            runs[event.prediction, event.attempt, event.model_pid] = event
        elif isinstance(event, Over):
            runs.pop((event.prediction, event.attempt, event.model_pid), None)
    for run in runs.values():
        if is_alive(run.model_pid):
            kind = "canceled_run" if run.prediction in canceled else "endless_run"
            yield Leftover(now(), kind, f"{run.prediction} attempt {run.attempt} on {run.worker}")


async def _file(
    http: httpx2.AsyncClient, prediction: Stored, script: dict[str, Any], name: str, state: str | None
) -> StoredFile:
    """Fetch a file, and compare it with what the model has written."""
    path = name.removeprefix("cogflare-file:")
    content = await _fetch(http, path)
    if content is None:
        return StoredFile(now(), prediction.prediction, path, state, False, 0, False)
    told = msgspec.convert(script, Script)
    expected = answer(told.tag, prediction.attempt, told.file or "").encode()
    mark = TAG.match(content[:_BEGIN_OF_FILE].decode(errors="replace"))
    says = int(mark[2]) if mark is not None and mark[1] == told.tag else None
    return StoredFile(now(), prediction.prediction, path, state, True, len(content), content == expected, says)


async def _fetch(http: httpx2.AsyncClient, path: str) -> bytes | None:
    """Return a file's bytes; None if the server in order does not have them."""
    for _ in range(_TRIES):
        try:
            answered = await http.get(path)
        except httpx2.TransportError:
            await asyncio.sleep(_PAUSE_S)
            continue
        if answered.status_code < 500:
            return answered.content if answered.is_success else None
        await asyncio.sleep(_PAUSE_S)
    return None
