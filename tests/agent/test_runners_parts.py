"""The parts without I/O: progress, order of files, shapes of outputs, data URLs, cog.yaml."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cogflare.agent.runners.base import Log, Metric, Output, SetupFailed
from cogflare.agent.runners.cogyaml import read_config
from cogflare.agent.runners.inbox import Inbox
from cogflare.agent.runners.outputs import OutputFiles, OutputShape, decode_data_url
from cogflare.agent.runners.progress import Progress
from support.runners import MemorySink


def progress() -> Progress:
    return Progress(is_iterator=True)


def test_snapshots_become_differences() -> None:
    run = progress()
    assert run.snapshot({"logs": "a\n", "output": ["x"]}) == [Log("a\n"), Output(0, "x")]
    assert run.snapshot({"logs": "a\nb\n", "output": ["x", "y"]}) == [Log("b\n"), Output(1, "y")]


def test_a_snapshot_that_was_overtaken_says_nothing() -> None:
    run = progress()
    run.snapshot({"logs": "a\nb\n", "output": ["x", "y"], "metrics": {}})
    assert run.snapshot({"logs": "a\n", "output": ["x"], "metrics": {}}) == []


def test_old_servers_leave_fields_empty() -> None:
    assert progress().snapshot({"logs": None, "output": None, "metrics": None}) == []


def test_a_stream_that_begins_again_is_not_said_again() -> None:
    run = progress()
    for _ in range(2):
        run.stream_begins()
        said = run.stream("log", {"source": "stdout", "data": "a\n"}) + run.stream("output", {"chunk": "x", "index": 0})
    assert said == []
    assert run.stream("log", {"source": "stdout", "data": "b\n"}) == [Log("b\n")]
    assert run.stream("output", {"chunk": "y", "index": 1}) == [Output(1, "y")]
    assert run.snapshot({"logs": "a\nb\n", "output": ["x", "y"]}) == []


def test_a_stream_with_a_gap_waits_for_a_snapshot() -> None:
    run = progress()
    assert run.stream("output", {"chunk": "z", "index": 2}) == []
    assert run.snapshot({"output": ["x", "y", "z"]}) == [Output(0, "x"), Output(1, "y"), Output(2, "z")]


def test_metrics_are_values_not_differences() -> None:
    run = progress()
    run.stream_begins()
    assert run.stream("metric", {"name": "n", "value": 2, "mode": "incr"}) == [Metric("n", 2)]
    assert run.stream("metric", {"name": "n", "value": 3, "mode": "incr"}) == [Metric("n", 5)]
    assert run.stream("metric", {"name": "l", "value": 1, "mode": "append"}) == [Metric("l", [1])]
    assert run.snapshot({"metrics": {"n": 5, "l": [1], "predict_time": 0.1}}) == []


URI = {"type": "string", "format": "uri"}


def document(output: Mapping[str, object]) -> dict[str, object]:
    return {"components": {"schemas": {"Output": output, "Picture": URI}}}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("schema", "wrap"),
    [
        (URI, lambda file: file),
        ({"$ref": "#/components/schemas/Picture"}, lambda file: file),
        ({"allOf": [{"$ref": "#/components/schemas/Picture"}]}, lambda file: file),
        ({"anyOf": [{"type": "object"}, URI]}, lambda file: file),
        ({"type": "array", "items": URI}, lambda file: [file, file]),
        ({"type": "object", "properties": {"a": {"type": "array", "items": URI}}}, lambda file: {"a": [file]}),
        ({"type": "object", "additionalProperties": URI}, lambda file: {"any": file}),
    ],
)
async def test_data_urls_are_files_where_the_schema_says_so(
    schema: dict[str, object], wrap: Callable[[str], object]
) -> None:
    sink = MemorySink()
    files = OutputFiles(OutputShape(document(schema)), Inbox("p1", "p1-1", lambda body: None), sink)
    placed = await files.whole(wrap("data:image/png;base64,AAE="))
    assert "data:" not in str(placed)
    assert set(sink.files.values()) == {b"\x00\x01"}
    assert {(id, kind, size) for id, _, kind, size in sink.puts} == {("p1", "image/png", 2)}
    assert all(name.endswith(".png") for _, name, _, _ in sink.puts)


@pytest.mark.anyio
@pytest.mark.parametrize("schema", [{"type": "string"}, {}, {"type": "object", "properties": {}}])
async def test_other_text_stays_as_it_is(schema: dict[str, object]) -> None:
    sink = MemorySink()
    files = OutputFiles(OutputShape(document(schema)), Inbox("p1", "p1-1", lambda body: None), sink)
    assert await files.whole("data:text/plain,hello") == "data:text/plain,hello"
    assert sink.puts == []


@pytest.mark.anyio
async def test_a_broken_data_url_stays_as_the_model_said_it() -> None:
    files = OutputFiles(OutputShape(document(URI)), Inbox("p1", "p1-1", lambda body: None), MemorySink())
    assert await files.whole("data:image/png;base64,%%%") == "data:image/png;base64,%%%"


def test_data_urls_are_decoded() -> None:
    assert decode_data_url("data:text/plain;charset=utf-8,a%20b") == ("text/plain", b"a b")
    assert decode_data_url("data:;base64,AAE=") == ("text/plain", b"\x00\x01")
    assert decode_data_url("data:None;base64,AAE=") == ("application/octet-stream", b"\x00\x01"), "so Cog once said"
    with pytest.raises(ValueError, match="comma"):
        decode_data_url("data:nothing")


def write_model(folder: Path, yaml: str, source: str = "") -> None:
    (folder / "cog.yaml").write_text(yaml)
    (folder / "predict.py").write_text(source)


def test_slots_come_from_the_decorator(tmp_path: Path) -> None:
    source = "class Runner:\n    @cog.concurrent(max=4)\n    async def run(self): ...\n"
    write_model(tmp_path, 'run: "predict.py:Runner"\n', source)
    assert read_config(tmp_path, None).slots == 4
    assert read_config(tmp_path, 2).slots == 2


def test_slots_come_from_cog_yaml(tmp_path: Path) -> None:
    write_model(tmp_path, 'predict: "predict.py:Predictor"\nconcurrency:\n  max: 3\n', "not python (")
    assert read_config(tmp_path, None).slots == 3


def test_the_build_section_is_read(tmp_path: Path) -> None:
    (tmp_path / "needs.txt").write_text("numpy\n")
    build = (
        'build:\n  python_version: "3.12"\n  python_requirements: needs.txt\n'
        "  python_packages: [pillow==12.0.0]\n  system_packages: [ffmpeg]\n"
    )
    write_model(tmp_path, build + 'predict: "predict.py:Predictor"\n')
    config = read_config(tmp_path, None)
    assert (config.python, config.packages, config.requirements) == ("3.12", ("pillow==12.0.0",), "numpy\n")
    assert config.unmet == ("system_packages: ['ffmpeg']",)


@pytest.mark.parametrize("yaml", ["[]", "build: {}\n", "run: [", "build: text\nrun: a.py\n"])
def test_a_bad_cog_yaml_fails_the_setup(tmp_path: Path, yaml: str) -> None:
    write_model(tmp_path, yaml)
    with pytest.raises(SetupFailed):
        read_config(tmp_path, None)
