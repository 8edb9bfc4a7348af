"""What becomes of `-i key=value`."""

import json
from pathlib import Path
from typing import Any

import click
import pytest

from cogflare.cli.inputs import MAX_FILE_BYTES, input_rows, parse_inputs

_FIELDS: dict[str, Any] = {
    "steps": {"type": "integer", "x-order": 3, "minimum": 1, "maximum": 50, "default": 20},
    "prompt": {"type": "string", "x-order": 0, "description": "Text"},
    "image": {"type": "string", "format": "uri", "x-order": 1},
    "size": {"allOf": [{"$ref": "#/components/schemas/size"}], "x-order": 2, "default": "small"},
    "scale": {"type": "number", "x-order": 4},
    "tiled": {"type": "boolean", "x-order": 5},
    "tags": {"type": "array", "items": {"type": "string"}, "x-order": 6},
    "ids": {"type": "array", "items": {"type": "integer"}, "x-order": 7},
    "seed": {"anyOf": [{"type": "integer"}, {"type": "null"}], "x-order": 8},
    "extra": {"type": "object", "x-order": 9},
    "any": {"x-order": 10},
}
SCHEMA = {
    "components": {
        "schemas": {
            "Input": {"type": "object", "required": ["prompt"], "properties": _FIELDS},
            "size": {"type": "string", "enum": ["small", "large"]},
        }
    }
}


@pytest.mark.parametrize(
    ("pairs", "values"),
    [
        (["prompt=7"], {"prompt": "7"}),
        (["prompt=a=b"], {"prompt": "a=b"}),
        (["prompt="], {"prompt": ""}),
        (["prompt=@@home"], {"prompt": "@home"}),
        (["size=large"], {"size": "large"}),
        (["steps=7", "scale=2.5", "tiled=true"], {"steps": 7, "scale": 2.5, "tiled": True}),
        (["scale=3"], {"scale": 3}),
        (["steps=3.0"], {"steps": 3.0}),
        (["seed=null"], {"seed": None}),
        (["tags=a", "tags=b"], {"tags": ["a", "b"]}),
        (['tags=["a","b"]', "tags=c"], {"tags": ["a", "b", "c"]}),
        (["ids=1", "ids=[2,3]"], {"ids": [1, 2, 3]}),
        (['extra={"a":[1]}'], {"extra": {"a": [1]}}),
        (["any=[1,2]"], {"any": [1, 2]}),
        (["any=red fox"], {"any": "red fox"}),
        (["image=https://example.com/a.png"], {"image": "https://example.com/a.png"}),
    ],
)
def test_values_take_the_type_the_model_declares(pairs: list[str], values: dict[str, Any]) -> None:
    assert parse_inputs(pairs, SCHEMA) == values


@pytest.mark.parametrize("schema", [None, {}, {"components": 5}, {"components": {"schemas": {"Input": {"type": "?"}}}}])
def test_without_a_schema_json_is_json(schema: Any) -> None:
    given = ["n=1", "t=hello", "b=false", 'o={"a":1}', "s=01"]
    assert parse_inputs(given, schema) == {"n": 1, "t": "hello", "b": False, "o": {"a": 1}, "s": "01"}


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("prompt", "key=value"),
        ("=x", "key=value"),
        ("colour=red", "it has: prompt, image, size, steps"),
        ("steps=many", "a whole number"),
        ("steps=2.5", "a whole number"),
        ("tiled=yes", "true or false"),
        ("extra={", r"JSON \(object\)"),
        ("tags=[a", "no JSON list"),
        ("image=@nowhere.png", "No such file"),
    ],
)
def test_what_cannot_be_meant_is_refused(pair: str, words: str) -> None:
    with pytest.raises(click.UsageError, match=words):
        parse_inputs([pair], SCHEMA)


def test_a_value_given_twice_is_refused() -> None:
    with pytest.raises(click.UsageError, match="twice"):
        parse_inputs(["steps=1", "steps=2"], SCHEMA)


def test_a_file_becomes_a_data_url_where_a_file_is_wanted_and_text_where_text_is(tmp_path: Path) -> None:
    file = tmp_path / "note.txt"
    file.write_text("hi")
    assert parse_inputs([f"image=@{file}", f"prompt=@{file}"], SCHEMA) == {
        "image": "data:text/plain;base64,aGk=",
        "prompt": "hi",
    }
    assert parse_inputs([f"image=@{file}"], None) == {"image": "data:text/plain;base64,aGk="}
    (tmp_path / "raw").write_bytes(b"\xff")
    with pytest.raises(click.UsageError, match="wants text"):
        parse_inputs([f"prompt=@{tmp_path / 'raw'}"], SCHEMA)


def test_a_file_too_large_for_a_request_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "large.bin"
    file.write_bytes(bytes(MAX_FILE_BYTES))
    assert parse_inputs([f"image=@{file}"], SCHEMA)
    file.write_bytes(bytes(MAX_FILE_BYTES + 1))
    with pytest.raises(click.UsageError, match="https://"):
        parse_inputs([f"image=@{file}"], SCHEMA)


def test_inputs_are_shown_in_the_models_order() -> None:
    rows = input_rows(SCHEMA)
    assert [row[0] for row in rows][:4] == ["prompt", "image", "size", "steps"]
    assert rows[0] == ("prompt", "string", "(required)", "Text")
    assert [row[1] for row in rows[1:4]] == ["file", "small | large", "integer 1..50"]
    assert [row[1] for row in rows[6:8]] == ["list of string", "list of integer"]


def test_every_test_model_has_inputs_that_can_be_shown() -> None:
    schemas = Path(__file__).parents[2].glob("examples/*/.cog/openapi_schema.json")
    assert all(input_rows(json.loads(schema.read_text())) for schema in schemas)
