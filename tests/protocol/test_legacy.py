"""What frames of workers of 2022 say, whatever they contain."""

import json
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from cogflare.protocol import legacy
from cogflare.protocol.legacy import End, Frame, News, Reader

ID = "01k0000000000000000000000a"


def frame(status: str = "processing", **fields: Any) -> Frame:
    """Return a frame as it is read from a socket."""
    told = {"id": ID, "status": status, "output": None, "logs": [], **fields}
    found = legacy.read(json.dumps(told))
    assert found is not None
    return found


def raws(*values: Any) -> list[Raw]:
    return [Raw(json.dumps(value).encode()) for value in values]


def end_of(news: News) -> End:
    assert news.end is not None
    return news.end


def test_a_log_is_told_from_where_it_was() -> None:
    reader = Reader()
    assert reader.read(frame(logs=["one", "two\n"])).log == "one\ntwo\n"
    assert reader.read(frame(logs=["one", "two\n"])).log == ""
    assert reader.read(frame(logs=["one", "two\n", "three"])).log == "three\n"
    assert reader.read(frame(logs=[])).log == "", "a log never shrinks"
    assert reader.read(frame(logs="one\ntwo\nthree\nfour")).log == "four\n", "some say it as one text"


def test_a_generated_output_grows() -> None:
    reader = Reader()
    assert reader.read(frame(output=[])).items == []
    assert reader.read(frame(output=["a"])).items == raws("a")
    assert reader.read(frame(output=["a"])).items == []
    assert reader.read(frame(output=["a", {"b": 1}])).items == raws({"b": 1})
    last = reader.read(frame("succeeded", output=["a", {"b": 1}, None]))
    assert last.items == raws(None)
    assert end_of(last).output is None, "all of it was told as items"


def test_a_single_output_comes_with_the_end() -> None:
    values: list[Any] = ["text", 1.5, {"a": []}, ["a", "list"], []]
    for value in values:
        last = Reader().read(frame("succeeded", output=value))
        assert last.items == []
        assert end_of(last).output == Raw(json.dumps(value).encode())
    assert end_of(Reader().read(frame("succeeded"))).output is None


def test_an_output_that_does_not_only_grow_is_told_as_a_whole() -> None:
    reader = Reader()
    reader.read(frame(output=["a", "b"]))
    assert reader.read(frame(output=["x"])).items == []
    last = reader.read(frame("succeeded", output=["x", "y"]))
    assert (last.items, end_of(last).output) == ([], Raw(b'["x", "y"]'))
    changed = Reader()
    changed.read(frame(output=["a", "b"]))
    last = changed.read(frame("succeeded", output=["A", "b", "c"]))
    assert end_of(last).output == Raw(b'["A", "b", "c"]')


def test_an_item_that_no_message_takes_waits_for_the_end() -> None:
    reader = Reader()
    large = "x" * 800_000
    assert reader.read(frame(output=["a", large])).items == raws("a")
    last = reader.read(frame("succeeded", output=["a", large, "b"]))
    assert end_of(last).output == Raw(json.dumps(["a", large, "b"]).encode())


def test_the_frame_that_comes_last_has_metrics() -> None:
    times = {"started_at": "2022-11-05T10:00:00.500000", "completed_at": "2022-11-05T10:00:02"}
    first = end_of(Reader().read(frame("succeeded", **{"x-experimental-timestamps": times})))
    assert (first.is_last, first.run_s) == (False, 1.5)
    second = end_of(Reader().read(frame("succeeded", metrics={"predict_time": 2.25, "tokens": 7})))
    assert (second.is_last, second.run_s, second.metrics) == (True, 2.25, {"tokens": Raw(b"7")})


def test_statuses() -> None:
    assert end_of(Reader().read(frame("failed", error="no"))).error == "no"
    assert end_of(Reader().read(frame("failed", error={"a": 1}))).error == "{'a': 1}"
    canceled = end_of(Reader().read(frame("cancelled")))
    assert (canceled.status, canceled.error) == ("failed", "the worker canceled it")
    for other in ("processing", "starting", "", "Succeeded"):
        assert Reader().read(frame(other)).end is None


@pytest.mark.parametrize(
    "metrics", [[], "text", 3, {"predict_time": "long"}, {"predict_time": -1}, {"predict_time": 1e300}, {"a": None}]
)
def test_metrics_without_meaning_keep_no_end_from_being_one(metrics: Any) -> None:
    found = end_of(Reader().read(frame("succeeded", metrics=metrics)))
    assert (found.status, found.run_s) == ("succeeded", None)


def test_what_json_does_not_have() -> None:
    found = legacy.read('{"id": "a", "status": "succeeded", "output": [NaN, Infinity, "\\udc80"]}')
    assert found is not None
    assert end_of(Reader().read(found)).output == Raw(b'[null, null, "?"]')


def test_halves_of_characters_in_a_log() -> None:
    assert Reader().read(frame(logs=["a\udc80", "b"])).log == "a?\nb\n"
    assert end_of(Reader().read(frame("failed", error="a\udc80"))).error == "a?"


def test_an_output_of_very_many_values_is_not_taken_apart() -> None:
    """Each of them would cost fifty times its text, and every frame has them all."""
    many = [1] * 200_000
    reader = Reader()
    assert reader.read(frame(output=[1])).items == raws(1)
    assert reader.read(frame(output=many)).items == []
    last = reader.read(frame("succeeded", output=many))
    assert (last.items, end_of(last).output) == ([], Raw(json.dumps(many).encode()))


@pytest.mark.parametrize("value", ["1", "[]", "{}", '""'])
def test_a_frame_of_too_many_values_takes_no_memory(value: str) -> None:
    crowd = f"[{','.join([value] * (legacy.MAX_VALUES + 1))}]"
    tracemalloc.start()
    try:
        found = legacy.read(f'{{"id": "a", "status": "failed", "output": {crowd}, "logs": {crowd}, "error": {crowd}}}')
        assert found is not None
        last = Reader().read(found)
        assert legacy.read(f'{{"id": "a", "output": {crowd}, "more": NaN}}') is None
        assert tracemalloc.get_traced_memory()[1] < 15 * len(crowd)
    finally:
        tracemalloc.stop()
    assert (last.log, last.items, end_of(last).output) == ("", [], None)
    assert "more than 1000000 values" in str(end_of(last).error)


def test_an_output_that_nobody_can_read_is_a_failure() -> None:
    nested = "[" * 500 + "]" * 500
    deep = legacy.read(f'{{"id": "a", "status": "succeeded", "output": {nested}}}')
    assert deep is not None
    found = end_of(Reader().read(deep))
    assert (found.status, found.output) == ("failed", None)
    assert "cannot be kept" in str(found.error)


@pytest.mark.parametrize(
    "text", ["", "ping", "[]", "{}", "null", '{"id": 1}', '{"status": "succeeded"}', b"\xff\xfe", "[" * 100_000]
)
def test_garbage_is_passed_over(text: str | bytes) -> None:
    assert legacy.read(text) is None


_leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_values = _leaves | st.lists(_leaves, max_size=4) | st.dictionaries(st.text(max_size=5), _leaves, max_size=4)
_MEMBERS = ["status", "output", "logs", "error", "metrics", "x-experimental-timestamps"]
_STATUSES = st.sampled_from(["processing", "succeeded", "failed", "cancelled", "", None])


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(_MEMBERS), _values | _STATUSES, max_size=6), max_size=6))
def test_nothing_a_frame_says_breaks_the_reader(told: list[dict[str, Any]]) -> None:
    reader, items = Reader(), 0
    for fields in told:
        found = legacy.read(json.dumps({"id": "a", **fields}))
        if found is not None:
            news = reader.read(found)
            items += len(news.items)
            assert news.log == "" or news.log.endswith("\n")


def test_a_worker_is_the_same_over_reconnects_and_nobody_elses() -> None:
    one = legacy.worker_id("account", "o/m", "session")
    assert one == legacy.worker_id("account", "o/m", "session")
    others = {
        legacy.worker_id(*about)
        for about in [("a", "o/m", "session"), ("account", "o/n", "session"), ("account", "o/m", "s")]
    }
    assert len({one, *others}) == 4
    assert one.startswith(legacy.HOLDER)


def test_a_job() -> None:
    told = json.loads(legacy.job(ID, "o/m", "f" * 64, Raw(b'{"a": 1}')))
    assert (told["id"], told["input"]) == (ID, {"a": 1})


@pytest.mark.parametrize("text", [r"\n", r"\f", "[{", r"\"", r"\\["])
def test_a_long_text_holds_nobody_up(text: str) -> None:
    """Whatever is in it: as lines, as brackets, or escaped."""
    long = "[" * 200 + text * (40_000_000 // len(text))
    for field in ("output", "logs", "error"):
        began = time.thread_time()
        told = legacy.read(f'{{"id": "{ID}", "status": "failed", "{field}": "{long}"}}')
        assert told is not None
        assert end_of(Reader().read(told)).status == "failed"
        assert time.thread_time() - began < 2


def test_what_is_nested_too_deep_or_is_no_text_is_not_told() -> None:
    deep = "[" * 900 + "]" * 900
    told = legacy.read(f'{{"id": "{ID}", "status": "failed", "metrics": {{"a": {deep}, "b": 1}}}}')
    assert told is not None
    assert end_of(Reader().read(told)).metrics == {"b": Raw(b"1")}
    told = legacy.read(b'{"id": "x", "status": "failed", "metrics": {"a": "\xff", "b": 1}}')
    assert told is not None
    assert end_of(Reader().read(told)).metrics == {"b": Raw(b"1")}
