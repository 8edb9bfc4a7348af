"""Workers and what their machines have, with real servers and `cogflare worker`: who gets what, on which node."""

import signal
from collections.abc import Callable
from pathlib import Path

from support.nvml import GAMER, TWO_QUADROS, Library
from support.processes import Server, Stage, Worker, until

UPPER = "def upper(text: str) -> str:\n    return text.upper()\n"


def worker_on(stage: Stage, server: Server, name: str, folder: Path, record: str, *more: str) -> Worker:
    """Start a worker of a function on a machine with these GPUs."""
    folder.mkdir()
    (folder / "words.py").write_text(UPPER)
    library = Library(folder)
    library.says(record)
    options = ["--function", "words:upper", *more]
    return stage.worker(server, "me/upper", options, cwd=folder, name=name, environment=library.environment)


def unmet(server: Server, name: str) -> str | None:
    found: str | None = server.workers()[name]["models"][0]["unmet"]
    return found


def require(server: Server, model: str, wanted: object) -> None:
    server.ask("PATCH", f"/v1/models/{model}", json={"requirements": wanted})


def test_a_real_worker_gets_what_its_machine_can_run(stage: Stage, tmp_path: Path) -> None:
    server = stage.server()
    small = worker_on(stage, server, "small", tmp_path / "small", TWO_QUADROS).connected()
    require(server, "me/upper", {"min_vram_gb": 24, "tags": ["fast"]})
    until(lambda: unmet(server, "small"), "refusal")
    assert unmet(server, "small") == "lacks 24 GB of VRAM (has 8) and the tag fast"
    waiting = server.create("me/upper", text="a")
    server.restart()
    until(lambda: server.workers()["small"]["state"] == "online", "worker that is back")
    assert unmet(server, "small") == "lacks 24 GB of VRAM (has 8) and the tag fast"
    explained = server.ask("GET", f"/v1/predictions/{waiting}?explain=1")["explanation"]
    assert explained["code"] == "requirements_unmet"
    assert "worker small lacks 24 GB of VRAM (has 8) and the tag fast" in explained["text"]
    big = worker_on(stage, server, "big", tmp_path / "big", GAMER, "--tag", "fast", "--region", "attic").connected()
    assert server.ended(waiting)["output"] == "A"
    [attempt] = server.attempts(waiting)
    assert attempt["worker"] == big.id != small.id
    machine = server.ask("GET", f"/v1/workers/{big.id}")["machine"]
    assert (machine["region"], machine["tags"], machine["cuda"]) == ("attic", ["fast"], "12.4")
    assert machine["gpus"][0]["name"] == "NVIDIA GeForce RTX 4090 D"
    assert machine["ram_mb"] > 0
    require(server, "me/upper", None)
    until(lambda: unmet(server, "small") is None, "permission")
    big.end()
    assert server.ended(server.create("me/upper", text="b"))["output"] == "B"


def test_what_is_set_at_one_node_holds_for_the_workers_of_another(stage: Stage, new_url: Callable[[str], str]) -> None:
    url, key = new_url("postgres"), "the key of servers in tests, no secret"
    here, there = (stage.server(node=name, database_url=url, secret_key=key) for name in ("here", "there"))
    stage.scripted(there, name="far", site={"region": "", "tags": []}).connected()
    require(here, "me/single", {"tags": ["fast"]})
    until(lambda: unmet(here, "far"), "refusal at the other node")
    waiting = here.create(output="done")
    stage.scripted(here, name="near", site={"region": "", "tags": ["fast"]}).connected()
    assert here.ended(waiting)["output"] == "done"
    assert here.attempts(waiting)[0]["worker"] == here.workers()["near"]["id"]


def asks_the_driver(worker: Worker) -> bool:
    """Say whether a process of the worker asks the driver at this moment."""
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    return any(b"cogflare.agent.nvml" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children)


def test_a_driver_that_hangs_holds_up_neither_the_start_nor_the_end_of_a_worker(stage: Stage, tmp_path: Path) -> None:
    server = stage.server()
    worker = worker_on(stage, server, "stuck", tmp_path / "stuck", "hangs")
    until(lambda: asks_the_driver(worker), "question to the driver")
    worker.connected()
    assert not asks_the_driver(worker)
    assert "gpus" not in server.workers()["stuck"]["machine"]
    assert server.ended(server.create("me/upper", text="a"))["output"] == "A"
    worker.end()
    hasty = worker_on(stage, server, "hasty", tmp_path / "hasty", "hangs")
    until(lambda: asks_the_driver(hasty), "question to the driver")
    hasty.signal(signal.SIGTERM)
    assert hasty.join() == 0
