"""What a machine gets that joins: the script with this server's address in it, the wheel, and the pinned packages."""

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import packages_distributions
from io import BytesIO
from pathlib import Path

import httpx2
import pytest

from cogflare import __version__
from cogflare.api.wheel import pack
from cogflare.app import build
from cogflare.settings import Settings

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src"
REQUIREMENTS = SOURCES / "cogflare" / "agent" / "requirements.txt"
WHEEL = f"cogflare-{__version__}-py3-none-any.whl"

pytestmark = pytest.mark.anyio


def client(tmp_path: Path, public_url: str | None = None) -> httpx2.AsyncClient:
    """Return a client of a real application, of which nothing is started: nothing here needs its store."""
    app = build(Settings(data=str(tmp_path / "data"), public_url=public_url)).app
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="https://gateway.example.net:8443")


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with client(tmp_path) as http:
        yield http


@pytest.fixture
async def script(http: httpx2.AsyncClient) -> str:
    return (await http.get("/join")).text


# --- the script -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mount", ["/join", "/v1/join", "/v1/v1/join", "/join/"])
async def test_anybody_gets_the_script_with_the_address_that_was_dialled(http: httpx2.AsyncClient, mount: str) -> None:
    answer = await http.get(mount)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/x-shellscript")
    assert "\nserver='https://gateway.example.net:8443'\n" in answer.text
    assert not re.search(r"@[A-Z0-9_]+@", answer.text)


async def test_the_configured_address_stands_above_the_dialled_one(tmp_path: Path) -> None:
    async with client(tmp_path, public_url="https://example.com/gpus/") as http:
        answer = await http.get("/join", headers={"Host": "evil.example"})
    assert "\nserver='https://example.com/gpus'\n" in answer.text
    assert "evil" not in answer.text


@pytest.mark.parametrize(
    "host",
    [
        "a'; touch /tmp/owned; '",
        "a$(touch${IFS}owned)",
        "a`id`",
        "a\\",
        'a"b',
        "a b",
        "a\tb",
        "a@b",
        "a/../b",
        "a|b",
        "a&b",
        "a\u00e9",
        "-a",
        "",
    ],
)
async def test_a_hostile_host_never_gets_into_the_script(http: httpx2.AsyncClient, host: str) -> None:
    answer = await http.get("/join", headers={b"Host": host.encode()})
    assert answer.status_code == 400
    assert "#!/bin/sh" not in answer.text


async def test_forwarding_headers_of_strangers_do_not_count(http: httpx2.AsyncClient) -> None:
    stranger = {"X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"}
    answer = await http.get("/join", headers=stranger)
    assert "evil" not in answer.text


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "busybox"])
async def test_shells_understand_the_script(script: str, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command = [shell, "sh", "-n"] if shell == "busybox" else [shell, "-n"]
    done = subprocess.run(command, input=script, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


async def test_shellcheck_has_nothing_to_say(script: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", "-s", "sh", "-"], input=script, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


async def test_of_a_script_that_was_cut_off_nothing_runs(script: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    lines = script.splitlines(keepends=True)
    assert lines[-1] == 'main "$@"\n'
    for length in range(0, len(script) - len(lines[-1]), 97):
        done = subprocess.run(
            ["sh", "-s", "--", "cfw_0", "me/shout"],
            input=script[:length],
            text=True,
            capture_output=True,
            env={"HOME": str(home), "PATH": os.environ["PATH"]},
            check=False,
        )
        assert "This machine" not in done.stderr + done.stdout, length
        assert not list(home.iterdir()), length


async def test_the_script_is_for_this_content(http: httpx2.AsyncClient, script: str) -> None:
    for name in (WHEEL, "requirements.txt"):
        answer = await http.get(f"/join/{name}")
        assert answer.status_code == 200
        assert hashlib.sha256(answer.content).hexdigest() in script
    assert (await http.get("/join/requirements.txt")).content == REQUIREMENTS.read_bytes()


@pytest.mark.parametrize("name", ["cogflare-0.0.1-py3-none-any.whl", "join.sh", "..%2Fsettings.py", "x/y"])
async def test_nothing_else_is_served(http: httpx2.AsyncClient, name: str) -> None:
    answer = await http.get(f"/join/{name}")
    assert answer.status_code == 404


async def test_what_looks_alike_is_not_open(http: httpx2.AsyncClient) -> None:
    for path in ("/joint", "/v1/joinx", "/worker/v1/join"):
        assert (await http.get(path)).status_code == 401


# --- the wheel --------------------------------------------------------------------------------------------------------


async def test_the_wheel_is_whole_and_has_no_times(http: httpx2.AsyncClient) -> None:
    content = (await http.get(f"/join/{WHEEL}")).content
    archive = zipfile.ZipFile(BytesIO(content))
    names = archive.namelist()
    info = f"cogflare-{__version__}.dist-info"
    record = archive.read(f"{info}/RECORD").decode().splitlines()
    assert [line.split(",")[0] for line in record] == names
    for line in record[:-1]:
        name, digest, size = line.split(",")
        data = archive.read(name)
        shown = urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        assert (digest, int(size)) == (f"sha256={shown}", len(data))
    assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert not [name for name in names if name.endswith(".pyc") or "/." in name]
    assert {"cogflare/agent/main.py", "cogflare/agent/requirements.txt", "cogflare/api/join.sh"} <= set(names)


def test_what_was_installed_from_the_wheel_makes_the_same_wheel(tmp_path: Path) -> None:
    wheel = pack()
    assert pack() == wheel
    file = tmp_path / wheel.name
    file.write_bytes(wheel.content)
    code = "import sys; sys.path.insert(0, sys.argv[1]); from cogflare.api.wheel import pack; print(pack().sha256)"
    done = subprocess.run([sys.executable, "-I", "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == wheel.sha256


# --- what the agent runs on -------------------------------------------------------------------------------------------


def _modules() -> Iterator[Path]:
    # What is imported by its name: how a command starts and ends, and a runner when a source asks for it.
    yield from (SOURCES / "cogflare" / "cli" / f"{name}.py" for name in ("workergroup", "workercommands", "exits"))
    yield from (SOURCES / "cogflare" / "agent").rglob("*.py")


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file_of(module: str) -> Path | None:
    place = SOURCES.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def test_the_agent_is_given_what_it_imports_and_nothing_else() -> None:
    todo, seen, foreign = list(_modules()), set[Path](), set[str]()
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in _imports(file):
            if name.split(".")[0] != "cogflare":
                foreign.add(name.split(".")[0])
            elif (found := _file_of(name)) is not None:
                todo.append(found)
    assert not [file for file in seen if {"engine", "store"} & set(file.relative_to(SOURCES / "cogflare").parts[:1])]
    known = packages_distributions()
    needed = {name for module in foreign - sys.stdlib_module_names for name in known.get(module, [f"? {module}"])}
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    # A program, not a library: it builds the environments of models.
    assert {name.lower() for name in needed} | {"uv"} == set(groups["agent"])


def test_the_agents_packages_are_pinned_as_the_servers_are() -> None:
    def pins(file: Path) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", file.read_text(), re.MULTILINE))

    agent, everything = pins(REQUIREMENTS), pins(ROOT / "requirements" / "dev.txt")
    assert agent.items() <= everything.items(), "run `make lock`"
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    assert set(groups["agent"]) <= agent.keys(), "run `make lock`"
