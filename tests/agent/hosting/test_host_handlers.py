"""RunPod handler files in the host, unchanged: with the real ``runpod`` package, and with the stand-in for it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cogflare.agent.hosting import standin
from support.hosting import Host, Outside

Maker = Callable[..., Host]
RUNPOD = "runpod==1.12.0"

# As the package's own README has it.
IS_EVEN = """
    # my_worker.py

    import runpod

    def is_even(job):

        job_input = job["input"]
        the_number = job_input["number"]

        if not isinstance(the_number, int):
            return {"error": "Silly human, you need to pass an integer."}

        if the_number % 2 == 0:
            return True

        return False

    runpod.serverless.start({"handler": is_even})
"""
# As the documentation's first worker has it.
FIRST_WORKER = """
    import runpod
    import time

    def handler(event):
        print("Worker Start")
        input = event["input"]
        prompt = input.get("prompt")
        seconds = input.get("seconds", 0)
        print(f"Received prompt: {prompt}")
        time.sleep(seconds)
        return prompt

    if __name__ == "__main__":
        runpod.serverless.start({"handler": handler})
"""


@pytest.fixture(scope="session")
def runpod_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with the real package."""
    home = tmp_path_factory.mktemp("runpod")
    python = str(home / "bin" / "python")
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(home), "--clear"], check=True)
    subprocess.run([uv, "pip", "install", "-q", "--python", python, RUNPOD], check=True)
    return python


@pytest.fixture(params=["stand-in", "runpod"])
def python(request: pytest.FixtureRequest) -> str:
    """Interpreters without and with the package."""
    return sys.executable if request.param == "stand-in" else str(request.getfixturevalue("runpod_python"))


def test_the_example_of_the_package_runs_unchanged(handler: Maker, python: str) -> None:
    host = handler(IS_EVEN, "my_worker.py", python=python)
    assert host.run({"number": 4}, "r1")["output"] is True
    assert host.run({"number": 3}, "r2")["output"] is False
    end = host.run({"number": "four"}, "r3")
    assert (end["status"], end["error"]) == ("failed", "Silly human, you need to pass an integer.")
    assert "output" not in end


def test_the_first_worker_of_the_documentation_runs_unchanged(handler: Maker, python: str) -> None:
    host = handler(FIRST_WORKER, python=python)
    end = host.run({"prompt": "hello", "seconds": 0.01})
    assert (end["output"], end["logs"]) == ("hello", "Worker Start\nReceived prompt: hello\n")
    host.start({"prompt": "long", "seconds": 60}, "r2")
    host.until_log("Received", "r2")
    host.cancel("r2")
    assert host.ended("r2")["status"] == "canceled"


def test_the_modules_of_the_documentation_are_there(handler: Maker, python: str) -> None:
    host = handler(
        """
        import runpod
        from runpod import RunPodLogger
        from runpod.serverless.utils import rp_cleanup, rp_cuda
        from runpod.serverless.utils.rp_validator import validate

        log = RunPodLogger()
        SCHEMA = {
            "prompt": {"type": str, "required": True},
            "steps": {"type": int, "required": False, "default": 20, "constraints": lambda steps: 0 < steps < 100},
            "odd": {"type": int, "required": False, "default": None, "constraints": lambda odd: odd is None or odd % 2},
        }

        @runpod.serverless.register_fitness_check
        def check_disk():
            log.info("fit")

        def handler(job):
            valid = validate(job["input"], SCHEMA)
            if "errors" in valid:
                return {"error": valid["errors"]}
            runpod.serverless.progress_update(job, "Update 1/2")
            runpod.serverless.progress_update(job, {"step": 2})
            log.info("done", job["id"])
            rp_cleanup.clean(["nowhere"])
            return {**valid["validated_input"], "gpu": rp_cuda.is_available(), "refresh_worker": True}

        runpod.serverless.start({"handler": handler})
        """,
        python=python,
    )
    assert "INFO   | fit\n" in host.setup_log()
    end = host.run({"prompt": "a"})
    assert end["output"].keys() == {"prompt", "steps", "odd", "gpu"}
    assert end["logs"] == 'Update 1/2\n{"step": 2}\nINFO   | r1 | done\n'
    assert host.run({"prompt": 7, "more": 1, "steps": 0, "odd": 2}, "r2")["error"] == json.dumps(
        [
            "Unexpected input. more is not a valid input option.",
            "prompt should be <class 'str'> type, not <class 'int'>.",
            "odd does not meet the constraints.",
        ]
    )


def test_generators_stream(handler: Maker, python: str) -> None:
    host = handler(
        """
        import runpod

        def generator_handler(job):
            for count in range(3):
                result = f"This is the {count} generated output."
                yield result
            if job["input"].get("fail"):
                yield {"error": "no more"}

        runpod.serverless.start({
            "handler": generator_handler,  # Required
            "return_aggregate_stream": True,  # Optional, results available via /run
        })
        """,
        python=python,
    )
    words = [f"This is the {count} generated output." for count in range(3)]
    events = list(host.stream(given={}))
    assert [data["chunk"] for event, data in events if event == "output"] == words
    assert host.components()["Output"] == {
        "title": "Output",
        "type": "array",
        "items": {},
        "x-cog-array-type": "iterator",
    }
    end = host.run({"fail": True}, "r2")
    assert (end["status"], end["error"], end["output"]) == ("failed", "no more", words)


def test_asynchronous_handlers_run_side_by_side(handler: Maker, python: str) -> None:
    host = handler(
        """
        import asyncio
        import runpod

        there = []

        async def process_request(job):
            there.append(job["input"]["name"])
            while len(there) < 2:
                await asyncio.sleep(0.001)
            return {"output": job["input"]["name"]}

        def adjust_concurrency(current_concurrency):
            return 2

        runpod.serverless.start({"handler": process_request, "concurrency_modifier": adjust_concurrency})
        """,
        python=python,
        slots=2,
    )
    host.start({"name": "a"}, "r1")
    assert host.run({"name": "b"}, "r2")["output"] == {"output": "b"}
    assert host.ended("r1")["output"] == {"output": "a"}


def test_the_input_is_any_object(handler: Maker) -> None:
    host = handler("import runpod\nrunpod.serverless.start({'handler': lambda job: job})\n")
    given = {"any": [1, None, {"deep": True}], "image": "https://example.com/not-fetched.png"}
    assert host.run(given, "p1-1")["output"] == {"id": "p1-1", "input": given}
    assert host.look("p2-1").status_code == 422
    assert host.components()["Input"] == {
        "properties": {},
        "type": "object",
        "title": "Input",
        "additionalProperties": True,
    }


@pytest.mark.parametrize(
    ("result", "status", "output", "error"),
    [
        ("{'error': 'no'}", "failed", None, "no"),
        ("{'error': {'code': 7}}", "failed", None, '{"code": 7}'),
        ("{'error': None, 'a': 1}", "succeeded", {"a": 1}, None),
        ("{'refresh_worker': True, 'a': 1}", "succeeded", {"a": 1}, None),
        ("{'refresh_worker': True}", "succeeded", None, None),
        ("None", "succeeded", None, None),
        ("[1]", "succeeded", [1], None),
        ("1 / 0", "failed", None, "ZeroDivisionError: division by zero"),
    ],
)
def test_results_mean_what_they_mean_there(
    handler: Maker, result: str, status: str, output: object, error: str | None
) -> None:
    host = handler(f"import runpod\nrunpod.serverless.start({{'handler': lambda job: {result}}})\n")
    end = host.run({})
    assert (end["status"], end.get("output"), end.get("error")) == (status, output, error)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("print('nothing to do')", "handler.py has ended without a call of runpod.serverless.start"),
        ("import runpod\nrunpod.serverless.start({})", 'runpod.serverless.start is given no {"handler": function}'),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (
            "import runpod\n@runpod.serverless.register_fitness_check\nasync def fit():\n    raise OSError('unfit')\n"
            "runpod.serverless.start({'handler': print})",
            "OSError: unfit",
        ),
    ],
)
def test_files_that_give_no_handler_are_refused(handler: Maker, source: str, complaint: str) -> None:
    host = handler(source)
    assert host.health()["status"] == "SETUP_FAILED"
    assert host.setup_log().splitlines()[-1] == complaint


def test_a_missing_file_is_refused(tmp_path: Path, hosts: list[Host], outside: Outside) -> None:
    host = Host(tmp_path, "runpod", "nowhere.py")
    hosts.append(host)
    assert host.settled().setup_log() == "there is no file nowhere.py\n"


def test_files_beside_the_handler_are_found(handler: Maker, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("WORD = 'found'\n")
    host = handler("import runpod, beside\nrunpod.serverless.start({'handler': lambda job: beside.WORD})\n")
    assert host.run({})["output"] == "found"
    assert "a stand-in takes its place" in host.setup_log()


@pytest.mark.parametrize(
    ("given", "schema", "errors"),
    [
        ({"a": 1}, {"a": {"type": int, "required": True}}, None),
        ({"a": 1}, {"a": {"type": float, "required": True}}, None),
        ({}, {"a": {"type": int, "required": False, "default": 3}}, None),
        ({"a": "x"}, {"a": {"type": int, "required": True}}, 1),
        ({"b": 1}, {"a": {"type": int, "required": True}}, 2),
        ({}, {"a": {"type": int, "required": False}}, 1),
        ({"a": 5}, {"a": {"type": int, "required": True, "constraints": lambda a: a < 5}}, 1),
    ],
)
def test_the_stand_in_validates(given: dict[str, object], schema: dict[str, object], errors: int | None) -> None:
    result = standin.validate(given, schema)
    assert len(result.get("errors", ())) == (errors or 0)
    assert ("validated_input" in result) is (errors is None)
