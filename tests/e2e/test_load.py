"""Many clients at once, who also change their minds: everything ends exactly once, and nothing is left behind."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from cogflare.store.open import open_database
from support.processes import TERMINAL, Server, Stage, until

pytestmark = pytest.mark.anyio

CLIENTS = 10
PREDICTIONS = 500
SQL = Path(__file__).parent / "sql"


@dataclass
class Course:
    """What a client saw of one prediction: every status in order, and whether it asked for a cancel."""

    script: dict[str, Any]
    id: str = ""
    statuses: list[str] = field(default_factory=list)
    is_canceled: bool = False
    end: dict[str, Any] = field(default_factory=dict)

    def note(self, shown: dict[str, Any]) -> str:
        """Take down what was shown; once it has ended, nothing of it may change."""
        if self.end:
            assert shown == self.end, "a prediction changed after its end"
        if not self.statuses or self.statuses[-1] != shown["status"]:
            self.statuses.append(shown["status"])
        return str(shown["status"])


class Client:
    """One client with dice of its own: creates, looks, sometimes cancels, one prediction after another."""

    def __init__(self, server: Server, number: int, courses: list[Course]) -> None:
        self._dice = random.Random(number)
        self._courses = courses
        self._http = httpx2.AsyncClient(
            base_url=server.url,
            headers={"Authorization": f"Bearer {server.token()}"},
            timeout=60,
            trust_env=False,
        )

    async def work(self) -> None:
        """Take all predictions of this client through; several are under way at a time."""
        async with self._http:
            limit = anyio.CapacityLimiter(5)
            async with anyio.create_task_group() as tasks:
                for _ in range(PREDICTIONS // CLIENTS):
                    tasks.start_soon(self._one, limit, Course(self._script()))

    def _script(self) -> dict[str, Any]:
        script: dict[str, Any] = {"seconds": self._dice.uniform(0, 0.1), "log": self._dice.randrange(4)}
        fate = self._dice.random()
        if fate < 0.1:
            script["fail"] = "as told"
        elif fate < 0.13:
            script["crash"] = 1
        else:
            script["output"] = self._dice.randrange(1000)
        return script

    async def _one(self, limit: anyio.CapacityLimiter, course: Course) -> None:
        async with limit:
            headers = {"Prefer": "wait=5"} if self._dice.random() < 0.3 else {}
            created = await self._send("POST", "/v1/models/me/single/predictions", {"input": course.script}, headers)
            course.id = created["id"]
            self._courses.append(course)
            course.note(created)
            course.is_canceled = self._dice.random() < 0.3
            if course.is_canceled:
                await anyio.sleep(self._dice.uniform(0, 0.06))
                course.note(await self._send("POST", f"/v1/predictions/{course.id}/cancel"))
            while True:
                shown = await self._send("GET", f"/v1/predictions/{course.id}")
                if course.note(shown) in TERMINAL:
                    break
                await anyio.sleep(0.05)
            course.end = shown

    async def _send(
        self, method: str, path: str, json: object = None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        answer = await self._http.request(method, path, json=json, headers=headers)
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found


def check(course: Course) -> None:
    """Check that a prediction went forward only, and ended as its script or its client wanted."""
    *before, end = course.statuses
    assert before in ([], ["starting"], ["processing"], ["starting", "processing"]), course
    wanted = {"failed" if "fail" in course.script else "succeeded"} | ({"canceled"} if course.is_canceled else set())
    assert end in wanted, course
    assert course.end["error"] == ("as told" if end == "failed" else None)
    if end == "succeeded":
        assert course.end["output"] == course.script.get("output", "done")
        assert course.end["logs"] == "".join(f"line {number}\n" for number in range(course.script["log"]))


async def leftovers(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return what of past predictions still occupies something, by kind."""
    names = ("open_attempts", "unsettled_flows", "left_entries", "unended_predictions", "wrong_ends")
    inspected, product = open_database(url, sql=SQL), open_database(url)
    try:
        found = {name: await inspected.read(name) for name in names}
        return found | {name: await product.read(name) for name in ("occupied_slots", "live_attempts", "ready_queues")}
    finally:
        await inspected.aclose()
        await product.aclose()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_every_prediction_ends_once_and_leaves_nothing(
    stage: Stage, new_url: Callable[[str], str], kind: str
) -> None:
    server = stage.server(database_url=new_url(kind))
    pair = [stage.scripted(server, slots=8) for _ in range(2)]
    for worker in pair:
        worker.connected()
    courses: list[Course] = []
    async with anyio.create_task_group() as tasks:
        for number in range(CLIENTS):
            tasks.start_soon(Client(server, number, courses).work)
    assert len({course.id for course in courses}) == PREDICTIONS
    for course in courses:
        check(course)
        course.note(server.get(course.id))
    ends = Counter(course.statuses[-1] for course in courses)
    assert min(ends[status] for status in ("succeeded", "failed", "canceled")) >= 5, ends
    runs = stage.runs()
    crashed = {course.id for course in courses if "crash" in course.script}
    too_often = {prediction: times for prediction, times in runs.items() if times > 1 + (prediction in crashed)}
    assert too_often == {}
    assert len({stage.pids(prediction)[0] for prediction in runs}) == 2
    until(lambda: not any(worker["busy"] for worker in server.workers().values()), "free slots", 5)
    assert server.stop() == 0
    left = await leftovers(server.database_url)
    assert left == {name: [] for name in left}
    assert "Traceback" not in server.log()
