"""The host's HTTP API, which is that of a Cog server: health, starts, looks, streams, cancels, webhooks."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from support.hosting import Host, Outside, wait_for, write_module

Maker = Callable[..., Host]

NAP = """
    import time

    def predict(seconds: float = 60.0) -> str:
        print("asleep")
        time.sleep(seconds)
        return "rested"
"""
WORDS = """
    import time
    from collections.abc import Iterator

    def predict(count: int, delay_s: float = 0.0) -> Iterator[str]:
        print("first word")
        for number in range(count):
            yield f"w{number} "
            time.sleep(delay_s)
"""


def test_a_run_from_start_to_end(function: Maker) -> None:
    host = function("def predict(text: str) -> str:\n    return text.upper()\n")
    assert host.health()["status"] == "READY"
    answer = host.run({"text": "hello"})
    assert (answer["id"], answer["status"], answer["output"], answer["logs"]) == ("r1", "succeeded", "HELLO", "")
    assert 0 <= answer["metrics"]["predict_time"] < 5
    assert host.http.post("/predictions", json={"input": {"text": "no name"}}).json()["output"] == "NO NAME"


def test_health_tells_of_setup_work_and_death(tmp_path: Path, hosts: list[Host], outside: Outside) -> None:
    os.mkfifo(tmp_path / "gate")
    write_module(tmp_path, 'print("loading")\nopen("gate").read()\n' + NAP.replace("\n    ", "\n"))
    host = Host(tmp_path, "function", "model:predict")
    hosts.append(host)
    wait_for(lambda: host.output.read_text() == "loading\n")
    health = host.health()
    assert (health["status"], health["setup"]["logs"]) == ("STARTING", "loading\n")
    assert host.start({}).status_code == 503
    assert host.http.get("/openapi.json").status_code == 503
    (tmp_path / "gate").write_text("open")
    host.settled()
    ready = host.health()
    assert (ready["status"], ready["setup"]["status"]) == ("READY", "succeeded")
    assert host.start({}).status_code == 202
    assert host.health()["status"] == "BUSY"
    assert host.health()["setup"]["started_at"] == health["setup"]["started_at"]


def test_runs_are_refused_where_all_slots_are_taken(function: Maker) -> None:
    host = function(NAP)
    host.start({})
    assert host.start({}, "r2").status_code == 409
    assert host.look("r2").status_code == 422, "a look never waits for a slot"
    host.cancel()
    host.ended()
    assert host.start({"seconds": 0}, "r2").status_code == 202


def test_a_run_of_the_same_name_is_the_same_run(function: Maker) -> None:
    host = function(NAP)
    host.start({})
    host.until_log("asleep")
    again = host.start({"seconds": 1})
    assert (again.status_code, again.json()["status"], again.json()["logs"]) == (202, "processing", "asleep\n")
    assert host.look().json()["status"] == "processing"


def test_an_input_that_is_no_object_never_runs(function: Maker) -> None:
    host = function(NAP)
    answer = host.look()
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["msg"] == '"never run" is not of type "object"'
    assert host.health()["status"] == "READY"


def test_bad_input_is_refused_with_every_field(function: Maker) -> None:
    host = function("def predict(a: int, b: bool = False) -> str:\n    return 'x'\n")
    problems = [(p["loc"], p["msg"]) for p in host.start({"b": 3}).json()["detail"]]
    assert problems == [
        (["body", "input", "a"], "Field required"),
        (["body", "input", "b"], '3 is not of type "boolean"'),
    ]


def test_a_stream_begins_at_the_beginning(function: Maker, outside: Outside) -> None:
    outside.answers = [500]  # the run stays until its end was taken
    host = function(WORDS)
    host.start({"count": 3, "delay_s": 0.05}, hook=f"{outside.url}/hooks/r1")
    live, *later = [list(host.stream()) for _ in range(3)]
    assert [event for event, _ in live] == ["start", "log", "output", "output", "output", "completed"]
    assert [data["chunk"] for event, data in live if event == "output"] == ["w0 ", "w1 ", "w2 "]
    assert live[-1][1]["output"] == ["w0 ", "w1 ", "w2 "]
    assert later == [live, live]


def test_a_stream_can_start_a_run(function: Maker) -> None:
    events = list(function(WORDS).stream(given={"count": 5000}))
    chunks = [data["chunk"] for event, data in events if event == "output"]
    assert chunks == [f"w{number} " for number in range(5000)]
    assert events[-1][1]["output"] == chunks


def test_items_come_one_by_one(function: Maker) -> None:
    host = function(WORDS)
    host.start({"count": 1000, "delay_s": 0.01})
    seen = 0
    for event, _ in host.stream():
        seen += event == "output"
        if seen == 3:
            break
    assert host.look().json()["status"] == "processing"


def test_an_empty_iterator_has_an_empty_list(function: Maker) -> None:
    assert function(WORDS).run({"count": 0})["output"] == []


def test_the_end_is_told_until_it_is_taken(function: Maker, outside: Outside) -> None:
    outside.answers = [500, 503, 500]
    host = function(NAP)
    host.start({"seconds": 0}, hook=f"{outside.url}/hooks/r1")
    assert host.look().json()["status"] in ("processing", "succeeded"), "it is known until then"
    wait_for(lambda: outside.hooks)
    assert [(hook["id"], hook["status"], hook["logs"]) for hook in outside.hooks] == [("r1", "succeeded", "asleep\n")]
    wait_for(lambda: host.look().status_code == 422)


def test_the_end_reaches_a_worker_that_comes_later(function: Maker, outside: Outside) -> None:
    port = int(outside.url.rsplit(":", 1)[-1])
    outside.close()
    host = function(NAP)
    host.start({"seconds": 0}, hook=f"http://127.0.0.1:{port}/hooks/r1")
    assert host.ended()["output"] == "rested"
    assert host.run({"seconds": 0}, "r2")["output"] == "rested", "the slot is free"
    later = Outside(port)
    try:
        wait_for(lambda: later.hooks)
        assert later.hooks[0]["output"] == "rested"
    finally:
        later.close()


def test_nobody_waits_for_a_run_that_is_answered_with_404(function: Maker, outside: Outside) -> None:
    outside.answers = [404]
    host = function(NAP)
    host.start({"seconds": 0}, hook=f"{outside.url}/hooks/r1")
    wait_for(lambda: host.look().status_code == 422)
    assert outside.hooks == []


def test_ended_runs_are_forgotten_in_time(function: Maker) -> None:
    host = function("def predict() -> int:\n    return 1\n")
    for number in range(40):
        host.run({}, f"r{number}")
    assert host.look("r39").json()["status"] == "succeeded"
    assert host.look("r0").status_code == 422


def test_a_cancel_of_nothing_is_nothing(function: Maker) -> None:
    assert function(NAP).cancel("nobody") == 404


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("GET", "/nothing", b"", 404),
        ("PUT", "/predictions", b"{}", 404),
        ("PUT", "/predictions/a/b", b"{}", 404),
        ("POST", "/trainings", b"{}", 404),
        ("PUT", "/predictions/r1", b'{"input":', 400),
        ("PUT", "/predictions/r1", b"[]", 400),
        ("PUT", "/predictions/r1", b'{"input": {"seconds": NaN}}', 400),
        ("PUT", "/predictions/r1", b'{"input": {"seconds": 1e999}}', 400),
        ("PUT", "/predictions/r1", b'{"input": {"seconds": 0}}', 200),
    ],
)
def test_what_makes_no_sense_is_answered(function: Maker, method: str, path: str, content: bytes, status: int) -> None:
    host = function(NAP)
    assert host.http.request(method, path, content=content).status_code == status
    assert host.health()["status"] == "READY"


def test_an_input_that_is_nested_deeply_does_no_harm(function: Maker) -> None:
    host = function("def predict(x: object) -> int:\n    return 1\n")
    for depth in (100, 900, 960, 970, 980, 985, 990, 995, 1000, 5000, 200_000):
        content = b'{"input": {"x": ' + b"[" * depth + b"]" * depth + b"}}"
        answer = host.http.put(f"/predictions/r{depth}", content=content)
        assert answer.status_code in (200, 400, 422)
        assert depth > 500 or answer.json()["output"] == 1
    assert host.run({"x": 1})["output"] == 1


def test_pages_in_a_browser_are_refused(function: Maker) -> None:
    host = function(NAP)
    answer = host.http.post("/predictions", content=b'{"input": {}}', headers={"origin": "https://evil.example"})
    assert answer.status_code == 403
    assert host.health()["status"] == "READY"


@pytest.mark.parametrize(
    ("how", "told"), [("os._exit(13)", "ended with status 13"), ("os.kill(os.getpid(), 9)", "was killed by SIGKILL")]
)
def test_a_death_of_the_process_is_the_end(function: Maker, outside: Outside, how: str, told: str) -> None:
    host = function(f'import os\n\ndef predict() -> None:\n    print("about to die", flush=True)\n    {how}\n')
    host.start({}, hook=f"{outside.url}/hooks/r1")
    wait_for(lambda: outside.hooks)
    end = outside.hooks[0]
    assert (end["status"], end["error"]) == ("failed", f"Worker crashed: the model's process {told}")
    assert end["logs"] == "about to die\n"
    assert host.health()["status"] == "DEFUNCT"
    assert host.start({}, "r2").status_code == 409
    assert told in host.output.read_text()


def test_a_death_is_seen_though_children_live_on(function: Maker) -> None:
    host = function("""
        import os
        import subprocess

        def predict(fork: bool) -> None:
            if fork and os.fork() == 0:
                os.execlp("sleep", "sleep", "60")
            subprocess.Popen(["sleep", "60"], close_fds=False)
            os._exit(13)
    """)
    assert host.run({"fork": True})["error"] == "Worker crashed: the model's process ended with status 13"


def test_a_crash_says_where_it_was(function: Maker) -> None:
    host = function("import ctypes\n\ndef predict() -> None:\n    ctypes.string_at(0)\n")
    end = host.run({})
    assert end["error"] == "Worker crashed: the model's process was killed by SIGSEGV"
    assert "Segmentation fault" in end["logs"]
    assert "in predict" in end["logs"]


def model_process(host: Host) -> int:
    return int(host.run({}, "whoami")["output"])


def test_a_signal_ends_both_processes(function: Maker) -> None:
    host = function("import os\n\ndef predict() -> int:\n    return os.getpid()\n")
    model = model_process(host)
    host.process.terminate()
    assert host.process.wait(5) == 0
    wait_for(lambda: not Path(f"/proc/{model}").exists())


def test_the_model_dies_with_the_front(function: Maker) -> None:
    host = function("import os\n\ndef predict() -> int:\n    return os.getpid()\n")
    model = model_process(host)
    os.kill(host.process.pid, signal.SIGKILL)
    host.process.wait()
    wait_for(lambda: not Path(f"/proc/{model}").exists())


def test_text_that_is_no_text_passes(function: Maker) -> None:
    host = function('def predict(text: str) -> str:\n    print("\\ud800")\n    return text + "\\ud800"\n')
    end = host.run(json.loads('{"text": "\\ud83d\\ude00"}'))
    assert (end["output"], end["logs"]) == ("\U0001f600?", "?\n")
