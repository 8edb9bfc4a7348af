"""What stands beside `cogflare worker`: its group, `doctor` on the machine, and the files that `install` prints."""

import http.server
import json
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from cogflare import __version__
from cogflare.agent.identity import claim_state
from cogflare.agent.runners.dockerimage import WORKER_LABEL
from cogflare.agent.runners.handover import Handover, Takeover
from cogflare.agent.runners.handover import Server as LeftServer
from cogflare.agent.runners.process import Mark
from cogflare.agent.sources import FolderSource
from cogflare.cli import worker as run
from cogflare.cli.main import cogflare
from cogflare.cli.workercommands import worker
from support.docker import Dockerd, image_of
from support.processes import Server

Findings = dict[str, dict[str, str]]


def invoke(*arguments: str, **environment: str) -> Result:
    clean = {"COGFLARE_SERVER": None, "COGFLARE_WORKER_TOKEN": None, "COGFLARE_STATE": None, "COGFLARE_CACHE": None}
    return CliRunner().invoke(worker, list(arguments), env={**clean, **environment})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "a model"
    folder.mkdir()
    (folder / "cog.yaml").write_text("predict: predict.py:Predictor\n")
    return folder


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    (file := tmp_path / "token").write_text("cfw_secret\n")
    return file


# --- the group --------------------------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []

    async def run_worker(options: Any) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(run, "run_worker", run_worker)
    return seen


@pytest.mark.parametrize("first", [[], ["run"]])
def test_running_is_what_it_does_without_being_told(
    started: list[Any], model: Path, token_file: Path, first: list[str]
) -> None:
    options = ["--server", "http://127.0.0.1:9", "--model", "me/m", "--token-file", str(token_file)]
    result = invoke(*first, str(model), *options)
    assert result.exit_code == 0, result.output
    assert [given.source for given in started] == [FolderSource(model)]


def test_options_may_come_first_and_a_folder_may_be_called_like_a_command(
    started: list[Any], tmp_path: Path, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "doctor").mkdir()
    (tmp_path / "doctor" / "cog.yaml").write_text("predict: predict.py:Predictor\n")
    monkeypatch.chdir(tmp_path)
    options = ["--server", "http://127.0.0.1:9", "--model", "me/m", "--token-file", str(token_file)]
    assert invoke("./doctor", *options).exit_code == 0
    assert invoke(*options, "doctor").exit_code == 0
    assert [given.source.folder.name for given in started] == ["doctor", "doctor"]


def test_the_help_shows_the_options_and_the_commands() -> None:
    said = CliRunner().invoke(cogflare, ["worker", "--help"]).output
    for word in ("--token-file", "--function", "doctor", "install"):
        assert word in said
    usage = said.splitlines()[:2]
    assert usage[0].endswith(" worker [run] [OPTIONS] [FOLDER]")
    assert usage[1].endswith(" worker doctor|install [OPTIONS]")
    assert "..." not in said, "what the commands do is said in whole"


def test_the_agents_own_command_needs_nothing_of_the_server() -> None:
    """The machine that joins has only the agent's packages: what is not among them must not be imported."""
    pins = (Path(__file__).parents[2] / "src/cogflare/agent/requirements.txt").read_text()
    code = "import sys, cogflare.cli.workergroup; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    for module, package in {"apsw": "apsw", "asyncpg": "asyncpg", "rich": "rich", "structlog": "structlog"}.items():
        assert f"\n{package}==" not in pins
        assert module not in loaded
    assert not [name for name in loaded if name.startswith(("cogflare.engine", "cogflare.store", "cogflare.app"))]
    done = subprocess.run(
        [sys.executable, "-m", "cogflare.cli.workergroup", "--version"], capture_output=True, text=True, check=True
    )
    assert __version__ in done.stdout


# --- doctor -----------------------------------------------------------------------------------------------------------


def doctor(tmp_path: Path, *arguments: str, **environment: str) -> tuple[int, Findings]:
    places = ["--state", str(tmp_path / "state"), "--cache", str(tmp_path / "cache")]
    nowhere = {"DOCKER_HOST": f"unix://{tmp_path}/no.sock"}
    result = invoke("doctor", "--json", *places, *arguments, **{**nowhere, **environment})
    assert "Traceback" not in result.output, result.output
    findings = [json.loads(line) for line in result.stdout.splitlines()]
    return result.exit_code, {finding["name"]: finding for finding in findings}


def states(findings: Findings) -> dict[str, str]:
    return {name: finding["state"] for name, finding in findings.items()}


def test_a_machine_that_can_be_a_worker(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, findings = doctor(tmp_path, "--server", server.url, COGFLARE_WORKER_TOKEN=server.token("worker"))
    assert code == 0
    found = states(findings)
    assert "failed" not in found.values()
    assert {found[name] for name in ("python", "server", "token", "versions", "disk", "workers")} == {"ok"}
    # This machine may have none of both; then the table says so, and what to do.
    for name in ("gpu", "docker"):
        assert (findings[name]["state"] == "ok") != bool(findings[name]["todo"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("https://dead.invalid", "its name is not known here (DNS)"),
        ("http://127.0.0.1:9", "the connection was refused"),
        ("SERVER", "does not do so as a Cog server (HTTP 404)"),
    ],
)
def test_a_model_that_is_not_there(server: Server, tmp_path: Path, url: str, word: str) -> None:
    code, findings = doctor(tmp_path, "--url", url.replace("SERVER", server.url))
    assert (code, findings["model"]["state"]) == (1, "failed")
    assert word in findings["model"]["detail"]
    assert "--url" in findings["model"]["todo"]


def test_without_a_server_the_machine_is_looked_at(tmp_path: Path) -> None:
    code, findings = doctor(tmp_path)
    assert (code, findings["server"]["state"]) == (0, "warning")
    assert "--server" in findings["server"]["todo"]


@pytest.mark.parametrize(
    ("secret", "word"), [("cfw_unknown", "does not know this worker token"), ("API", "not a worker token")]
)
def test_a_token_that_the_server_does_not_take(server: Server, tmp_path: Path, secret: str, word: str) -> None:
    token = server.token() if secret == "API" else secret
    code, findings = doctor(tmp_path, "--server", server.url, "--token", token)
    assert (code, findings["token"]["state"]) == (1, "failed")
    assert word in findings["token"]["detail"]
    assert token not in json.dumps(findings)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    code, findings = doctor(tmp_path, "--server", "http://127.0.0.1:9", "--token", "cfw_x")
    assert (code, findings["server"]["state"]) == (1, "failed")
    assert "the connection was refused" in findings["server"]["detail"]
    assert "token" not in findings


def test_a_server_whose_name_nobody_knows(tmp_path: Path) -> None:
    code, findings = doctor(tmp_path, "--server", "https://dead.invalid")
    assert (code, findings["server"]["state"]) == (1, "failed")
    assert "its name is not known here (DNS)" in findings["server"]["detail"]


class _Other(http.server.BaseHTTPRequestHandler):
    """Something else that answers, as its class says."""

    content = b"<html>\x1b[2Jhello</html>"

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Older(_Other):
    content = b'{"status": "ok", "version": "0.0.9\\u001b[2J"}'


@pytest.fixture
def other(request: pytest.FixtureRequest) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), request.param) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


@pytest.mark.parametrize("other", [_Other], indirect=True)
def test_something_else_at_that_address(tmp_path: Path, other: str) -> None:
    code, findings = doctor(tmp_path, "--server", other)
    assert (code, findings["server"]["state"]) == (1, "failed")
    assert "not like a Cogflare server" in findings["server"]["detail"]


@pytest.mark.parametrize("other", [_Older], indirect=True)
def test_a_server_of_another_version(tmp_path: Path, other: str) -> None:
    _, findings = doctor(tmp_path, "--server", other)
    assert findings["versions"]["state"] == "warning"
    assert "join line" in findings["versions"]["todo"]
    shown = invoke("doctor", "--server", other, "--state", str(tmp_path), "--cache", str(tmp_path)).output
    assert "\x1b" not in shown


def test_what_a_worker_has_left(tmp_path: Path) -> None:
    state = claim_state(tmp_path / "state", "http://x", "me/m", lambda: 0)
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        mark = Mark.of(sleeper.pid)
        assert mark is not None
        Takeover(state.path, frozenset()).leave(Handover("x", 1, "s", server=LeftServer(mark, 1, "x")), print)
        (state.path / "finishes-1.json").write_text("[]")
        running = doctor(tmp_path)[1]
        assert running["workers"]["detail"].startswith("1 of 1")
        assert not {"left model", "unsent"} & running.keys()
        state.close()
        left = doctor(tmp_path)[1]
        assert left["workers"]["detail"].startswith("0 of 1")
        assert str(sleeper.pid) in left["left model"]["detail"]
        assert left["unsent"]["detail"].startswith("1 file ")
    finally:
        sleeper.kill()
        sleeper.wait()
    assert "left model" not in doctor(tmp_path)[1]


def test_containers_without_their_worker(dockerd: Dockerd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(worker: str) -> str:
        body = {"Image": image_of("noop"), "Labels": {WORKER_LABEL: worker}, "HostConfig": {"NetworkMode": "host"}}
        container: str = dockerd.http.post("/containers/create", json=body).json()["Id"]
        return container

    here = {"DOCKER_HOST": dockerd.url}
    assert doctor(tmp_path, **here)[1]["containers"]["state"] == "ok"
    with claim_state(tmp_path / "state", "http://x", "me/m", lambda: 0) as state:
        containers = [made(state.worker), made("0" * 26)]
        try:
            code, findings = doctor(tmp_path, **here)
        finally:
            for container in containers:
                dockerd.remove(container)
    assert (code, findings["docker"]["state"], findings["containers"]["state"]) == (0, "ok", "warning")
    assert findings["containers"]["detail"].startswith("1 of workers")
    assert "0" * 26 in findings["containers"]["detail"]
    assert state.worker not in findings["containers"]["detail"]


def test_a_cache_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, findings = doctor(tmp_path, "--cache", str(tmp_path / "file" / "cache"))
    assert (code, findings["disk"]["state"]) == (1, "failed")


def test_a_state_that_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, findings = doctor(tmp_path, "--state", str(tmp_path / "file" / "state"))
    assert (code, findings["state"]["state"]) == (1, "failed")
    assert "--state" in findings["state"]["todo"]


# --- install ----------------------------------------------------------------------------------------------------------


def test_a_unit_for_systemd(model: Path, token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    words = [model.name, "--server", "gateway.example.com", "--model", "me/m", "--token-file", "token"]
    result = invoke("install", *words, "--name", '50% "fast" $x', "--slots", "2", "--tag", "a", "--tag", "b", "--json")
    assert result.exit_code == 0, result.output
    (command,) = [line for line in result.output.splitlines() if line.startswith("ExecStart=")]
    assert f'"{model}"' in command
    assert f"--token-file {token_file}" in command
    assert '--name "50%% \\"fast\\" $$x"' in command
    assert command.endswith("--tag a --tag b --json --server https://gateway.example.com --model me/m")
    assert "cfw_secret" not in result.output
    assert "KillMode=process" in result.output


def test_systemd_takes_the_unit(model: Path, token_file: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    words = [str(model), "--server", "http://127.0.0.1:9", "--model", "me/m", "--token-file", str(token_file)]
    (file := tmp_path / "cogflare-me-m.service").write_text(invoke("install", *words, "--name", 'a "b" $c').output)
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def composed(*words: str) -> dict[str, Any]:
    result = invoke("install", "--compose", "--server", "http://gw:1", "--model", "me/m", *words)
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = yaml.safe_load(result.stdout)
    return document


def inner(service: dict[str, Any]) -> list[str]:
    """Return the words that the script in the container gets."""
    (command,) = service["command"]
    assert "$$script" in command
    return shlex.split(command.replace("$$", "$").partition("exec ")[2])[3:]


def test_a_compose_file_for_a_folder(model: Path, token_file: Path) -> None:
    document = composed("--token-file", str(token_file), str(model), "--slots", "2", "--name", "it's $5")
    service = document["services"]["cogflare-me-m"]
    assert f"{model}:/model" in service["volumes"]
    assert inner(service)[:3] == ["join", "-", "me/m"]
    assert inner(service)[3:8] == ["/model", "--slots", "2", "--name", "it's $5"]
    assert document["secrets"] == {"cogflare-worker-token": {"file": str(token_file)}}
    assert "cfw_secret" not in json.dumps(document)


def test_a_compose_file_for_a_handler_a_function_and_a_server(
    tmp_path: Path, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "handler.py").write_text("")
    monkeypatch.chdir(tmp_path)
    token = ["--token-file", str(token_file)]
    handler = composed(*token, "--runpod-handler", "handler.py")["services"]["cogflare-me-m"]
    assert inner(handler)[3:5] == ["--runpod-handler", "/model/handler.py"]
    assert f"{tmp_path}:/model" in handler["volumes"]
    function = composed(*token, "--function", "handler:run")["services"]["cogflare-me-m"]
    assert inner(function)[3:5] == ["--function", "handler:run"]
    there = composed(*token, "--url", "http://localhost:5000")["services"]["cogflare-me-m"]
    assert (inner(there)[3:5], there["network_mode"]) == (["--url", "http://localhost:5000"], "host")


def test_a_compose_file_for_an_image(token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = [
        "--image",
        "r8.im/me/m:1",
        "--gpus",
        "0,1",
        "--shm",
        "2g",
        "--memory",
        "8g",
        "--env",
        "A=b=c",
        "--env",
        "SECRET",
    ]
    monkeypatch.setenv("SECRET", "hidden")
    document = composed("--token-file", str(token_file), *image, "-v", f"{tmp_path}:/weights:ro", "--slots", "2")
    service = document["services"]["cogflare-me-m"]
    assert inner(service)[:5] == ["join", "-", "me/m", "--slots", "2"]
    assert "--image" not in inner(service)
    assert (service["image"], service["shm_size"], service["mem_limit"]) == ("r8.im/me/m:1", 2 << 30, 8 << 30)
    assert service["environment"][1:] == ["A=b=c", "SECRET"]
    assert f"{tmp_path}:/weights:ro" in service["volumes"]
    assert "hidden" not in json.dumps(document)
    (gpu,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert gpu["device_ids"] == ["0", "1"]


GOOD = ["--server", "http://x", "--model", "me/m", "--token-file", "FILE", "FOLDER"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--server", "http://x", "--model", "me/m", "FOLDER"], "--token-file"),
        (["--server", "http://x", "--model", "me/m", "--token", "cfw_secret", "FOLDER"], "--token-file"),
        (["--model", "me/m", "--token-file", "FILE", "FOLDER"], "--server"),
        (["--server", "http://x", "--token-file", "FILE", "FOLDER"], "--model"),
        (
            ["--server", "http://x", "--model", "me/m", "--token-file", "FILE", "FOLDER", "--url", "http://y"],
            "one model",
        ),
        (["--server", "http://x", "--model", "me/m", "--token-file", "FILE", "FOLDER", "--nonsense"], "--nonsense"),
        (["--server", "http://x", "--model", "me/m", "--token-file", "FILE", "--name", "a\nb", "FOLDER"], "characters"),
    ],
)
def test_what_no_worker_could_run_is_not_installed(
    model: Path, token_file: Path, words: list[str], problem: str
) -> None:
    given = [word.replace("FOLDER", str(model)).replace("FILE", str(token_file)) for word in words]
    result = invoke("install", *given)
    assert result.exit_code == 2
    assert problem in result.output
    assert "cfw_secret" not in result.output


def test_commands_do_not_load_the_client_of_docker() -> None:
    look = "import sys, cogflare.cli.main; print(sorted({'aiodocker', 'aiohttp', 'pynvml'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout == "[]\n"
