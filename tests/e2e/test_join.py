"""One line on a machine that has nothing but Python: a worker. And the same line where something is missing."""

import os
import re
import shlex
import shutil
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.boxes import PATH, Box, Command, need_debian
from support.processes import Server, Stage, until
from support.runners import MODELS

INSTALL_S = 240.0  # with its downloads
FUNCTION = '''
def shout(text: str) -> str:
    """Say it louder."""
    return text.upper()
'''
AGENTS = "root/.local/share/cogflare/agent"


@pytest.fixture(scope="module")
def server(shared_stage: Stage) -> Server:
    return shared_stage.server()


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A bare machine; the tests of this file use it one after the other, as a person would."""
    need_debian()
    box = Box(tmp_path_factory.mktemp("box") / "bare")
    (box.root / "root/loud.py").write_text(FUNCTION)
    yield box
    box.close()


@pytest.fixture(scope="module")
def token(shared_stage: Stage, server: Server) -> str:
    return shared_stage.plant(server.token("worker"))


def line(server: Server, words: str) -> str:
    return f"curl -fsSL {server.url}/join | sh -s -- {words}"


def online(server: Server, name: str, command: Command) -> dict[str, Any]:
    """Wait until the worker is connected and return it."""

    def look() -> dict[str, Any] | None:
        assert command.is_running, command.log()
        row = server.workers().get(name, {})
        return row if row.get("state") == "online" else None

    found = until(look, f"worker {name}", INSTALL_S)
    assert found is not None
    return found


def ended(server: Server, model: str, **given: Any) -> dict[str, Any]:
    order = {"input": given}
    made = server.ask("POST", f"/v1/models/{model}/predictions", json=order)
    return server.ended(str(made["id"]))


def agent_of(command: Command) -> int:
    """Return the agent's process."""
    found = [pid for pid, words in command.processes().items() if "cogflare.cli.workergroup" in words]
    assert len(found) == 1, command.processes()
    return found[0]


def rows(said: str) -> dict[str, str]:
    """Return the states in the preflight table by name."""
    table = [text.split() for text in said.splitlines() if text.startswith("  ") and not text.strip().startswith("->")]
    return {words[0]: words[1] for words in table}


def agents(box: Box) -> list[str]:
    return sorted(path.parent.name for path in (box.root / AGENTS).glob("*/.complete"))


# --- a worker ---------------------------------------------------------------------------------------------------------


def test_one_line_makes_a_bare_machine_a_worker(server: Server, box: Box, token: str) -> None:
    with box.start("first", line(server, f"{token} me/loud --function loud:shout --name first")) as command:
        online(server, "first", command)
        said = command.log()
        assert rows(said) == {"python": "ok", "gpu": "none", "docker": "none", "disk": "ok", "server": "ok"}
        assert "models run on the CPU; for an NVIDIA GPU, install its driver" in said
        assert "only images need it (--image)" in said
        assert ended(server, "me/loud", text="hey")["output"] == "HEY"
        assert token not in said
        # The line that a person typed shows it; what it has become does not.
        agent = agent_of(command)
        assert token not in command.processes()[agent]
        assert token.encode() not in Path(f"/proc/{agent}/environ").read_bytes()
        kept = list((box.root / "root/.local/share/cogflare/tokens").iterdir())
        assert [(file.read_text().strip(), stat.S_IMODE(file.stat().st_mode)) for file in kept] == [(token, 0o600)]
        os.kill(agent, signal.SIGTERM)
        assert command.join() == 0


def test_the_same_line_again_uses_what_is_there(server: Server, box: Box, token: str) -> None:
    before = agents(box)
    assert len(before) == 1
    with box.start("again", line(server, f"{token} me/loud --function loud:shout --name again")) as command:
        online(server, "again", command)
        assert "Installing" not in command.log()
        assert ended(server, "me/loud", text="again")["output"] == "AGAIN"
    assert agents(box) == before


def test_the_command_that_is_left_behind_examines_the_machine(server: Server, box: Box, token: str) -> None:
    worker, tokens = "/root/.local/share/cogflare/bin/cogflare-worker", "/root/.local/share/cogflare/tokens"
    code, said = box.run("doctor", f"{worker} doctor --server {server.url} --token-file {tokens}/*")
    assert code == 0, said
    assert "the server takes it" in said
    assert "gpu          warning" in said
    code, said = box.run("doctor-line", line(server, f"{token} me/loud doctor"))
    assert code == 0, said
    assert "this machine can be a worker" in said
    code, said = box.run("install-line", line(server, f"{token} me/loud install --function loud:shout"))
    assert code == 0, said
    assert f"ExecStart={worker} --function loud:shout" in said
    assert token not in said


def test_an_install_that_was_killed_is_done_anew_and_two_lines_share_one(server: Server, box: Box, token: str) -> None:
    (home,) = (box.root / AGENTS).glob("*/.complete")
    home.unlink()
    (home.parent / "bin/python").unlink()
    words = [line(server, f"{token} me/loud --function loud:shout --name {name}") for name in ("twin-1", "twin-2")]
    with box.start("twin-1", words[0]) as one, box.start("twin-2", words[1]) as two:
        online(server, "twin-1", one)
        online(server, "twin-2", two)
        assert sorted("Installing" in command.log() for command in (one, two)) == [False, True]
    assert home.exists()


@pytest.mark.parametrize("means", ["uv", "pip"])
def test_a_machine_whose_python_has_no_venv(server: Server, box: Box, token: str, means: str) -> None:
    """With uv, or with pip, which fetches the pinned uv."""
    (home,) = (path.parent for path in (box.root / AGENTS).glob("*/.complete"))
    tools = box.root / "opt/uv", box.root / "opt/pip"
    if not tools[0].exists():
        shutil.copytree(home / "bin", tools[0], symlinks=True)
        shutil.copytree(home / "lib/python3.11/site-packages/pip", tools[1] / "pip")
        for file in tools[0].iterdir():
            if file.name != "uv":
                file.unlink()
    (home / ".complete").unlink()
    found = {"uv": {"PATH": f"/opt/uv:{PATH}"}, "pip": {"PYTHONPATH": "/opt/pip"}}[means]
    words = line(server, f"{token} me/loud --function loud:shout --name {means}")
    with box.start(means, words, found, hidden="/usr/lib/python3.11/ensurepip") as command:
        online(server, means, command)
        assert re.search(rf"python +ok +/usr/bin/python3 3\.\d+\.\d+, {means}\n", command.log())
        assert not (home / "bin/pip").exists()


def test_the_folder_that_the_line_is_run_in(server: Server, box: Box, token: str) -> None:
    """Cog and the model's packages go into an environment apart from the agent's."""
    shutil.copytree(MODELS / "tokens", box.root / "root/tokens")
    with box.start("folder", f"cd tokens && {line(server, f'{token} me/folder --name folder')}") as command:
        online(server, "folder", command)
        assert rows(command.log())["model"] == "ok"
        assert ended(server, "me/folder", count=3)["status"] == "succeeded"


def test_what_the_compose_file_runs(server: Server, box: Box, token: str) -> None:
    """The container's command, on a machine as that of the file; the daemon is not needed to see that it works."""
    (box.root / "run/secrets").mkdir(exist_ok=True)
    (box.root / "run/secrets/cogflare-worker-token").write_text(f"{token}\n")
    words = ["--server", server.url, "--model", "me/loud", "--token-file", "loud.py", "--function", "loud:shout"]
    worker = "/root/.local/share/cogflare/bin/cogflare-worker"
    code, said = box.run("compose-file", f"{worker} install --compose {shlex.join(words)} --name compose 2>/dev/null")
    assert code == 0, said
    (service,) = yaml.safe_load(said)["services"].values()
    (command,) = (text.replace("$$", "$") for text in service["command"])
    home = "/root/.local/share/cogflare"
    places = {"COGFLARE_HOME": home}
    with box.start("compose", f"sh -c {shlex.quote(command)}", places) as started:
        online(server, "compose", started)
        assert token not in started.processes()[agent_of(started)]
        assert ended(server, "me/loud", text="composed")["output"] == "COMPOSED"


def test_an_image_is_what_runs_where_there_is_docker(
    server: Server, box: Box, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket of Docker's is enough for the choice; that nobody listens there, the worker finds out."""
    place = box.root / "run/docker.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(place.parent)  # the whole path may be too long for a socket
        listening.bind(place.name)
    code, said = box.run("docker", line(server, f"{token} me/imaged --name docker"))
    place.unlink()
    assert code == 1
    assert rows(said)["docker"] == "ok"
    assert "the image r8.im/me/imaged" in said
    assert "Docker" in said.splitlines()[-1]


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Box]:
    """A rented machine with a stock Cog image."""
    need_debian()
    pod = Box(tmp_path / "pod")
    pod.add_cog("tokens")
    yield pod
    pod.close()


def test_a_pod_with_a_stock_cog_image(server: Server, token: str, pod: Box) -> None:
    """The start command of a pod: no curl in the image, the token in the environment, and no word on what to run."""
    fetch = f"import urllib.request as u; print(u.urlopen('{server.url}/join').read().decode())"
    (pod.root / "usr/bin/curl").unlink()
    environment = {"COG_PREDICT_TYPE_STUB": "predict.py:Runner", "COGFLARE_WORKER_TOKEN": token, "PYTHONPATH": "/src"}
    command = f'cd /src && python3 -c "{fetch}" | sh -s -- - me/tokens --name pod'
    with pod.start("pod", command, environment) as started:
        online(server, "pod", started)
        assert rows(started.log())["model"] == "ok"
        assert ended(server, "me/tokens", count=3)["status"] == "succeeded"
        agent = agent_of(started)
        assert token.encode() not in Path(f"/proc/{agent}/environ").read_bytes()
        # The model has the image's packages and the agent its own: neither sees the other's.
        python = f"/{AGENTS}/{agents(pod)[0]}/bin/python"
        assert pod.run("agents", f"{python} -c 'import cog'")[0] == 1
        assert pod.run("images", "python -c 'import cogflare'")[0] == 1
        assert pod.run("image", "python -c 'import cog'")[0] == 0


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "last"),
    [
        ("", 2, "say with which token, and which model: curl -fsSL "),
        ("TOKEN", 2, "say with which token, and which model: curl -fsSL "),
        ("TOKEN loud", 2, "the second word is not OWNER/MODEL: curl -fsSL "),
        ("me/loud TOKEN", 2, "the second word is not OWNER/MODEL: curl -fsSL "),
        ("TOKEN OWNER/MODEL", 2, "put the name of a model in the place of OWNER/MODEL"),
        ("'TOK EN' me/loud", 2, "the token has characters that no token has; was it copied whole?"),
        ("- me/loud", 2, "COGFLARE_WORKER_TOKEN holds no worker token"),
        ("cfw_00000000 me/loud --function loud:shout", 2, "does not take this worker token"),
        ("API me/loud --function loud:shout", 2, "does not take this worker token"),
        ("TOKEN me/loud", 2, "say what to run: a FOLDER with cog.yaml"),
        ("TOKEN me/loud --slots 2", 2, "say what to run: a FOLDER with cog.yaml"),
    ],
)
def test_what_is_wrong_with_the_line(server: Server, box: Box, token: str, words: str, code: int, last: str) -> None:
    given = words.replace("TOKEN", token).replace("API", server.token())
    ended_with, said = box.run("refused", line(server, given))
    assert ended_with == code, said
    assert said.splitlines()[-1].startswith("cogflare: ")
    assert last in said.splitlines()[-1]
    assert token not in said


def test_a_folder_like_that_of_an_image_without_cog(server: Server, box: Box, token: str) -> None:
    (box.root / "src").mkdir()
    (box.root / "src/cog.yaml").write_text("predict: predict.py:Predictor\n")
    code, said = box.run("no-cog", line(server, f"{token} me/loud"))
    assert (code, rows(said)["model"]) == (2, "missing")


def test_a_model_that_the_token_is_not_for(server: Server, box: Box) -> None:
    order = {"kind": "worker", "name": "friend", "account": "me", "models": ["me/quiet"]}
    friends = server.ask("POST", "/v1/tokens", token=server.admin_token, json=order)["token"]
    code, said = box.run("stranger", line(server, f"{friends} me/loud --function loud:shout"))
    assert code == 2, said
    assert "me/quiet" in said.splitlines()[-1]
    assert friends not in said


def test_a_machine_without_python(server: Server, box: Box, token: str) -> None:
    path = box.tools_only()
    code, said = box.run("no-python", line(server, f"{token} me/loud"), {"PATH": path})
    assert code == 1
    assert rows(said)["python"] == "missing"
    assert "apt-get install python3 python3-venv" in said
    assert said.splitlines()[-1] == "cogflare: no Python that can run the agent; the table says what to do"


def test_a_home_that_cannot_be_written_to(server: Server, box: Box, token: str) -> None:
    code, said = box.run("no-home", line(server, f"{token} me/loud"), {"COGFLARE_HOME": "/proc/none"})
    assert code == 1
    assert said.splitlines()[-1] == "cogflare: /proc/none cannot be written to"


def test_a_server_that_does_not_answer_the_machine(server: Server, box: Box, token: str) -> None:
    """The address in the script is the server's own word, and may be one that only others can reach."""
    moved = f"curl -fsSL {server.url}/join | sed s/127.0.0.1:/127.0.0.2:1/ | sh -s -- {token} me/loud"
    code, said = box.run("moved", moved)
    assert code == 1
    assert "does not answer this machine" in said.splitlines()[-1]
    assert "public_url" in said


def test_a_server_that_was_changed_meanwhile(server: Server, box: Box, token: str) -> None:
    """What the script was written for is what it installs."""
    other = "sed 's/^        fetch \\(.*\\) .*$/        fetch \\1 0000/; s#^    agent=.*#    agent=$base/agent/other#'"
    command = f"curl -fsSL {server.url}/join | {other} | sh -s -- {token} me/loud --function loud:shout"
    code, said = box.run("changed", command)
    assert code == 1
    assert "did not come whole, or was changed meanwhile" in said.splitlines()[-1]
    assert not list((box.root / AGENTS / "other").glob("bin/*"))
