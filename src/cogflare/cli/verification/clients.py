"""The clients of a run: they create, look, list, cancel and send nonsense, each with dice of its own.

What a client is told goes into the history, and nothing else: whether it is right is not its business. Reads and
cancels whose connection breaks are sent again. A create may have been taken: it is sent again only with a key or a
count of retries, by which the server knows it.
"""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Literal, Self

import httpx2
import msgspec

from cogflare.cli.verification import sources
from cogflare.cli.verification.cases import TERMINAL
from cogflare.cli.verification.history import (
    MISSING,
    Accepted,
    Asked,
    BadInput,
    CancelAsked,
    CancelTold,
    Foreign,
    Recorder,
    Refused,
    Seen,
    Unanswered,
    named_files,
    now,
)
from cogflare.cli.verification.hostile import Hostile, hostile
from cogflare.cli.verification.model import Script
from cogflare.cli.verification.reader import Reader
from cogflare.cli.verification.webhooks import DEFAULT_EVENTS

_READ_S = 8.0
_CONNECT_S = 3.0
_PACE_S = 1.0
"""Between two creates of a client, on average."""
_AT_ONCE = 6
_PAUSE_S = 0.2
_LISTED = 5
_REFUSALS = 100
_TRIES = 8
Again = Literal["never", "key", "count"]
"""How a create that was not answered is sent again: not, with a key, with the count that Stainless clients send."""
_BUSY = frozenset({429, 502, 503, 504, 507})
_EVENTS: Sequence[list[str] | None] = (
    None,
    None,
    ["completed"],
    ["start", "completed"],
    ["output", "logs", "completed"],
    ["start", "output", "logs"],
)
"""Filters of webhooks."""
_READ_AGAIN = 4
_READ_AGAIN_S = 60.0


class Access(msgspec.Struct, frozen=True):
    """What the clients of one account need: a token, the addresses of the nodes, and the models of the account."""

    account: str
    token: str
    urls: Sequence[str]
    models: Sequence[str]
    hooks: Sequence[Callable[[str, str], str]]
    """Each makes the address of a webhook of an account's prediction with a tag."""


class Ledger(msgspec.Struct):
    """What all clients share: the predictions of each account, and how far they are."""

    predictions: dict[str, list[str]] = {}
    accepted: int = 0
    ended: int = 0
    unanswered: int = 0
    refused: int = 0
    hostile: int = 0
    overdue: list[str] = []


class Client:
    """One client of an account; the same seed makes it want the same."""

    def __init__(self, access: Access, name: str, seed: int, recorder: Recorder, ledger: Ledger) -> None:
        self.name = name
        self.access = access
        self.ledger = ledger
        self._seed = f"{seed} {name}"
        self._dice = random.Random(self._seed)  # noqa: S311 - it is to be the same each time
        self.streams: dict[str, str] = {}
        self._recorder = recorder
        self._https = [
            httpx2.AsyncClient(
                base_url=url,
                headers={"Authorization": f"Bearer {access.token}"},
                timeout=httpx2.Timeout(_READ_S, connect=_CONNECT_S),
                trust_env=False,
            )
            for url in access.urls
        ]

    async def work(self, predictions: int, patience_s: float) -> None:
        """Take so many predictions through, several at a time; each has `patience_s` to end."""
        limit = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for number in range(predictions):
                await limit.acquire()
                await asyncio.sleep(self._dice.uniform(0, 2 * _PACE_S))
                dice = random.Random(f"{self._seed} {number}")  # noqa: S311 - it is to be the same each time
                course = Course(self, f"tag-{self.name.replace('/', '-')}-{number}", dice)
                tasks.create_task(course.run(patience_s)).add_done_callback(lambda _: limit.release())
                if self._dice.random() < 0.2:
                    model = self._dice.choice(self.access.models)
                    tag = f"tag-bad-{self.name.replace('/', '-')}-{number}"
                    await self._send_nonsense(hostile(self._dice, model, tag), tag)
                if self._dice.random() < 0.2:
                    await self._pry()

    async def look_again(self) -> None:
        """Read every prediction of the account once more, a page at a time, and some streams from their beginning."""
        await self._read_all()
        some = self._dice.sample([*self.streams.items()], min(_READ_AGAIN, len(self.streams)))
        await asyncio.gather(*(self.read_stream(*one, self._dice, _READ_AGAIN_S) for one in some))

    async def read_stream(self, prediction: str, path: str, dice: random.Random, limit_s: float) -> None:
        """Follow a stream to its end, and put what was shown into the history."""
        if dice.random() < 0.4:
            path += "?logs=true"
        self._recorder.note(await Reader(self._open, path, dice).follow(self.name, prediction, limit_s))

    async def _read_all(self) -> None:
        path: str | None = "/v1/predictions"
        while path is not None:
            told = await self.patiently("GET", path)
            if told is None or not told[1].is_success:
                return
            asked_at, page = told[0], told[1].json()
            for shown in page["results"]:
                self.note_seen(shown, asked_at)
            path = None if page["next"] is None else httpx2.URL(page["next"]).raw_path.decode()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for http in self._https:
            await http.aclose()

    async def send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Send a request to any node; raises `httpx2.TransportError`."""
        return await self._dice.choice(self._https).request(method, path, **options)

    def _open(
        self, path: str, headers: Mapping[str, str], timeout: httpx2.Timeout
    ) -> AbstractAsyncContextManager[httpx2.Response]:
        return self._dice.choice(self._https).stream("GET", path, headers=headers, timeout=timeout)

    async def patiently(self, method: str, path: str, limit_s: float = 60.0) -> tuple[int, httpx2.Response] | None:
        """Send a request until a server in order answers; return when it was asked, and the answer.

        None if that takes too long.
        """
        end = asyncio.get_running_loop().time() + limit_s
        while asyncio.get_running_loop().time() < end:
            asked_at = now()
            try:
                answer = await self.send(method, path)
            except httpx2.TransportError:
                await asyncio.sleep(_PAUSE_S)
                continue
            if answer.status_code not in _BUSY:
                return asked_at, answer
            await asyncio.sleep(_PAUSE_S)
        return None

    def note(self, event: Asked | Accepted | Refused | Unanswered | CancelAsked | CancelTold) -> None:
        """Put an event into the history."""
        self._recorder.note(event)

    def note_seen(self, shown: dict[str, Any], asked_at: int) -> None:
        """Put what was shown into the history."""
        output = named_files(shown.get("output"))
        told = (shown["status"], output, shown.get("logs") or "", shown.get("error"))
        self._recorder.note(Seen(now(), asked_at, self.name, shown["id"], *told))

    def note_missing(self, prediction: str, answer: httpx2.Response, asked_at: int) -> None:
        """Put into the history that a prediction was refused that had been accepted."""
        error = f"{answer.status_code} {answer.text[:200]}"
        self._recorder.note(Seen(now(), asked_at, self.name, prediction, MISSING, None, None, error))

    async def _send_nonsense(self, wrong: Hostile, tag: str) -> None:
        asked_at = now()
        headers = {"content-type": "application/json", **wrong.headers}
        try:
            answer = await self.send(wrong.method, wrong.path, content=wrong.content, headers=headers)
        except httpx2.TransportError:
            return
        self.ledger.hostile += 1
        told = (self.name, wrong.kind, answer.status_code, _is_problem(answer), tag)
        self._recorder.note(BadInput(now(), asked_at, *told))

    async def _pry(self) -> None:
        """Try to see, or to cancel, what another account has."""
        others = [ids for account, ids in self.ledger.predictions.items() if account != self.access.account and ids]
        if not others:
            return
        prediction = self._dice.choice(self._dice.choice(others))
        verb, method, path = self._dice.choice(
            (("read", "GET", ""), ("cancel", "POST", "/cancel"), ("look at the attempts", "GET", "/attempts"))
        )
        told = await self.patiently(method, f"/v1/predictions/{prediction}{path}", _READ_S)
        if told is not None:
            self._recorder.note(Foreign(now(), told[0], self.name, prediction, verb, told[1].status_code))


class Course:
    """One prediction of a client, from its create to its end, and some looks beyond."""

    def __init__(self, client: Client, tag: str, dice: random.Random) -> None:
        self._client = client
        self._tag = tag
        self._dice = dice
        number = dice.randrange(len(client.access.hooks))
        self._hook = (number, dice.choice(_EVENTS)) if dice.random() < 0.5 else None

    async def run(self, patience_s: float) -> None:
        """Create the prediction and follow it; what was refused is asked for again, under another tag."""
        model = self._dice.choice(self._client.access.models)
        hold_s = self._dice.choice((0, 0, 0, 1, 3))
        script = await self._script(model.partition("/")[2])
        again: Again = self._dice.choice(("never", "key", "count"))
        for number in range(_REFUSALS):
            tag = f"{self._tag}-{number}"
            told = None
            for retries in range(1 if again == "never" else _TRIES):
                headers = _headers(again, tag, retries, hold_s)
                told = await self._create(model, {**script, "tag": tag}, headers, hold_s, again)
                if not isinstance(told, Unanswered):
                    break
                await asyncio.sleep(_PAUSE_S)
            if isinstance(told, Accepted):
                await self._follow(told.prediction, patience_s)
                return
            await asyncio.sleep(_PAUSE_S)

    async def _create(
        self, model: str, script: dict[str, Any], headers: dict[str, str], hold_s: int, again: Again
    ) -> Accepted | Refused | Unanswered:
        """Send the create once, and return what came of it, which is in the history then."""
        client, tag = self._client, script["tag"]
        body, events = self._body(script)
        noted = {**script, "source": f"{script['source'][:40]}…"} if "source" in script else script
        client.note(Asked(now(), client.name, tag, model.partition("/")[2], noted, again, events))
        told: Accepted | Refused | Unanswered
        try:
            answer = await client.send(
                "POST",
                f"/v1/models/{model}/predictions",
                json=body,
                headers=headers,
                timeout=httpx2.Timeout(_READ_S + hold_s, connect=_CONNECT_S),
            )
        except httpx2.TransportError as error:
            client.ledger.unanswered += 1
            told = Unanswered(now(), client.name, tag, type(error).__name__)
        else:
            if answer.is_success:
                shown = answer.json()
                client.ledger.accepted += 1
                client.ledger.predictions.setdefault(client.access.account, []).append(shown["id"])
                client.streams[shown["id"]] = httpx2.URL(shown["urls"]["stream"]).path
                told = Accepted(now(), client.name, tag, shown["id"], shown["status"])
            else:
                client.ledger.refused += 1
                told = Refused(now(), client.name, tag, answer.status_code, answer.text[:200])
        client.note(told)
        return told

    async def _follow(self, prediction: str, patience_s: float) -> None:
        async with asyncio.TaskGroup() as tasks:
            if self._dice.random() < 0.25:
                tasks.create_task(self._cancel(prediction, self._dice.uniform(0, 1.5) ** 2))
            if self._dice.random() < 0.5:
                tasks.create_task(self._read(prediction, self._dice.choice((0, 0, 0.5, 3)), patience_s))
            tasks.create_task(self._look(prediction, patience_s))

    async def _read(self, prediction: str, after_s: float, patience_s: float) -> None:
        await asyncio.sleep(after_s)
        path = self._client.streams[prediction]
        await self._client.read_stream(prediction, path, self._dice, patience_s)

    def _body(self, script: dict[str, Any]) -> tuple[dict[str, Any], list[str] | None]:
        """Return the body of a create, and the events that its webhook is to hear of."""
        if self._hook is None:
            return {"input": script}, None
        number, events = self._hook
        access = self._client.access
        body = {"input": script, "webhook": access.hooks[number](access.account, script["tag"])}
        return (body, DEFAULT_EVENTS) if events is None else ({**body, "webhook_events_filter": events}, events)

    async def _look(self, prediction: str, patience_s: float) -> None:
        """Look until it has ended, then some more."""
        end = asyncio.get_running_loop().time() + patience_s
        while await self._look_once(prediction) not in TERMINAL:
            if asyncio.get_running_loop().time() > end:
                self._client.ledger.overdue.append(prediction)
                return
            await asyncio.sleep(self._dice.uniform(0.02, 0.4))
        self._client.ledger.ended += 1
        for _ in range(self._dice.randrange(3)):
            await asyncio.sleep(self._dice.uniform(0, 1))
            await self._look_once(prediction)

    async def _look_once(self, prediction: str) -> str | None:
        """Read the prediction, or a page that it may be on; return its status, None if it was not shown."""
        client = self._client
        is_page = self._dice.random() < 0.1
        path = "/v1/predictions" if is_page else f"/v1/predictions/{prediction}"
        told = await client.patiently("GET", path, _READ_S)
        if told is None:
            return None
        asked_at, answer = told
        if not answer.is_success:
            client.note_missing(prediction, answer, asked_at)
            return None
        shown = answer.json()["results"] if is_page else [answer.json()]
        for one in shown[:_LISTED]:
            client.note_seen(one, asked_at)
        return next((one["status"] for one in shown[:_LISTED] if one["id"] == prediction), None)

    async def _cancel(self, prediction: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        client = self._client
        client.note(CancelAsked(now(), client.name, prediction))
        told = await client.patiently("POST", f"/v1/predictions/{prediction}/cancel")
        if told is None:
            return
        asked_at, answer = told
        if not answer.is_success:
            client.note_missing(prediction, answer, asked_at)
            return
        client.note(CancelTold(now(), client.name, prediction, answer.json()["status"]))

    async def _script(self, kind: str) -> dict[str, Any]:
        """Return what the model is to do, but for the tag: mostly a little, now and then for long, or a lot."""
        dice = self._dice
        is_single = kind == "single"
        source = await sources.make(self._client, self._tag, dice) if is_single and dice.random() < 0.3 else None
        is_filed = is_single and source is None and dice.random() < 0.4
        script = Script(
            "",
            seconds=round(dice.choice((0.0, 0.3, 1.0, 4.0)) * dice.random(), 3),
            items=dice.choice((0, 1, 3, 20)) if not is_single else 0,
            log=dice.choice((0, 1, 3, 20)),
            pad=dice.choice((0, 0, 0, 10, 2_000)),
            output=f"answer {dice.randrange(1000)}" if source is None else source.sha256,
            file="a line of a file\n" * dice.choice((1, 10, 10_000)) if is_filed else None,
            fail="as told" if dice.random() < 0.08 else None,
            stubborn=round(dice.uniform(0, 1), 2) if dice.random() < 0.05 else 0.0,
            source=None if source is None else source.url,
        )
        found: dict[str, Any] = msgspec.to_builtins(script)
        return found


def _headers(again: Again, tag: str, retries: int, hold_s: int) -> dict[str, str]:
    """Return the headers of a create, which was sent `retries` times before."""
    headers = {"Prefer": f"wait={hold_s}"} if hold_s else {}
    if again == "key":
        headers["Idempotency-Key"] = tag
    elif again == "count":
        headers["X-Stainless-Retry-Count"] = str(retries)
    return headers


def _is_problem(answer: httpx2.Response) -> bool:
    """Whether an answer is a problem document."""
    if not answer.headers.get("content-type", "").startswith("application/problem+json"):
        return False
    body = answer.json()
    return isinstance(body, dict) and isinstance(body.get("detail"), str) and body.get("status") == answer.status_code
