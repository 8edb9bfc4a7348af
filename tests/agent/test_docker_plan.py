"""What an image says of itself, and what the daemon is asked for: values in, values out."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner

from cogflare.agent.runners.dockerhost import Progress
from cogflare.agent.runners.dockerimage import Image, Network, Plan, gpu_requests
from cogflare.agent.runners.dockerlogin import login_for
from cogflare.agent.runners.outputs import OutputShape
from cogflare.agent.sources import ImageSource
from cogflare.cli.imageoptions import image_options

COG = ["python", "-m", "cog.server.http"]
HOST = Network("127.0.0.1", "127.0.0.1", 4711)
BRIDGE = Network("172.17.0.1", "172.17.0.1")
DESKTOP = Network("127.0.0.1", "host.docker.internal")
FILES = {"components": {"schemas": {"Output": {"type": "array", "items": {"type": "string", "format": "uri"}}}}}
TEXT: dict[str, Any] = {"components": {"schemas": {"Output": {"type": "string"}}}}
UPLOADS = ["--upload-url", "http://upload"]


def image(
    *, cmd: list[str] | None = None, env: tuple[str, ...] = (), digests: tuple[str, ...] = (), **labels: Any
) -> Image:
    told = {name.replace("__", "."): value for name, value in labels.items()}
    config = {"Cmd": COG if cmd is None else cmd, "Env": list(env), "Labels": told}
    return msgspec.convert({"Id": f"sha256:{'a' * 64}", "RepoDigests": list(digests), "Config": config}, Image)


def plan(
    of: Image, *, schema: dict[str, Any] | None = TEXT, gpus: Any = (), slots: int | None = None, **wishes: Any
) -> Plan:
    shape = OutputShape(schema) if schema is not None else None
    return Plan("acme", "model", "worker-1", ImageSource("acme/model", **wishes), of, shape, slots, list(gpus))


def command(of: Image, network: Network = BRIDGE, schema: dict[str, Any] | None = TEXT) -> list[str]:
    asked: list[str] = plan(of, schema=schema).body(network, "http://upload")["Cmd"]
    return asked


# --- networks and commands -------------------------------------------------------------------------------------------


def test_on_a_bridge_the_server_is_published_on_loopback_alone() -> None:
    body = plan(image()).body(BRIDGE, "http://upload")
    assert body["HostConfig"]["NetworkMode"] == "bridge"
    assert body["HostConfig"]["PortBindings"] == {"5000/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}
    assert body["ExposedPorts"] == {"5000/tcp": {}}
    assert body["Cmd"] == [*COG, *UPLOADS]
    assert "PORT=5000" in body["Env"]


def test_an_image_keeps_its_own_port_on_a_bridge() -> None:
    body = plan(image(env=("PORT=8393",))).body(DESKTOP, "http://upload")
    assert list(body["HostConfig"]["PortBindings"]) == ["8393/tcp"]


def test_on_the_network_of_the_machine_the_server_listens_on_loopback_alone() -> None:
    body = plan(image()).body(HOST, "http://upload")
    assert body["HostConfig"]["NetworkMode"] == "host"
    assert "PortBindings" not in body["HostConfig"]
    assert body["Cmd"] == [*COG, "--host", "127.0.0.1", *UPLOADS]
    assert "PORT=4711" in body["Env"]


def test_files_of_lists_come_as_data_urls() -> None:
    assert command(image(), schema=FILES) == COG
    assert command(image(), schema=None) == COG, "what it makes is not known"


@pytest.mark.parametrize("schema", [None, TEXT, FILES])
def test_a_cog_before_coglet_uploads_whatever_it_makes(schema: dict[str, Any] | None) -> None:
    for old in (image(run__cog__version="0.9.4"), image(org__cogmodel__cog_version="0.8.6")):
        assert command(old, HOST, schema) == [*COG, *UPLOADS], "it listens where it likes"
    assert command(image(run__cog__version="0.16.12"), HOST, schema) == [*COG, "--host", "127.0.0.1", *UPLOADS]


@pytest.mark.parametrize(("version", "slots"), [("0.9.8", 1), ("0.9.9", 4), ("0.16.0-beta1", 4), ("dev", 4)])
def test_a_cog_that_does_not_say_whose_a_file_is_gets_one_run_at_a_time(version: str, slots: int) -> None:
    assert plan(image(run__cog__version=version), slots=4).places == slots


def test_the_first_cogs_take_no_options() -> None:
    old = image(org__cogmodel__cog_version="0.6.1")
    asked = plan(old).body(HOST, "http://upload")
    assert asked["Cmd"] == COG
    assert "PORT=4711" in asked["Env"]
    assert "COG_LOG_LEVEL=warning" in asked["Env"], "with another word they do not start"


def test_a_cog_before_0_5_has_port_5000() -> None:
    old = image(org__cogmodel__cog_version="0.4.4", env=("PORT=8393",))
    assert not old.release().takes_port
    assert list(plan(old).body(BRIDGE, "")["HostConfig"]["PortBindings"]) == ["5000/tcp"]


@pytest.mark.parametrize("version", ["0.17.0", "0.23.1", "1.0.0", "", "dev"])
def test_later_cogs_are_coglet(version: str) -> None:
    assert image(run__cog__version=version).release().is_coglet


def test_another_server_is_started_as_its_image_says() -> None:
    other = image(cmd=["./serve", "--fast"])
    assert command(other) == ["./serve", "--fast"]
    config = {"Entrypoint": COG, "Cmd": None}
    assert command(msgspec.convert({"Id": "x", "Config": config}, Image)) == UPLOADS, "options go to the entrypoint"


def test_what_the_person_says_stands_above_all() -> None:
    asked = plan(image(), slots=3, env=("COG_LOG_LEVEL=debug", "KEY=a=b")).body(BRIDGE, "")["Env"]
    assert [entry for entry in asked if entry.startswith("COG_LOG_LEVEL")] == ["COG_LOG_LEVEL=debug"]
    assert "KEY=a=b" in asked
    assert "COG_MAX_CONCURRENCY=3" in asked


def test_shared_memory_is_large_with_a_gpu_and_as_asked() -> None:
    gpu = gpu_requests("all", {}, is_gpu_here=True)
    assert "ShmSize" not in plan(image()).body(BRIDGE, "")["HostConfig"]
    assert plan(image(), gpus=gpu).body(BRIDGE, "")["HostConfig"]["ShmSize"] == 6 << 30
    assert plan(image(), gpus=gpu, shm=1 << 20).body(BRIDGE, "")["HostConfig"]["ShmSize"] == 1 << 20


# --- what an image says ----------------------------------------------------------------------------------------------


def test_the_digest_of_its_registry_is_the_version() -> None:
    digests = (f"other/model@sha256:{'b' * 64}", f"r8.im/acme/model@sha256:{'c' * 64}")
    for name in ("r8.im/acme/model", "r8.im/acme/model:latest", f"r8.im/acme/model@sha256:{'c' * 64}"):
        assert image(digests=digests).version(name) == "c" * 64
    assert image(digests=digests).version("localhost:5000/acme/model") == "a" * 64
    assert image().version("acme/model") == "a" * 64


def test_slots_come_from_the_variable_then_the_configuration() -> None:
    config = json.dumps({"concurrency": {"max": 4}, "build": {"gpu": True}})
    assert image(run__cog__config=config).slots() == 4
    assert image(run__cog__config=config).wants_gpu()
    assert image(run__cog__config=config, env=("COG_MAX_CONCURRENCY=2",)).slots() == 2
    for odd in ("{", "[]", "null", '{"concurrency": null}', '{"concurrency": {"max": "many"}}'):
        assert image(run__cog__config=odd).slots() == 1
        assert not image(run__cog__config=odd).wants_gpu()


def test_a_schema_that_makes_no_sense_is_none() -> None:
    assert image(run__cog__openapi_schema=json.dumps(TEXT)).schema() == TEXT
    assert image(org__cogmodel__openapi_schema=json.dumps(TEXT)).schema() == TEXT
    assert image(run__cog__openapi_schema="[").schema() is None
    assert image().schema() is None


# --- GPUs ------------------------------------------------------------------------------------------------------------

RUNTIME: dict[str, Any] = {"Runtimes": {"nvidia": {}, "runc": {}}}
CDI: dict[str, Any] = {"Runtimes": {"runc": {}}, "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=all"}]}
ALL = {"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}


@pytest.mark.parametrize(
    ("wanted", "info", "is_here", "expected"),
    [
        ("auto", RUNTIME, True, [ALL]),
        ("auto", RUNTIME, False, []),
        ("auto", {}, True, []),
        ("auto", CDI, True, [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"]}]),
        ("none", RUNTIME, True, []),
        ("all", {}, False, [ALL]),
        ("0,2", RUNTIME, True, [{"Driver": "", "DeviceIDs": ["0", "2"], "Capabilities": [["gpu"]]}]),
        ("1", CDI, True, [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=1"]}]),
    ],
)
def test_gpus_are_asked_for(wanted: str, info: dict[str, Any], is_here: bool, expected: list[Any]) -> None:
    assert gpu_requests(wanted, info, is_gpu_here=is_here) == expected


# --- pulls and logins ------------------------------------------------------------------------------------------------


def test_the_progress_of_a_pull_is_counted() -> None:
    progress = Progress()
    for event in (
        {"status": "Pulling from acme/model", "id": "latest"},
        {"status": "Already exists", "id": "a"},
        {"status": "Pulling fs layer", "id": "b"},
        {"status": "Pulling fs layer", "id": "c"},
        {"status": "Downloading", "id": "b", "progressDetail": {"current": 50_000_000, "total": 100_000_000}},
        {"status": "Downloading", "id": "c", "progressDetail": {"current": 1, "total": 900_000_000}},
    ):
        progress.take(event)
    assert str(progress) == "1 of 3 layers, 50 of 1,000 MB"
    progress.take({"status": "Download complete", "id": "b"})
    progress.take({"status": "Pull complete", "id": "b"})
    assert str(progress) == "2 of 3 layers, 100 of 1,000 MB"


@pytest.mark.anyio
async def test_logins_are_those_of_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    said: list[str] = []
    assert await login_for("r8.im/acme/model", said.append) is None
    helper = tmp_path / "docker-credential-safe"
    helper.write_text('#!/bin/sh\nread asked\necho "{\\"Username\\": \\"$1\\", \\"Secret\\": \\"$asked\\"}"\n')
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    auth = base64.b64encode(b"me:pass:word").decode()
    config = {
        "auths": {
            "r8.im": {"auth": auth},
            "https://index.docker.io/v1/": {"identitytoken": "t"},
            "odd.io": {"auth": "%"},
        },
        "credHelpers": {"kept.example.com": "safe", "gone.example.com": "nobody", "evil.io": "../../bin/sh"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert await login_for("r8.im/acme/model", said.append) == {"username": "me", "password": "pass:word"}
    assert await login_for("acme/model", said.append) == {"identitytoken": "t"}
    assert await login_for("debian", said.append) is None
    kept = {"username": "get", "password": "kept.example.com"}
    assert await login_for("kept.example.com/acme/model", said.append) == kept
    for registry in ("gone.example.com", "evil.io", "odd.io"):
        assert await login_for(f"{registry}/acme/model", said.append) is None
    assert said == []
    (tmp_path / "config.json").write_text("{")
    assert await login_for("r8.im/acme/model", said.append) is None
    assert "without a login" in said[0]


# --- options ---------------------------------------------------------------------------------------------------------


@click.command()
@image_options
def shown(image: ImageSource | None) -> None:
    """Say what the options make."""
    click.echo(repr(image))


def test_the_options_make_a_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FROM_HERE", "a value")
    words = "--image r8.im/a/m:1 --gpus 0,1 --memory 1.5g --shm 512M --network host -v ./weights:/w:ro -v cache:/c"
    words += " --env FROM_HERE --env A=b=c --pull always"
    done = CliRunner().invoke(shown, words.split())
    expected = ImageSource(
        "r8.im/a/m:1",
        gpus="0,1",
        memory=3 << 29,
        shm=512 << 20,
        network="host",
        volumes=(f"{tmp_path}/weights:/w:ro", "cache:/c"),
        env=("FROM_HERE=a value", "A=b=c"),
        pull="always",
    )
    assert done.output.strip() == repr(expected)
    assert CliRunner().invoke(shown, []).output.strip() == "None"
    assert CliRunner().invoke(shown, ["--image", "acme/m"]).output.strip() == repr(ImageSource("acme/m"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", "all"], "--gpus is for an --image"),
        (["--volume", "a:/b"], "--volume is for an --image"),
        (["--image", "-x"], "not the name of an image"),
        (["--image", "a/b", "--memory", "much"], "looks like 512m or 6g"),
        (["--image", "a/b", "--memory", "0"], "looks like 512m or 6g"),
        (["--image", "a/b", "--gpus", "0;1"], "numbers such as 0,1"),
        (["--image", "a/b", "--gpus", "fast"], "numbers such as 0,1"),
        (["--image", "a/b", "-v", "weights"], "of the form source:/path"),
        (["--image", "a/b", "-v", "a:b"], "of the form source:/path"),
        (["--image", "a/b", "--env", "NOT_SET_HERE"], "NOT_SET_HERE is not set here"),
        (["--image", "a/b", "--env", "se-cret=1"], "no name of a variable"),
    ],
)
def test_options_that_make_no_sense(words: list[str], said: str) -> None:
    done = CliRunner().invoke(shown, words)
    assert done.exit_code == 2
    assert said in " ".join(done.output.replace("\n", " ").split())
    assert "se-cret" not in done.output
