"""Functions in the host: their logs, results, failures, cancels and files, one by one and several at once."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.hosting import Host, Outside, wait_for

Maker = Callable[..., Host]


def test_everything_that_a_run_writes_is_its_log(function: Maker) -> None:
    host = function("""
        import logging
        import os
        import subprocess
        import sys
        import threading

        logging.basicConfig(format="%(message)s")
        print("setting up")

        def predict() -> None:
            print("a print")
            print("an error", file=sys.stderr)
            logging.warning("a warning")
            sys.stdout.buffer.write(b"some bytes\\n")
            sys.stdout.reconfigure(line_buffering=True)
            thread = threading.Thread(target=print, args=("a thread",))
            thread.start()
            thread.join()
            subprocess.run(["echo", "a program"], check=True)
            subprocess.run(["echo", "a program that is handed the stream"], stdout=sys.stderr, check=True)
            os.write(1, b"a library\\n")
            if os.fork() == 0:
                print("a fork", flush=True)
                os._exit(0)
            os.wait()
            print("no end of line", end="")
    """)
    log = host.run({})["logs"]
    said = {"a print", "an error", "a warning", "some bytes", "a thread", "a program", "a library", "a fork"}
    assert said | {"a program that is handed the stream", "no end of line"} == set(log.splitlines())
    assert log.index("a print") < log.index("a warning") < log.index("no end of line")
    assert host.setup_log() == "setting up\n"
    assert host.run({}, "r2")["logs"] == log, "a run's log has nothing of another one's"
    assert host.output.read_text() == "setting up\n"


def test_the_host_answers_while_the_model_holds_the_interpreter(function: Maker) -> None:
    host = function("""
        import ctypes

        def predict() -> str:
            print("holding")
            ctypes.PyDLL(None).sleep(3)  # no other thread of the process can do anything
            return "done"
    """)
    host.start({})
    host.until_log("holding")
    assert host.health()["status"] == "BUSY"
    assert host.look().json()["status"] == "processing"
    assert host.ended()["output"] == "done"


def test_text_of_programs_is_not_torn(function: Maker) -> None:
    host = function("""
        import subprocess

        def predict(count: int) -> None:
            subprocess.run(["awk", 'BEGIN { for (i = 0; i < ' + str(count) + '; i++) print "ü€😀" }'], check=True)
    """)
    assert host.run({"count": 50_000})["logs"] == "ü€😀\n" * 50_000


def test_progress_bars_come_while_they_move(function: Maker) -> None:
    host = function("""
        import sys
        import time

        def predict() -> None:
            sys.stderr.write("10%")
            sys.stderr.flush()
            time.sleep(60)
    """)
    host.start({})
    host.until_log("10%")


def test_a_failure_has_its_message_and_its_traceback(function: Maker) -> None:
    host = function("""
        def predict(text: str) -> str:
            print("this will not end well")
            raise ValueError(text)
    """)
    end = host.run({"text": "too dark in here"})
    assert (end["status"], end["error"]) == ("failed", "ValueError: too dark in here")
    said, first, *_, last = end["logs"].splitlines()
    assert (said, first) == ("this will not end well", "Traceback (most recent call last):")
    assert "hosting" not in end["logs"], "our own frames help nobody"
    assert last == "ValueError: too dark in here"
    assert host.run({"text": "again"}, "r2")["error"] == "ValueError: again"


@pytest.mark.parametrize("how", ["sys.exit(3)", "raise KeyboardInterrupt", "raise SystemExit('no')"])
def test_no_exception_of_the_model_ends_its_process(function: Maker, how: str) -> None:
    host = function(
        f"import sys\n\ndef predict(bad: bool = True) -> str:\n    if bad:\n        {how}\n    return 'well'\n"
    )
    assert host.run({})["status"] == "failed"
    assert host.run({"bad": False}, "r2")["output"] == "well"


@pytest.mark.parametrize(
    ("result", "output"),
    [
        ("None", None),
        ("{'a': (1, 2.5), 3: {'b': True}}", {"a": [1, 2.5], "3": {"b": True}}),
        ("datetime.date(2024, 2, 29)", "2024-02-29"),
        ("Point(1, Colour.RED)", {"x": 1, "colour": "red"}),
        ("(number * 2 for number in range(3))", [0, 2, 4]),
        ("array.array('i', [1, 2])", [1, 2]),
        ("Scalar()", 7),
    ],
)
def test_results_become_json(function: Maker, result: str, output: object) -> None:
    host = function(f"""
        import array
        import datetime
        import enum
        from dataclasses import dataclass

        class Colour(enum.Enum):
            RED = "red"

        @dataclass
        class Point:
            x: int
            colour: Colour

        class Scalar:
            def tolist(self):
                return 7

        def predict():
            return {result}
    """)
    end = host.run({})
    assert (end["status"], end.get("output")) == ("succeeded", output)


@pytest.mark.parametrize(
    ("result", "error"),
    [
        ("object()", "TypeError: the output holds something of type object, which is no JSON"),
        ("[b'bytes']", "TypeError: the output holds something of type bytes, which is no JSON"),
        ("{(1, 2): 3}", "TypeError: the output holds a dictionary with a key of type tuple, which is no JSON"),
        ("float('nan')", "ValueError: the output holds nan, which is no JSON"),
    ],
)
def test_results_that_are_no_json_fail(function: Maker, result: str, error: str) -> None:
    end = function(f"def predict():\n    return {result}\n").run({})
    assert end["status"] == "failed"
    assert end["error"].startswith(error)


# --- cancels ----------------------------------------------------------------------------------------------------------

STUBBORN = """
    import time
    from contextlib import suppress

    def predict(seconds: float = 60, stubborn: bool = False) -> str:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                print("asleep")  # whoever has read this cancels what stands here
                time.sleep(60)
            except BaseException:
                if not stubborn:
                    raise
                print("not getting up")
                stubborn = False
            finally:
                print("cleaned up")
        return "rested"
"""


def test_a_cancel_stops_a_function_wherever_it_is(function: Maker) -> None:
    host = function(STUBBORN)
    host.start({})
    host.until_log("asleep")
    began = time.monotonic()
    assert host.cancel() == 200
    end = host.ended()
    assert (end["status"], end["logs"]) == ("canceled", "asleep\ncleaned up\n")
    assert "error" not in end
    assert "output" not in end
    assert time.monotonic() - began < 5
    assert host.run({"seconds": 0}, "r2")["output"] == "rested"


def test_a_cancel_that_is_swallowed_may_come_again(function: Maker) -> None:
    host = function(STUBBORN)
    host.start({"stubborn": True})
    host.until_log("asleep")
    host.cancel()
    host.until_log("not getting up")
    assert host.health()["status"] == "BUSY"
    host.cancel()
    assert host.ended()["status"] == "canceled"


def test_a_cancel_closes_a_generator(function: Maker) -> None:
    host = function("""
        from collections.abc import Iterator
        import time

        def predict() -> Iterator[str]:
            try:
                yield "one"
                time.sleep(60)
            finally:
                print("closed")
    """)
    host.start({})
    events = host.stream()
    next(event for event in events if event[0] == "output")
    host.cancel()
    end = list(events)[-1][1]
    assert (end["status"], end["output"], end["logs"]) == ("canceled", ["one"], "closed\n")


def test_a_cancel_stops_programs_that_are_waited_for(function: Maker) -> None:
    host = function("""
        import subprocess

        def predict() -> None:
            subprocess.run("echo $$; exec sleep 60", shell=True, check=True)
    """)
    host.start({})
    host.until_log("\n")
    pid = int(host.look().json()["logs"])
    host.cancel()
    assert host.ended()["status"] == "canceled"
    wait_for(lambda: not Path(f"/proc/{pid}").exists())


def test_cancels_amid_much_output_tear_nothing(function: Maker) -> None:
    host = function("""
        import time
        from collections.abc import Iterator

        def predict(big: str) -> Iterator[str]:
            for _ in range(1000):  # 29 MB at most: a cancel that comes late finds no output that is too large
                print("x" * 1000)
                yield big
            time.sleep(60)
    """)
    for number in range(30):
        host.start({"big": "y" * (number * 1000)}, f"r{number}")
        host.until_log("x", f"r{number}")
        time.sleep(number / 3000)  # at another place each time
        host.cancel(f"r{number}")
        end = host.ended(f"r{number}")
        assert end["status"] == "canceled", end["error"]
        assert set(end["logs"]) == {"x", "\n"}


def test_a_cancel_right_behind_the_start(function: Maker) -> None:
    host = function(STUBBORN)
    for number in range(20):
        host.start({}, f"r{number}")
        host.cancel(f"r{number}")
        assert host.ended(f"r{number}")["status"] == "canceled"


# --- coroutines -------------------------------------------------------------------------------------------------------

MEETING = """
    import asyncio

    waiting = []

    async def predict(name: str) -> str:
        print(f"{name} is here")
        waiting.append(name)
        while len(waiting) < 2:
            await asyncio.sleep(0.001)
        print(f"{name} has met somebody")
        return name
"""


def test_coroutines_run_side_by_side(function: Maker) -> None:
    host = function(MEETING, slots=2)
    host.start({"name": "a"}, "r1")
    assert host.health()["status"] == "READY", "one slot is free"
    host.start({"name": "b"}, "r2")
    for run_id, name in (("r1", "a"), ("r2", "b")):
        end = host.ended(run_id)
        assert (end["output"], end["logs"]) == (name, f"{name} is here\n{name} has met somebody\n")


def test_a_coroutine_is_canceled_before_it_begins(function: Maker) -> None:
    host = function(
        """
        import time

        async def predict(block_s: float) -> None:
            print("begun")
            time.sleep(block_s)  # nothing else of the event loop can do anything
        """,
        slots=2,
    )
    host.start({"block_s": 1}, "r1")
    host.until_log("begun", "r1")
    host.start({"block_s": 0}, "r2")
    host.cancel("r2")
    end = host.ended("r2")
    assert (end["status"], end["logs"]) == ("canceled", "")
    assert host.ended("r1")["status"] == "succeeded"


def test_one_coroutine_is_canceled_alone(function: Maker) -> None:
    host = function(MEETING, slots=2)
    host.start({"name": "a"}, "r1")
    host.until_log("is here", "r1")
    host.cancel("r1")
    assert host.ended("r1")["status"] == "canceled"
    assert host.run({"name": "b"}, "r2")["output"] == "b"


def test_a_coroutine_that_fails_fails_alone(function: Maker) -> None:
    host = function("""
        import asyncio

        async def predict(how: str) -> str:
            if how == "raise":
                raise RuntimeError("no")
            if how == "cancel":
                raise asyncio.CancelledError
            return how
    """)
    assert host.run({"how": "raise"}, "r1")["error"] == "RuntimeError: no"
    assert host.run({"how": "cancel"}, "r2")["status"] == "failed"
    assert host.run({"how": "well"}, "r3")["output"] == "well"


def test_asynchronous_generators_stream(function: Maker) -> None:
    host = function("""
        import asyncio
        from collections.abc import AsyncIterator

        async def predict(count: int) -> AsyncIterator[str]:
            try:
                for number in range(count):
                    yield f"w{number} "
                    await asyncio.sleep(60 if number == 2 else 0)
            finally:
                print("closed")
    """)
    assert host.components()["Output"]["x-cog-array-display"] == "concatenate"
    assert host.run({"count": 2})["output"] == ["w0 ", "w1 "]
    host.start({"count": 9}, "r2")
    events = host.stream("r2")
    while next(events)[1].get("index") != 2:
        pass
    host.cancel("r2")
    end = list(events)[-1][1]
    assert (end["status"], end["output"], end["logs"]) == ("canceled", ["w0 ", "w1 ", "w2 "], "closed\n")


def test_a_plain_function_has_one_slot(function: Maker) -> None:
    host = function("def predict() -> str:\n    return 'x'\n", slots=2)
    assert host.health()["status"] == "SETUP_FAILED"
    assert host.setup_log() == "it is no async function, so it takes one run at a time and not 2\n"


# --- files ------------------------------------------------------------------------------------------------------------

SHOUT = """
    from pathlib import Path
    from tempfile import mkdtemp

    def predict(source: Path) -> Path:
        print(source.name, source.parent)
        path = Path(mkdtemp()) / "an écho, again.png"
        path.write_bytes(source.read_bytes().upper())
        return path
"""


def test_files_come_by_url_and_go_by_upload(function: Maker, outside: Outside) -> None:
    outside.served["/key/some%20photo.jpg"] = b"hello"
    end = function(SHOUT).run({"source": f"{outside.url}/key/some%20photo.jpg"}, "p1-1")
    assert end["output"] == f"{outside.url}/receipts/1", "what is in the query is nobody's"
    assert outside.uploads == [("p1-1", "an%20%C3%A9cho%2C%20again.png", "image/png", b"HELLO")]
    name, folder = end["logs"].strip().rsplit(" ", 1)
    assert name == "some photo.jpg"
    assert not Path(folder).exists(), "the fetched file goes with the run"


def test_files_come_as_data_urls(function: Maker, outside: Outside) -> None:
    host = function(SHOUT)
    assert host.run({"source": "data:text/plain;base64,aGVsbG8="})["logs"].startswith("file.txt ")
    assert host.run({"source": "data:image/png,%61b"}, "r2")["status"] == "succeeded"
    assert [body for *_, body in outside.uploads] == [b"HELLO", b"AB"]


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("file:///etc/passwd", "source: it is no URL of the kinds http, https and data"),
        ("/etc/passwd", "source: it is no URL of the kinds http, https and data"),
        ("data:text/plain;base64,%%", "source: it is no good data URL: "),
        ("data:nothing", "source: it is no good data URL: a data URL without a comma"),
        ("http://127.0.0.1:{port}/nothing.png", "source: it could not be fetched: HTTP Error 404: Not Found"),
        ("http://name.invalid/x", "source: it could not be fetched: "),
        ("http://[/x", "source: it could not be fetched: "),
    ],
)
def test_files_that_cannot_be_had(function: Maker, outside: Outside, url: str, error: str) -> None:
    end = function(SHOUT).run({"source": url.replace("{port}", outside.url.rsplit(":", 1)[-1])})
    assert end["status"] == "failed"
    assert end["error"].startswith(error)


def test_a_worker_that_is_gone_is_waited_for(function: Maker, outside: Outside) -> None:
    port = int(outside.url.rsplit(":", 1)[-1])
    outside.close()
    host = function(SHOUT)
    host.start({"source": "data:text/plain,hello"})
    host.until_log("file.txt")
    later = Outside(port)
    try:
        assert host.ended()["output"] == f"{later.url}/receipts/1"
        assert later.uploads[0][-1] == b"HELLO"
    finally:
        later.close()


def test_a_run_that_waits_for_the_worker_can_be_canceled(function: Maker, outside: Outside) -> None:
    outside.close()
    host = function(SHOUT)
    host.start({"source": f"{outside.url}/a.png"})
    host.cancel()
    assert host.ended()["status"] == "canceled"


def test_an_upload_that_is_refused_is_told_in_cogs_words(function: Maker, outside: Outside) -> None:
    outside.answers = [507]
    end = function(SHOUT).run({"source": "data:,x"})
    assert end["status"] == "failed"
    assert end["error"].startswith("Failed to upload output an écho, again.png: HTTP Error 507")


def test_files_keep_their_order_and_are_sent_before_the_next(function: Maker, outside: Outside) -> None:
    host = function("""
        from collections.abc import Iterator
        from pathlib import Path
        from tempfile import TemporaryDirectory

        def predict(count: int) -> Iterator[Path]:
            for number in range(count):
                with TemporaryDirectory() as folder:
                    path = Path(folder) / "frame.png"
                    path.write_bytes(bytes([number]) * (300_000 if number % 2 else 1))
                    yield path
    """)
    output = host.run({"count": 5})["output"]
    assert output == [f"{outside.url}/receipts/{number + 1}" for number in range(5)]
    assert [body[0] for *_, body in outside.uploads] == list(range(5))


def test_files_deep_in_results_are_sent(function: Maker, outside: Outside) -> None:
    host = function("""
        from pathlib import Path

        def predict(some: list[Path], named: dict[str, Path]) -> dict[str, object]:
            return {"all": [*some, {"deep": named["a"]}], "text": "data:,none"}
    """)
    end = host.run({"some": ["data:,1", "data:,2"], "named": {"a": "data:,3"}})
    receipts = [f"{outside.url}/receipts/{number}" for number in (1, 2, 3)]
    assert end["output"] == {"all": [*receipts[:2], {"deep": receipts[2]}], "text": "data:,none"}
    assert [body for *_, body in outside.uploads] == [b"1", b"2", b"3"]


def test_coroutines_have_files_too(function: Maker, outside: Outside) -> None:
    host = function(SHOUT.replace("def predict", "async def predict"))
    assert host.run({"source": "data:,hello"})["output"] == f"{outside.url}/receipts/1"


# --- other interpreters -----------------------------------------------------------------------------------------------


def test_nothing_of_the_host_is_in_a_models_way(function: Maker) -> None:
    host = function("""
        import sys

        def predict() -> list[str]:
            ours = {"app", "boot", "files", "frames", "runs", "model", "times", "functions", "hooks", "child", "work"}
            assert sys.argv == ["model:predict"], sys.argv
            return sorted(ours & sys.modules.keys()) + [path for path in sys.path if "hosting" in path]
    """)
    assert host.run({})["output"] == ["model"]


def test_processes_of_the_model_start_in_either_way(function: Maker) -> None:
    host = function("""
        import multiprocessing

        def double(number):
            print("doubling", flush=True)
            return number * 2

        def predict(method: str) -> list[int]:
            with multiprocessing.get_context(method).Pool(2) as pool:
                return pool.map(double, [1, 2, 3])
    """)
    for method in ("fork", "spawn"):
        end = host.run({"method": method}, method)
        assert (end["output"], end["logs"].count("doubling")) == ([2, 4, 6], 3), end


VERSIONS = ("3.10", "3.12", "3.13", "3.14")


def interpreter(version: str) -> str | None:
    """Find an interpreter of that version; pyenv's own names for those that are not chosen lead nowhere."""
    kept = Path(os.environ.get("PYENV_ROOT", "/nowhere"), "versions").glob(f"{version}.*/bin/python")
    for path in [*map(str, kept), shutil.which(f"python{version}")]:
        if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    return None


@pytest.mark.parametrize("version", VERSIONS)
def test_other_versions_of_python_host_as_well(function: Maker, outside: Outside, version: str) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} on this machine")
    host = function(
        """
        import asyncio
        from dataclasses import dataclass
        from pathlib import Path
        from typing import Annotated, AsyncIterator, Literal, Optional, TypedDict, Union

        class Options(TypedDict, total=False):
            steps: int

        @dataclass
        class Item:
            text: str
            file: Optional[Path] = None

        async def predict(
            source: Path,
            style: Annotated[Literal["a", "b"], "which"] = "a",
            options: Options = {},
            more: Union[int, str] = 1,
            nap_s: float = 0,
        ) -> AsyncIterator[Item]:
            print("awake")
            await asyncio.sleep(nap_s)
            yield Item(f"{style} {options} {more}", source)
        """,
        python=python,
        slots=2,
    )
    assert host.health()["status"] == "READY", host.setup_log()
    assert host.health()["version"]["python"].startswith(version)
    end = host.run({"source": "data:,hello", "options": {"steps": 2}, "more": "x"})
    assert end["output"] == [{"text": "a {'steps': 2} x", "file": f"{outside.url}/receipts/1"}]
    assert end["logs"] == "awake\n"
    host.start({"source": "data:,x", "nap_s": 60}, "r2")
    host.until_log("awake", "r2")
    host.cancel("r2")
    assert host.ended("r2")["status"] == "canceled"
    assert host.look("r9").status_code == 422
