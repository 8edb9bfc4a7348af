"""What `cogflare worker install` prints, as those read it who are to run it: systemd and Docker's compose."""

import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from cogflare.cli.workercommands import worker

LOST: dict[str, str | None] = dict.fromkeys(
    ["COGFLARE_SERVER", "COGFLARE_WORKER_TOKEN", "COGFLARE_STATE", "COGFLARE_CACHE", "SSL_CERT_FILE", "DOCKER_HOST"]
)


def install(*words: str, server: str = "http://gw:1", **environment: str) -> Result:
    given = ["install", "--server", server, "--model", "me/m", "--token-file", "token", *words]
    result = CliRunner().invoke(worker, given, env={**LOST, **environment})
    assert result.exit_code == 0, result.output
    return result


def service_of(result: Result) -> dict[str, Any]:
    service: dict[str, Any] = yaml.safe_load(result.stdout)["services"]["cogflare-me-m"]
    return service


def lines(result: Result, name: str) -> list[str]:
    return [line.partition("=")[2] for line in result.stdout.splitlines() if line.startswith(f"{name}=")]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a function, a handler and a token, whose name both formats would take for something else."""
    folder = tmp_path / "50% $HOME"
    folder.mkdir()
    (folder / "token").write_text("cfw_secret\n")
    (folder / "loud.py").write_text("def shout(text: str) -> str:\n    return text.upper()\n")
    monkeypatch.chdir(folder)
    return folder


def interpolated(text: str) -> str:
    """Read a text as compose does, which has no variables here."""
    assert "$" not in text.replace("$$", "")
    return text.replace("$$", "$")


# --- compose ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["http://localhost:8000", "127.0.0.1:8000", "http://[::1]:8000"])
def test_a_server_that_a_container_cannot_reach_is_said(server: str) -> None:
    said = install("--compose", "--function", "loud:shout", server=server)
    assert "the worker will not find its server" in said.stderr
    assert f"http://{socket.gethostname()}:8000" in said.stderr
    assert "network_mode: host" in said.stderr
    assert "Note" not in said.stdout


def test_a_server_that_a_container_can_reach_is_not() -> None:
    assert "server" not in install("--compose", "--function", "loud:shout").stderr
    here = ["--compose", "--image", "a", "--network", "host"]
    assert install(*here, server="http://localhost:8000").stderr == ""
    assert install("--compose", "--url", "http://localhost:5000", server="http://localhost:8000").stderr == ""
    assert install("--image", "a", server="http://localhost:8000").stderr == ""


def test_dollars_and_volumes_of_a_compose_file(folder: Path) -> None:
    places = ["-v", "weights:/weights", "-v", ".:/here:ro"]
    said = install("--compose", "--image", "a", "--env", "PRICE=$5", "--pull", "always", *places)
    service, document = service_of(said), yaml.safe_load(said.stdout)
    assert "PRICE=$5" in [interpolated(variable) for variable in service["environment"]]
    mounted = [interpolated(volume) for volume in service["volumes"]]
    assert mounted == ["agent:/cogflare", "weights:/weights", f"{folder}:/here:ro"]
    assert document["volumes"] == {"agent": {}, "weights": {}}
    assert interpolated(document["secrets"]["cogflare-worker-token"]["file"]) == str(folder / "token")
    assert service["pull_policy"] == "always"


def test_a_container_comes_up_with_its_machine_under_the_name_of_it() -> None:
    service = service_of(install("--compose", "--image", "a"))
    assert service["restart"] == "unless-stopped"
    (command,) = service["command"]
    words = shlex.split(interpolated(command))
    assert words[words.index("--name") + 1] == socket.gethostname()
    (command,) = service_of(install("--compose", "--image", "a", "--name", "attic"))["command"]
    assert command.count("--name") == 1


@pytest.mark.parametrize("source", [["--function", "loud:shout"], ["--runpod-handler", "loud.py"]])
def test_a_function_has_the_packages_of_its_image(source: list[str]) -> None:
    said = install("--compose", *source)
    (command,) = service_of(said)["command"]
    assert "--python python3" in command
    assert "name an image with them" in said.stderr


def test_a_certificate_that_is_trusted_here_goes_along(tmp_path: Path) -> None:
    (file := tmp_path / "own.pem").touch()
    service = service_of(install("--compose", "--image", "a", server="https://gw", SSL_CERT_FILE=str(file)))
    assert f"{file}:/cogflare-server.pem:ro" in service["volumes"]
    assert "SSL_CERT_FILE=/cogflare-server.pem" in service["environment"]
    plain = service_of(install("--compose", "--image", "a", SSL_CERT_FILE=str(file)))
    assert plain["environment"] == ["COGFLARE_HOME=/cogflare"]


# --- systemd ----------------------------------------------------------------------------------------------------------


def test_a_unit_in_a_folder_with_an_odd_name(folder: Path) -> None:
    said = install("--function", "loud:shout")
    assert lines(said, "WorkingDirectory") == [str(folder).replace("%", "%%")]
    (command,) = lines(said, "ExecStart")
    assert f'"{folder}/token"'.replace("%", "%%").replace("$", "$$") in command


def test_a_unit_has_what_the_environment_said(tmp_path: Path) -> None:
    around = {"COGFLARE_CACHE": str(tmp_path), "COGFLARE_KEEP_MODEL_S": "0", "DOCKER_HOST": "unix:///a b%"}
    said = install("--image", "a", **around)
    (command,) = lines(said, "ExecStart")
    assert f"--cache {tmp_path} --keep-model 0.0" in command
    assert lines(said, "Environment") == ['"DOCKER_HOST=unix:///a b%%"']
    secure = install("--image", "a", server="https://gw", SSL_CERT_FILE="/own.pem")
    assert lines(secure, "Environment") == ["SSL_CERT_FILE=/own.pem"]


def test_a_variable_that_a_service_will_not_have_is_said() -> None:
    said = install("--image", "a", "--env", "HF_TOKEN", "--env", "A=b", HF_TOKEN="hidden")
    assert "HF_TOKEN=VALUE" in said.stderr
    assert "EnvironmentFile=" in said.stderr
    assert "hidden" not in said.output
    assert install("--compose", "--image", "a", "--env", "HF_TOKEN", HF_TOKEN="hidden").stderr == ""
