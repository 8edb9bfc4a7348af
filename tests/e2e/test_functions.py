"""Python functions and RunPod handlers as models: `cogflare worker`, a real server, Replicate's own client."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError

from support.processes import Server, Stage, Worker, until
from support.runners import MODELS, family
from support.runpod import RunPodPackage

README = Path(__file__).parents[2] / "README.md"
FUNCTIONS, HANDLERS = MODELS / "functions", MODELS / "handlers"


@pytest.fixture(scope="module")
def server(shared_stage: Stage) -> Server:
    return shared_stage.server()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    client = Client(base_url=server.url, api_token=server.token())
    yield client
    client._client.close()


def serve(stage: Stage, server: Server, name: str, *more: str) -> Worker:
    """Start a worker with the function of that test model; return it when it is connected."""
    return stage.worker(server, f"me/{name}", ["--function", f"{name}:run", *more], cwd=FUNCTIONS).connected()


def test_the_function_of_the_readme_is_a_model(
    shared_stage: Stage, server: Server, client: Client, tmp_path: Path
) -> None:
    section = README.read_text().partition("## A Python function is a model")[2].partition("\n## ")[0]
    [program] = re.findall(r"```python\n# haiku\.py\n(.*?)```", section, re.DOTALL)
    [option] = re.findall(r"cogflare worker (--function \S+) --server \S+ --model me/haiku\n", section)
    assert len(list(filter(None, program.splitlines()))) <= 10
    (tmp_path / "haiku.py").write_text(program)
    shared_stage.worker(server, "me/haiku", option.split(), cwd=tmp_path).connected()

    version = client.models.get("me/haiku").latest_version
    assert version is not None
    schemas = version.openapi_schema["components"]["schemas"]
    assert schemas["Input"]["required"] == ["about"]
    assert {name: field["type"] for name, field in schemas["Input"]["properties"].items()} == {
        "about": "string",
        "lines": "integer",
    }
    assert schemas["Output"]["x-cog-array-display"] == "concatenate"

    lines: Any = client.run("me/haiku", input={"about": "snow"})
    assert [line.split()[1] for line in lines] == ["snow"] * 3
    streamed = [str(event) for event in client.stream("me/haiku", input={"about": "moss", "lines": 2})]
    assert "".join(streamed).count("moss") == 2
    with pytest.raises(ReplicateError, match="about"):
        client.run("me/haiku", input={"lines": 2})
    with pytest.raises(ReplicateError, match="lines"):
        client.run("me/haiku", input={"about": "snow", "lines": "many"})


def test_files_go_in_and_out(shared_stage: Stage, server: Server, client: Client, tmp_path: Path) -> None:
    serve(shared_stage, server, "files")
    (tmp_path / "words.txt").write_bytes(b"hello")
    with (tmp_path / "words.txt").open("rb") as source:
        output: Any = client.run("me/files", input={"source": source, "copies": 2})
    contents = [server.http.get(url).raise_for_status().content for url in [output["single"], *output["many"]]]
    assert contents == [b"HELLO", b"HELLO\x00", b"HELLO\x01"]


def test_a_failure_is_the_models(shared_stage: Stage, server: Server, client: Client) -> None:
    serve(shared_stage, server, "failing")
    with pytest.raises(ModelError, match=r"too dark in here$") as caught:
        client.run("me/failing", input={"message": "too dark in here"})
    logs = caught.value.prediction.logs
    assert logs is not None
    assert logs.startswith("this will not end well\n")


def test_a_cancel_frees_the_slot(shared_stage: Stage, server: Server, client: Client) -> None:
    serve(shared_stage, server, "sleeper")
    running = client.models.predictions.create("me/sleeper", input={"seconds": 60})
    server.processing(running.id)
    client.predictions.cancel(running.id)
    assert server.ended(running.id)["status"] == "canceled"
    assert client.run("me/sleeper", input={"seconds": 0}) == "rested"


def test_a_crash_is_a_strike_and_not_the_workers_end(shared_stage: Stage, server: Server, client: Client) -> None:
    worker = serve(shared_stage, server, "crasher")
    crashed = client.models.predictions.create("me/crasher", input={"crash": True})
    assert server.ended(crashed.id)["status"] == "failed"
    attempts = server.attempts(crashed.id)
    assert [attempt["outcome"] for attempt in attempts] == ["lost"] * 3
    assert client.run("me/crasher", input={"crash": False}) == "alive"
    assert worker.is_running
    assert worker.state == "online"


def test_slots_run_side_by_side(shared_stage: Stage, server: Server, client: Client) -> None:
    serve(shared_stage, server, "parallel", "--slots", "2")
    both = [client.models.predictions.create("me/parallel", input={"name": name}) for name in "ab"]
    assert [server.ended(prediction.id)["output"] for prediction in both] == ["a", "b"]


def test_a_killed_worker_is_followed_by_one_that_goes_on(stage: Stage) -> None:
    server = stage.server()
    first = stage.worker(server, "me/sleeper", ["--function", "sleeper:run"], name="home", cwd=FUNCTIONS).connected()
    prediction = server.create("me/sleeper", seconds=4)
    server.processing(prediction)
    until(lambda: server.get(prediction)["logs"], "log of the run")
    processes = family(first.pid)
    first.kill9()
    again = stage.worker(server, "me/sleeper", ["--function", "sleeper:run"], name="home", cwd=FUNCTIONS).connected()
    ended = server.ended(prediction)
    assert (ended["status"], ended["output"], ended["logs"]) == ("succeeded", "rested", "asleep\n")
    assert len(server.attempts(prediction)) == 1
    again.signal(signal.SIGTERM)
    assert again.join() == 0
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), "end of the function's processes")


def test_a_handler_of_the_documentations_shape_runs_unchanged(
    shared_stage: Stage, server: Server, client: Client, tmp_path: Path
) -> None:
    python = RunPodPackage().ready().home / "bin" / "python"
    for name, interpreter in (("standin", []), ("package", ["--python", str(python)])):
        words = ["--runpod-handler", str(HANDLERS / "shouter.py"), *interpreter]
        shared_stage.worker(server, f"me/{name}", words, cwd=tmp_path).connected()
        made = client.models.predictions.create(f"me/{name}", input={"text": "hey", "times": 2})
        ended = server.ended(made.id)
        assert (ended["status"], ended["output"]) == ("succeeded", {"shouted": ["HEY", "HEY"]})
        assert "Update 1/2\nUpdate 2/2\n" in ended["logs"]
        assert "shouting 2 times" in ended["logs"]
        with pytest.raises(ModelError, match="text is a required input"):
            client.run(f"me/{name}", input={"times": 2})
    worker_log = "".join(path.read_text() for path in shared_stage.folder.glob("worker-*.log"))
    assert "a stand-in takes its place" in worker_log


def test_a_handler_that_yields_streams(shared_stage: Stage, server: Server, client: Client) -> None:
    words = ["--runpod-handler", str(HANDLERS / "chatter.py")]
    shared_stage.worker(server, "me/chatter", words).connected()
    output: Any = client.run("me/chatter", input={"prompt": "tell me more"})
    assert list(output) == [{"token": "tell"}, {"token": "me"}, {"token": "more"}]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [("absent:run", "there is no Python module absent"), ("broken:run", "no weights here")],
)
def test_a_function_that_cannot_be_set_up_ends_the_worker(
    shared_stage: Stage, server: Server, entry: str, problem: str
) -> None:
    worker = shared_stage.worker(server, "me/nothing", ["--function", entry], cwd=FUNCTIONS)
    assert worker.join() == 1
    assert problem in worker.log()
