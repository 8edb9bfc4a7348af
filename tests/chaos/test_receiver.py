"""The receiver of webhooks: how it misbehaves, what it notes, and that it comes back to its port."""

import asyncio
import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from cogflare.cli.verification import receiver as module
from cogflare.cli.verification.history import Recorder, Told, read
from cogflare.cli.verification.receiver import Manner, Receiver, is_signed, manner

pytestmark = pytest.mark.anyio

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TAG = "tag-one-1-0-0"
BAD: tuple[Manner, ...] = ("500", "503", "404", "moved", "reset", "torn", "hang")


def signed(body: bytes, secret: str = SECRET, message: str = "msg_p") -> dict[str, str]:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mac = hmac.digest(key, f"{message}.1700000000.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": message,
        "webhook-timestamp": "1700000000",
        "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
    }


def shown(status: str, **fields: Any) -> bytes:
    return msgspec.json.encode({"id": "p", "status": status, "output": None, "logs": "", "error": None, **fields})


class Stand:
    """A receiver with its history."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.receiver = Receiver("hook-1", seed, Recorder(folder / "history.jsonl"), {"one": SECRET})

    def told(self) -> list[Told]:
        return [event for event in read([self.folder / "history.jsonl"]) if isinstance(event, Told)]

    async def post(self, body: bytes, headers: Mapping[str, str] | None = None, url: str = "") -> httpx2.Response:
        async with httpx2.AsyncClient(timeout=5, trust_env=False) as http:
            target = url or self.receiver.address("one", TAG)
            return await http.post(target, content=body, headers=headers or signed(body))


def seed_with(wanted: Callable[[Manner], bool], *, is_end: bool) -> int:
    """Return a seed whose first message is met so."""
    return next(seed for seed in range(1000) if wanted(manner(seed, TAG, 0, is_end=is_end)))


def test_the_vector_of_standard_webhooks() -> None:
    body = b'{"test": 2432232314}'
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,bm9uZQ== v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    assert is_signed(SECRET, headers, body)
    assert not is_signed(SECRET, headers, body + b" ")
    assert not is_signed(SECRET, {**headers, "webhook-timestamp": "1614265331"}, body)
    assert not is_signed(SECRET, {**headers, "webhook-timestamp": "soon"}, body)
    assert not is_signed(SECRET, {}, body)


def test_a_seed_is_one_way_to_misbehave_and_an_end_is_taken_at_the_second_try() -> None:
    met = [[manner(seed, TAG, number, is_end=True) for number in range(5)] for seed in range(300)]
    assert met == [[manner(seed, TAG, number, is_end=True) for number in range(5)] for seed in range(300)]
    assert {one for some in met for one in some[:1]} == {*BAD, "good", "slow", "short"}
    assert not {one for some in met for one in some[1:]} & {*BAD}


async def test_what_comes_is_noted_with_its_answer(tmp_path: Path) -> None:
    body = shown("succeeded", output="http://127.0.0.1:9/f/1/a.txt", logs="l")
    stand = Stand(tmp_path, seed_with(lambda met: met == "good", is_end=True))
    async with stand.receiver:
        assert (await stand.post(body)).status_code == 200
        [told] = stand.told()
    assert (told.receiver, told.tag, told.prediction, told.status) == ("hook-1", TAG, "p", "succeeded")
    assert (told.output, told.logs, told.error) == ("cogflare-file:/f/1/a.txt", "l", None)
    assert (told.message, told.is_signed, told.code, told.is_moved) == ("msg_p", True, 200, False)
    assert told.begun_at <= told.at


@pytest.mark.parametrize("met", BAD)
async def test_each_way_to_misbehave_is_noted_as_what_it_is(
    tmp_path: Path, met: Manner, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = shown("succeeded")
    stand = Stand(tmp_path, seed_with(lambda one: one == met, is_end=True))
    async with stand.receiver:
        if met in ("reset", "torn", "hang"):
            with pytest.raises(httpx2.TransportError):
                async with asyncio.timeout(20), httpx2.AsyncClient(timeout=0.3, trust_env=False) as http:
                    await http.post(stand.receiver.address("one", TAG), content=body, headers=signed(body))
            code = None
        else:
            answer = await stand.post(body)
            code = 302 if met == "moved" else int(met)
            assert answer.status_code == code
            if met == "moved":
                await stand.post(body, url=answer.headers["location"])
        while len(stand.told()) < 1 + (met == "moved"):
            await asyncio.sleep(0.01)
    told = stand.told()
    assert told[0].code == code
    assert [one.is_moved for one in told[1:]] == [True] * (met == "moved")


async def test_strange_messages_are_noted_and_refused(tmp_path: Path) -> None:
    stand = Stand(tmp_path, 1)
    async with stand.receiver:
        await stand.receiver.mend()
        await stand.post(b"no JSON", url=f"http://127.0.0.1:{stand.receiver.port}/hook/one?tag={TAG}&x=a/b")
        await stand.post(shown("succeeded"), {"webhook-id": "msg_x"})
        await stand.post(shown("succeeded"), signed(shown("succeeded"), "whsec_bm90IHRoaXM="))
    assert [(told.tag, told.code, told.is_signed) for told in stand.told()] == [
        ("", 404, False),
        (TAG, 200, False),
        (TAG, 200, False),
    ]


async def test_it_goes_and_comes_back_to_its_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_UP_S", (0.05, 0.05))
    monkeypatch.setattr(module, "_DOWN_S", (0.05, 0.05))
    stand = Stand(tmp_path, seed_with(lambda met: met == "good", is_end=True))
    body, refused = shown("succeeded"), 0
    async with stand.receiver:
        port = stand.receiver.port
        while refused < 3:
            try:
                await stand.post(body)
            except httpx2.TransportError:
                refused += 1
                await asyncio.sleep(0.05)
        await stand.receiver.mend()
        assert stand.receiver.port == port
        for _ in range(20):
            assert (await stand.post(body)).is_success
    with pytest.raises(httpx2.ConnectError):
        await stand.post(body, url=f"http://127.0.0.1:{port}/hook/one?tag={TAG}&x=a%2Fb")
