"""Bots of 2022 as they were: token, callback, secret of their workers and Replicate key come in from a file."""

import json
import os
import subprocess
import sys
from itertools import groupby
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner

from cogflare.cli.main import cogflare
from e2e.test_webhooks import INSIDE, Receiver
from e2e.test_workers_2022 import start
from support.pairs import Pair
from support.processes import Server, Stage, until

TOKEN = "bot-of-2022-0123456789abcdef"
WORKER = "workers-of-2022-0123456789abcdef"


class Bot:
    """What a bot does: it posts with its token in a header of its own, and waits for callbacks."""

    def __init__(self, server: Server, receiver: Receiver) -> None:
        self._server = server
        self._receiver = receiver
        self._headers = {"X-Cogflare-Token": TOKEN, "Content-Type": "application/json"}

    def post(self, model: str = "me/single", **script: Any) -> dict[str, Any]:
        """Ask for a prediction."""
        order = {"model": model, "version": "5" * 64, "input": script, "callbackUrl": self._receiver.url("/callback")}
        answer = self._server.http.post(f"{self._server.url}/v1/predictions", headers=self._headers, json=order)
        assert answer.status_code == 200, answer.text
        made: dict[str, Any] = answer.json()
        assert (made["status"], made["source"]) == ("creating", "cogflare")
        return made

    def get(self, made: dict[str, Any]) -> dict[str, Any]:
        """Read a prediction where it says that it is."""
        answer = self._server.http.get(made["urls"]["get"], headers=self._headers)
        assert answer.status_code == 200, answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    def heard(self, id: str) -> list[dict[str, Any]]:
        """Return what callbacks have told of a prediction, each message once."""
        told = {entry["headers"]["webhook-id"]: entry["body"] for entry in self._receiver.got()}
        return [body for body in told.values() if body["id"] == id]

    def told(self, id: str) -> list[dict[str, Any]]:
        """Wait until the end of a prediction was told; return all that was."""
        ends = ("succeeded", "failed", "cancelled")
        until(lambda: any(body["status"] in ends for body in self.heard(id)), "callback about the end")
        return self.heard(id)


def statuses(bodies: list[dict[str, Any]]) -> list[str]:
    """Return the statuses as they changed."""
    return [status for status, _ in groupby(body["status"] for body in bodies)]


def bring_in(stage: Stage, server: Server, replicate: str | None = None) -> None:
    """Take an export of the old store, whose bot belongs to the account `me`."""
    for secret in (TOKEN, WORKER):
        stage.plant(secret)
    store, names = stage.folder.parent / "store.json", stage.folder.parent / "names.json"
    store.write_text(json.dumps({TOKEN: {"allow": True, "worker": WORKER, "replicate": replicate}}))
    names.write_text(json.dumps({TOKEN: "me"}))
    environment = {"COGFLARE_SERVER": server.url, "COGFLARE_TOKEN": server.admin_token}
    result = CliRunner().invoke(cogflare, ["tokens", "import", str(store), "--accounts", str(names)], env=environment)
    assert result.exit_code == 0, result.output
    store.unlink()
    names.unlink()
    server._tokens["worker", "me"] = WORKER


@pytest.fixture
def server(stage: Stage) -> Server:
    """A server that knows the old tokens."""
    server = stage.server(**INSIDE)
    bring_in(stage, server)
    return server


@pytest.fixture
def bot(stage: Stage, server: Server) -> Bot:
    return Bot(server, Receiver(stage).start())


def test_a_bot_hears_of_every_change(stage: Stage, server: Server, bot: Bot) -> None:
    stage.scripted(server, name="old").connected().end()
    made = bot.post(seconds=2, log=8, output="a picture")
    assert bot.get(made)["status"] == "creating"
    stage.scripted(server, name="old").connected()
    bodies = bot.told(made["id"])
    assert statuses(bodies) == ["creating", "processing", "succeeded"]
    logs = [body.get("logs") or "" for body in bodies]
    assert logs == sorted(logs, key=len)
    assert len(set(logs)) >= 4
    last = bodies[-1]
    assert (last["output"], last["runner"], last["cogflare"], last["error"]) == ("a picture", "runpod", True, None)
    assert last["metrics"]["predict_time"] >= 2
    assert last["completed_at"] > last["created_at"]
    assert bot.get(made) == last


def test_failures_cancels_and_files_are_told_in_the_old_words(stage: Stage, server: Server, bot: Bot) -> None:
    stage.scripted(server, name="old", slots=3).connected()
    failed, canceled, filed = bot.post(fail="out of memory"), bot.post(seconds=600), bot.post(file="pixels")
    until(lambda: bot.get(canceled)["status"] == "processing", "start")
    server.http.post(canceled["urls"]["cancel"], headers={"X-Cogflare-Token": TOKEN}).raise_for_status()
    bodies = bot.told(failed["id"])
    assert (statuses(bodies)[-1], bodies[-1]["error"]) == ("failed", "out of memory")
    assert statuses(bot.told(canceled["id"]))[-1] == "cancelled"
    url = bot.told(filed["id"])[-1]["output"]
    assert httpx2.get(url, trust_env=False).text == "pixels"


def test_operators_look_at_them_as_at_others(stage: Stage, server: Server, bot: Bot) -> None:
    stage.scripted(server, name="old").connected()
    made = bot.post(seconds=600, log=20)
    until(lambda: bot.get(made).get("logs"), "logs")
    environment = {**os.environ, "COGFLARE_SERVER": server.url, "COGFLARE_TOKEN": server.token()}
    options: dict[str, Any] = {"env": environment, "capture_output": True, "text": True, "timeout": 30, "check": True}
    command = [sys.executable, "-m", "cogflare.cli", "predictions"]
    subprocess.run([*command, "cancel", made["id"]], **options)
    followed = subprocess.run([*command, "logs", "--follow", made["id"]], **options)
    assert followed.stdout.startswith("line 0\n")
    for look in (["list"], ["show", made["id"]], ["attempts", made["id"]]):
        assert subprocess.run([*command, *look], **options).stdout


def test_a_server_that_is_killed_in_the_middle_tells_the_rest(stage: Stage, server: Server, bot: Bot) -> None:
    stage.scripted(server, name="old", slots=10).connected()
    made = [bot.post(seconds=1.5, output=number) for number in range(10)]
    server.kill9()
    server.start()
    for number, one in enumerate(made):
        bodies = bot.told(one["id"])
        assert statuses(bodies) == ["creating", "processing", "succeeded"]
        assert bodies[-1]["output"] == number


def test_what_overflows_runs_at_replicate_with_the_key_that_was_brought_in(stage: Stage) -> None:
    pair = Pair(stage)
    bring_in(stage, pair.near, pair.key)
    pair.add("replicate", pair.far.url, "replicate")
    bot = Bot(pair.near, Receiver(stage).start())
    stage.scripted(pair.far, name="far").connected()
    made = bot.post(seconds=1, log=3, output="from afar")
    bodies = bot.told(made["id"])
    assert statuses(bodies) == ["creating", "processing", "succeeded"]
    [run] = pair.far_runs()
    last = bodies[-1]
    assert (last["runner"], last["replicateId"], last["output"]) == ("replicate", run["id"], "from afar")
    assert "cogflare" not in last
    assert bot.get(made) == last


def test_a_bot_and_its_worker_find_each_other_as_they_were(stage: Stage, server: Server, bot: Bot) -> None:
    """Both with the secrets that were brought in; the worker blocks its loop, and sends its picture by itself."""
    model = "nightmareai/disco-diffusion"
    start(stage, server, model=model)
    made = bot.post(model, seconds=3, log=5, file="pixels")
    bodies = bot.told(made["id"])
    assert statuses(bodies) == ["creating", "processing", "succeeded"]
    assert len({body.get("logs") for body in bodies}) >= 3
    last = bodies[-1]
    assert (last["runner"], last["cogflare"]) == ("runpod", True)
    assert last["metrics"]["predict_time"] >= 3
    assert last["output"].startswith(f"{server.url}/")
    assert httpx2.get(last["output"], trust_env=False).text == "pixels"
    assert WORKER not in server.log()
