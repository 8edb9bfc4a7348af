"""Images in containers, through a real Docker daemon: what the image runner owns, and what it leaves."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cogflare.agent.runners.base import Event, Finished, Job, Log, RunLost, SetupFailed
from cogflare.agent.runners.image import ImageRunner
from cogflare.agent.sources import ImageSource
from support.docker import Dockerd, cog_config, image_document, image_of, model_layer, wardens
from support.registry import Registry
from support.runners import MemorySink, Rigger, finished

pytestmark = pytest.mark.anyio

TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def daemon(dockerd: Dockerd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Dockerd:
    """The daemon that runners find, and nobody's login."""
    monkeypatch.setenv("DOCKER_HOST", dockerd.url)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return dockerd


@asynccontextmanager
async def running(image: str, log: list[str], **wishes: Any) -> AsyncIterator[ImageRunner]:
    """A runner over an image, which is set up unless `setup` is called otherwise."""
    runner = ImageRunner("acme", "model", ImageSource(image, **wishes), "worker-1", MemorySink())
    try:
        yield runner
    finally:
        await runner.close()


async def until_asleep(runs: AsyncIterator[Event]) -> None:
    async for event in runs:
        if isinstance(event, Log) and "asleep" in event.text:
            return


async def none(look: Callable[[], list[Any]]) -> None:
    """Wait until there is nothing."""
    async with asyncio.timeout(10):
        while look():
            await asyncio.sleep(0.01)


async def test_a_container_is_made_as_was_asked(image_rig: Rigger, daemon: Dockerd, tmp_path: Path) -> None:
    volume = f"{tmp_path}:/weights:ro"
    wishes = {"memory": 512 << 20, "shm": 96 << 20, "volumes": (volume,), "env": ("FLAVOUR=sweet and=sour",)}
    model = await image_rig("noop", **wishes)
    told = daemon.inspect(daemon.containers()[0])
    config, host = told["Config"], told["HostConfig"]
    assert config["Cmd"][:3] == ["python", "-m", "cog.server.http"]
    assert config["Cmd"][3:5] == ["--host", "127.0.0.1"]
    assert "FLAVOUR=sweet and=sour" in config["Env"]
    assert "COG_PREDICT_TYPE_STUB=predict.py:Runner" in config["Env"]
    assert config["Labels"]["cogflare.model"] == "acme/noop"
    assert config["Labels"]["cogflare.worker"] == "worker-0"
    assert told["Name"].startswith("/cogflare-acme-noop-")
    assert (host["NetworkMode"], host["Binds"]) == ("host", [volume])
    assert (host["Memory"], host["ShmSize"]) == (512 << 20, 96 << 20)
    assert host["LogConfig"]["Config"]["max-size"]
    assert not any(name.startswith("COGFLARE_") for name in config["Env"])
    assert "sweet" not in "".join(model.setup_log), "variables may be secrets"


async def test_two_containers_on_one_network_do_not_meet(image_rig: Rigger, daemon: Dockerd) -> None:
    models = [await image_rig("noop"), await image_rig("failing")]
    assert len(daemon.containers()) == 2
    for model in models:
        assert model.offer is not None
    assert finished(await models[0].events({"text": "first"})).output == "first"


async def test_close_leaves_nothing(image_rig: Rigger, daemon: Dockerd) -> None:
    model = await image_rig("sleeper")
    runs = model.runner.run(Job(id="p1", attempt=1, input={"seconds": 60, "stubborn": True}))
    await until_asleep(runs)
    (container,) = daemon.containers()
    scratch = Path(daemon.inspect(container)["Config"]["Labels"]["cogflare.cord"])
    assert scratch.exists()
    assert len(wardens(container)) == 1
    await model.runner.close()
    assert daemon.containers() == []
    await none(lambda: wardens(container))
    assert not scratch.exists()
    await runs.aclose()


async def test_a_killed_container_loses_its_run_and_is_replaced(image_rig: Rigger, daemon: Dockerd) -> None:
    model = await image_rig("sleeper")
    runs = model.runner.run(Job(id="p1", attempt=1, input={"seconds": 60}))
    await until_asleep(runs)
    before = daemon.containers()
    daemon.kill(before[0])
    with pytest.raises(RunLost, match="the model's container ended with status 137"):
        _ = [event async for event in runs]
    assert "status 137" in await asyncio.wait_for(model.runner.wait_broken(), 5)
    await model.runner.restart()
    after = daemon.containers()
    assert len(after) == 1
    assert after != before
    assert finished(await model.events({"seconds": 0}, id="p2")).output == "rested"


async def test_a_removed_container_breaks_the_runner(image_rig: Rigger, daemon: Dockerd) -> None:
    model = await image_rig("noop")
    daemon.remove(daemon.containers()[0])
    assert "the model's container" in await asyncio.wait_for(model.runner.wait_broken(), 5)
    await model.runner.restart()
    assert finished(await model.events({"text": "again"})).output == "again"


async def test_a_model_that_ignores_the_cancel_is_restarted(image_rig: Rigger) -> None:
    model = await image_rig("sleeper")
    runs = model.runner.run(Job(id="p1", attempt=1, input={"seconds": 60, "stubborn": True}))
    await until_asleep(runs)
    await model.runner.cancel("p1")
    async for event in runs:
        if isinstance(event, Log) and "not getting up" in event.text:
            break
    await model.runner.restart()
    assert [event async for event in runs] == [Finished(status="canceled")]
    assert finished(await model.events({"seconds": 0}, id="p2")).output == "rested"


async def test_the_setup_log_is_passed_on(image_rig: Rigger) -> None:
    model = await image_rig("sleeper")
    assert "sleeper is awake" in "".join(model.setup_log)


async def test_a_setup_that_fails_says_why_and_leaves_nothing(image_rig: Rigger, daemon: Dockerd) -> None:
    with pytest.raises(SetupFailed, match="no weights here"):
        await image_rig("broken")
    assert daemon.containers() == []


async def test_an_image_that_ends_at_once_says_how(daemon: Dockerd) -> None:
    daemon.load("tests/ends", cog_config("noop", Cmd=["python", "-c", "print('no, thank you'); raise SystemExit(3)"]))
    async with running("tests/ends", []) as runner:
        with pytest.raises(SetupFailed, match=r"ended with status 3\nno, thank you"):
            await runner.setup(lambda text: None)
    assert daemon.containers() == []


async def test_an_image_whose_command_is_not_there_says_so(daemon: Dockerd) -> None:
    daemon.load("tests/absent", cog_config("noop", Cmd=["no-such-program"]))
    async with running("tests/absent", []) as runner:
        with pytest.raises(SetupFailed, match=r"cannot be started: .*no-such-program"):
            await runner.setup(lambda text: None)
    assert daemon.containers() == []


async def test_gpus_that_docker_does_not_have(image_rig: Rigger, daemon: Dockerd) -> None:
    with pytest.raises(SetupFailed, match="Container Toolkit"):
        await image_rig("noop", gpus="all")
    assert daemon.containers() == []


async def test_a_model_that_wants_a_gpu_runs_without_one_and_says_so(daemon: Dockerd) -> None:
    labels = {"run.cog.config": json.dumps({"build": {"gpu": True}})}
    daemon.load("tests/greedy", cog_config("noop", Labels=labels))
    log: list[str] = []
    async with running("tests/greedy", log) as runner:
        await runner.setup(log.append)
    assert "without a GPU" in "".join(log)


async def test_an_image_without_labels_tells_its_schema_itself(daemon: Dockerd) -> None:
    id = daemon.load("tests/plain", cog_config("files", Labels={}))
    async with running("tests/plain", []) as runner:
        offer = await runner.setup(lambda text: None)
        assert offer.schema is not None
        assert offer.version == id.removeprefix("sha256:")
        job = Job(id="p1", attempt=1, input={"source": "data:text/plain;base64,aGVsbG8="})
        output = finished([event async for event in runner.run(job)]).output
        assert output["single"].startswith("stored:"), "files come as data URLs, and are stored"


async def test_a_container_of_an_earlier_worker_is_removed(image_rig: Rigger, daemon: Dockerd) -> None:
    left = daemon.http.post(
        "/containers/create", json={"Image": image_of("noop"), "Labels": {"cogflare.worker": "worker-0"}}
    ).json()["Id"]
    others = daemon.http.post(
        "/containers/create", json={"Image": image_of("noop"), "Labels": {"cogflare.worker": "worker-9"}}
    ).json()["Id"]
    model = await image_rig("noop")
    assert left not in daemon.containers()
    assert others in daemon.containers()
    assert "removed what an earlier worker left: 1 container" in "".join(model.setup_log)
    daemon.remove(others)


async def test_a_daemon_that_ends_is_noticed() -> None:
    daemon = Dockerd().start()
    try:
        source = ImageSource(image_of("noop"))
        os.environ["DOCKER_HOST"] = daemon.url  # the fixture puts it back
        runner = ImageRunner("acme", "noop", source, "worker-1", MemorySink())
        await runner.setup(lambda text: None)
        (container,) = daemon.containers()
        daemon.stop()
        assert await asyncio.wait_for(runner.wait_broken(), 20)
        with pytest.raises(SetupFailed, match="Docker"):
            await runner.restart()
        await runner.close()
    finally:
        daemon.close()
        for pid in wardens(container):  # it alone is left to see to the container, and tries for some minutes
            os.kill(pid, 9)


# --- getting an image ------------------------------------------------------------------------------------------------


@pytest.fixture
def document() -> bytes:
    """What an image that is to be pulled says of itself."""
    layer = model_layer()
    with layer.open("rb") as content:
        digest = subprocess.run(["sha256sum"], stdin=content, capture_output=True, check=True).stdout.split()[0]
    labels = cog_config("noop")["Labels"] | {"tests": "pulled"}
    return image_document(cog_config("noop", Labels=labels), f"sha256:{digest.decode()}")


async def test_an_image_is_pulled_once_and_its_digest_is_the_version(document: bytes, daemon: Dockerd) -> None:
    log: list[str] = []
    with Registry(document, model_layer()) as registry:
        async with running(registry.image, log) as runner:
            offer = await runner.setup(log.append)
        assert f"sha256:{offer.version}" == registry.digest
        assert f"pulling {registry.image}\n" in log
        assert any(f"pulled {registry.image}: 1 of 1 layers" in line for line in log)
        async with running(registry.image, log) as runner:
            again: list[str] = []
            assert (await runner.setup(again.append)).version == offer.version
        assert "pull" not in "".join(again)
        daemon.http.delete(f"/images/{registry.image}:latest")


async def test_a_private_image_is_pulled_with_the_login_of_docker(
    document: bytes, daemon: Dockerd, tmp_path: Path
) -> None:
    log: list[str] = []
    with Registry(document, model_layer(), login="me:s3cret") as registry:
        async with running(registry.image, log) as runner:
            with pytest.raises(SetupFailed, match="docker login"):
                await runner.setup(log.append)
        (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.address: {"auth": "bWU6czNjcmV0"}}}))
        async with running(registry.image, log) as runner:
            await runner.setup(log.append)
        daemon.http.delete(f"/images/{registry.image}:latest")
    assert "s3cret" not in "".join(log)
    assert "bWU6czNjcmV0" not in "".join(log)


async def test_an_image_that_is_nowhere(daemon: Dockerd, document: bytes) -> None:
    with Registry(document, model_layer()) as registry:
        async with running(f"{registry.address}/acme/other", []) as runner:
            with pytest.raises(SetupFailed, match=r"acme/other cannot be pulled: .+"):
                await runner.setup(lambda text: None)
    async with running("acme/never", [], pull="never") as runner:
        with pytest.raises(SetupFailed, match="not to be pulled"):
            await runner.setup(lambda text: None)


# --- no daemon -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("unix:///nowhere/docker.sock", "is it started"),
        ("tcp://gpu.example.com:2376", "another machine"),
        ("ssh://me@gpu.example.com", "another machine"),
        ("nonsense", "DOCKER_HOST=nonsense is no address"),
    ],
)
async def test_a_daemon_that_cannot_be_used(url: str, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", url)
    async with running("acme/any", []) as runner:
        with pytest.raises(SetupFailed, match=match):
            await runner.setup(lambda text: None)


async def test_a_daemon_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOCKER_HOST", "unix://silent")
    monkeypatch.setattr("cogflare.agent.runners.dockerhost._REACH_S", 0.2)
    async with await asyncio.start_unix_server(never, "silent"), running("acme/any", []) as runner:
        with pytest.raises(SetupFailed, match="does not answer within"):
            await runner.setup(lambda text: None)


# --- a network of the container's own --------------------------------------------------------------------------------

BRIDGE = """
import asyncio, json, os, sys
from pathlib import Path
from cogflare.agent.runners.image import ImageRunner
from cogflare.agent.shelf import Shelf
from cogflare.agent.sources import ImageSource
from support.docker import Dockerd, image_of
from support.runners import MemorySink, Rig
async def main(daemon):
    os.environ["DOCKER_HOST"] = daemon.url
    sink, shelf = MemorySink(), Shelf()
    runner = ImageRunner("acme", "echo", ImageSource(image_of("echo")), "worker-1", sink, shelf=shelf)
    try:
        await runner.setup(lambda text: None)
        told = daemon.inspect(daemon.containers()[0])
        source = await shelf.put_up(Path(sys.argv[1]), "file.txt")
        events = await Rig(runner, sink).events({"source": source})
        print(json.dumps({
            "network": told["HostConfig"]["NetworkMode"], "ports": told["NetworkSettings"]["Ports"], "source": source,
            "status": events[-1].status, "files": [content.decode() for content in sink.files.values()],
        }))
    finally:
        await runner.close()
        await shelf.aclose()
daemon = Dockerd(["--iptables=false", "--ip6tables=false"])
try:
    asyncio.run(main(daemon.start()))
finally:
    daemon.close()
"""


async def test_a_container_on_a_bridge_is_reached_and_reaches_the_worker(tmp_path: Path) -> None:
    """Daemon, container and worker have a network of their own, in which nothing of this machine is changed."""
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if shutil.which("ip") is None or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("no network can be made on this machine")
    (tmp_path / "file.txt").write_text("over the bridge")
    environ = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [*alone, sys.executable, "-c", BRIDGE, str(tmp_path / "file.txt")]
    done = await asyncio.to_thread(subprocess.run, command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert (told["status"], told["files"]) == ("succeeded", ["over the bridge"])
    assert told["network"] == "bridge"
    assert [bound["HostIp"] for bound in told["ports"]["5000/tcp"]] == ["127.0.0.1"]
    assert told["source"].startswith("http://172.")
