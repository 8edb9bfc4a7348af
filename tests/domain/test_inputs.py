"""Validation of inputs: the reference's own examples, Cog's schema shapes, and documents that mean harm."""

import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogflare.domain.inputs import BadSchema, FieldProblem, compile_input, is_file_reference
from cogflare.domain.schemas import has_file_outputs, output_kind


def document(input_: object, **schemas: object) -> dict[str, Any]:
    return {"openapi": "3.0.2", "components": {"schemas": {"Input": input_, **schemas}}}


def properties(**named: object) -> dict[str, Any]:
    return document({"type": "object", "title": "Input", "properties": named})


COG = document(
    {
        "title": "Input",
        "type": "object",
        "required": ["prompt"],
        "properties": {
            "prompt": {"type": "string", "title": "Prompt", "x-order": 0, "description": "Text", "minLength": 2},
            "image": {"type": "string", "format": "uri", "nullable": True, "x-order": 1},
            "output_format": {"allOf": [{"$ref": "#/components/schemas/output_format"}], "default": "png"},
            "num_inference_steps": {"type": "integer", "minimum": 1, "maximum": 4, "default": 4},
            "guidance": {"type": "number", "minimum": 0, "exclusiveMinimum": True, "exclusiveMaximum": 10},
            "list": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
            "code": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 4},
            "flag": {"type": "boolean"},
            "token": {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True},
        },
    },
    output_format={
        "title": "output_format",
        "enum": ["jpg", "png"],
        "type": "string",
        "description": "An enumeration.",
    },
)


def problems(schema: object, value: object) -> list[tuple[str, str, str]]:
    found = compile_input(schema).problems(msgspec.json.encode(value))
    return [(one.type, one.field, one.description) for one in found]


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "hi"},
        {"prompt": "hi", "num_inference_steps": 4.0, "guidance": 0.1, "list": [1, 2.0], "code": "abc", "flag": True},
        {"prompt": "hi", "image": None, "output_format": "jpg", "token": "s3cret"},
        {"prompt": "hi", "image": "HTTPS://example.net/a%20b.png"},
        {"prompt": "hi", "image": "data:image/png;base64,aGk="},
        {"prompt": "hi", "stream": True, "max_new_tokens": 5, "stop_sequences": ["x"]},
    ],
)
def test_valid_inputs_and_unknown_keys_pass(value: dict[str, Any]) -> None:
    assert compile_input(COG).problems(value) == []
    assert problems(COG, value) == []


def test_the_reference_example_is_answered_word_for_word() -> None:
    assert problems(COG, {"num_inference_steps": 9}) == [
        ("required", "input", "prompt is required"),
        ("number_lte", "input.num_inference_steps", "Must be less than or equal to 4"),
    ]


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (
            {"output_format": "gif"},
            ("enum", "input.output_format", 'output_format must be one of the following: "jpg", "png"'),
        ),
        ({"prompt": 5}, ("invalid_type", "input.prompt", "Invalid type. Expected: string, given: integer")),
        ({"prompt": None}, ("invalid_type", "input.prompt", "Invalid type. Expected: string, given: null")),
        ({"prompt": "x"}, ("string_gte", "input.prompt", "String length must be greater than or equal to 2")),
        ({"image": 5}, ("invalid_type", "input.image", "Invalid type. Expected: string, given: integer")),
        (
            {"num_inference_steps": 1.5},
            ("invalid_type", "input.num_inference_steps", "Invalid type. Expected: integer, given: number"),
        ),
        (
            {"num_inference_steps": 0},
            ("number_gte", "input.num_inference_steps", "Must be greater than or equal to 1"),
        ),
        ({"guidance": 0}, ("number_gt", "input.guidance", "Must be greater than 0")),
        ({"guidance": 10.0}, ("number_lt", "input.guidance", "Must be less than 10")),
        ({"list": ["x"]}, ("invalid_type", "input.list.0", "Invalid type. Expected: integer, given: string")),
        ({"list": []}, ("array_min_items", "input.list", "Array must have at least 1 items")),
        ({"list": [1, 2, 3, 4]}, ("array_max_items", "input.list", "Array must have at most 3 items")),
        ({"list": {}}, ("invalid_type", "input.list", "Invalid type. Expected: array, given: object")),
        ({"code": "A"}, ("pattern", "input.code", "Does not match pattern '^[a-z]+$'")),
        ({"code": "abcde"}, ("string_lte", "input.code", "String length must be less than or equal to 4")),
        ({"flag": "true"}, ("invalid_type", "input.flag", "Invalid type. Expected: boolean, given: string")),
        (
            {"image": "file:///etc/passwd"},
            ("format", "input.image", "Does not match format 'uri': pass an http(s) URL or a data: URL"),
        ),
    ],
)
def test_each_broken_rule_has_its_sentence(wrong: dict[str, Any], problem: tuple[str, str, str]) -> None:
    assert problems(COG, {"prompt": "hi", **wrong}) == [problem]


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("http://a", True),
        ("https://a/b c?d#e", True),
        ("data:,x", True),
        ("DATA:text/plain,x", True),
        ("data:nothing", False),
        ("http://", False),
        ("http:///x", False),
        ("https://a\nb", False),
        ("ftp://a/b", False),
        ("/etc/passwd", False),
        ("cogflare-file:/f/x", False),
        ("", False),
    ],
)
def test_file_references(text: str, fits: bool) -> None:
    assert is_file_reference(text) is fits


@pytest.mark.parametrize("schema", [{}, None, [], {"components": None}, {"components": {"schemas": {"Input": None}}}])
def test_without_a_schema_any_object_is_valid(schema: object) -> None:
    validator = compile_input(schema)
    assert validator.problems({"any": "thing"}) == []
    assert validator.problems(b"[1]") == [
        FieldProblem("invalid_type", "input", "Invalid type. Expected: object, given: array")
    ]
    assert [one.type for one in validator.problems(b"{")] == ["invalid_json"]


@pytest.mark.parametrize(
    ("node", "good", "bad"),
    [
        ({"allOf": [{"$ref": "#/components/schemas/e"}], "nullable": True}, [None, "a"], ["c", 1]),
        ({"$ref": "#/components/schemas/e"}, ["a"], [None]),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, [None, 1], ["x"]),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, ["x", 1], [None, []]),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}], "nullable": True}, ["x", 1, None], [[]]),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, [1, 1.5], ["x"]),
        ({"type": ["string", "null"]}, [None, "x"], [1]),
        ({"type": "null"}, [None], [1]),
        ({"const": 5}, [5], [6]),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, [{"k": 1}], [{"k": "v"}]),
        ({"type": "object", "additionalProperties": False}, [{}], [{"k": "v"}]),
        ({"type": "array", "uniqueItems": True}, [[1, 2]], [[1, 1]]),
        ({"type": "integer", "multipleOf": 8}, [16], [12]),
        ({"type": "string", "pattern": "(?<=a)b\\Z"}, ["anything: the model judges it"], []),
        ({"x-unknown": 1, "not": {}}, [1, None, "x"], []),
        (True, [1], []),
    ],
)
def test_schema_shapes(node: object, good: list[object], bad: list[object]) -> None:
    schema = document({"type": "object", "properties": {"v": node}}, e={"enum": ["a", "b"], "type": "string"})
    for value in good:
        assert problems(schema, {"v": value}) == []
    for value in bad:
        found = problems(schema, {"v": value})
        assert found
        assert found[0][1].startswith("input.v")
        assert found[0][0] != "invalid"


def test_an_undeclared_nested_key_is_named() -> None:
    closed = properties(v={"type": "object", "properties": {"a": {}}, "additionalProperties": False})
    empty = properties(v={"type": "object", "additionalProperties": False})
    assert problems(closed, {"v": {"k": 1, "a": 1}}) == [
        ("additional_property_not_allowed", "input.v", "Additional property k is not allowed")
    ]
    assert problems(empty, {"v": {"k": 1}}) == [("array_max_properties", "input.v", "Must have at most 0 properties")]


def _nested(levels: int) -> dict[str, Any]:
    node: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        node = {"type": "array", "items": node}
    return node


def _laughs() -> dict[str, Any]:
    bombs = {
        f"l{i}": {"type": "object", "properties": {k: {"$ref": f"#/components/schemas/l{i + 1}"} for k in "abcdefghij"}}
        for i in range(12)
    }
    return document({"$ref": "#/components/schemas/l0"}, **bombs, l12={"type": "string"})


@pytest.mark.parametrize(
    "schema",
    [
        document({"$ref": "#/components/schemas/Input"}),
        document(
            {"properties": {"a": {"$ref": "#/components/schemas/b"}}}, b={"items": {"$ref": "#/components/schemas/b"}}
        ),
        properties(a={"$ref": "http://169.254.169.254/latest"}),
        properties(a={"$ref": "file:///etc/passwd"}),
        properties(a={"$ref": "#/components/schemas/gone"}),
        properties(a=_nested(5000)),
        _laughs(),
        properties(**{f"p{i}": {"pattern": "a{50000}"} for i in range(200)}),
        properties(a={"pattern": "a" * 5000}),
        properties(a={"type": "wat"}),
        properties(a={"minimum": "x"}),
        properties(a={"minLength": -1}),
        properties(a={"maxItems": 2**70}),
        properties(a={"multipleOf": 0}),
        properties(a={"maximum": float("nan")}),
        properties(a={"enum": "abc"}),
        properties(a={"enum": list(range(20_000))}),
        properties(a={"enum": [_nested(5000)]}),
        properties(a=5),
        document([]),
        document({"properties": []}),
        document({"required": [1]}),
        document({"allOf": {}}),
    ],
)
def test_hostile_schemas_are_refused_quickly(schema: object) -> None:
    start = time.perf_counter()
    with pytest.raises(BadSchema, match="Input"):
        compile_input(schema)
    assert time.perf_counter() - start < 2


def test_a_catastrophic_pattern_takes_linear_time() -> None:
    validator = compile_input(properties(a={"type": "string", "pattern": "^(a|a)*(a+)+$"}))
    start = time.perf_counter()
    assert [one.type for one in validator.problems({"a": "a" * 9_000 + "!"})] == ["pattern"]
    assert validator.problems({"a": "a" * 1_000_000 + "!"}) == []
    assert time.perf_counter() - start < 2


def test_many_problems_are_told_in_part() -> None:
    validator = compile_input(properties(a={"type": "array", "items": {"type": "string"}}))
    assert len(validator.problems({"a": [1] * 1_000})) == 50
    start = time.perf_counter()
    assert [one.field for one in validator.problems({"a": [1] * 1_000_000})] == ["input.a.0"]
    assert time.perf_counter() - start < 2


def test_a_wide_schema_and_a_large_value_cannot_multiply() -> None:
    choices = [{"type": "string", "minLength": length} for length in range(900)]
    validator = compile_input(properties(a={"type": "array", "items": {"anyOf": choices}}))
    start = time.perf_counter()
    assert [one.type for one in validator.problems({"a": [1] * 1_900})] == ["number_any_of"]
    assert [one.type for one in validator.problems({"a": [1] * 1_000_000})] == ["unchecked"]
    assert time.perf_counter() - start < 2


def test_a_value_nested_beyond_reason_is_a_problem_and_no_crash() -> None:
    value: dict[str, Any] = {}
    for _ in range(700):
        value = {"a": value}
    found = compile_input(properties(a={"type": "string"})).problems(value)
    assert [one.description for one in found] == ["Too large or too deeply nested to be checked"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
WORDS = st.sampled_from(
    [
        "type",
        "properties",
        "items",
        "enum",
        "allOf",
        "anyOf",
        "$ref",
        "nullable",
        "minimum",
        "pattern",
        "required",
        "format",
        "maxLength",
        "exclusiveMinimum",
        "additionalProperties",
        "string",
        "object",
        "array",
        "integer",
        "uri",
        "#/components/schemas/Input",
        "#/components/schemas/a",
        "(a+)+$",
        "[",
    ]
)
SCHEMAS = st.recursive(
    WORDS | st.booleans() | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=20,
)


@settings(deadline=None, max_examples=300)
@given(SCHEMAS, SCHEMAS, JSON)
def test_no_schema_and_no_value_raises_anything_else(first: object, second: object, value: object) -> None:
    schema = document(first, a=second, Output=first)
    assert output_kind(schema) in ("single", "iterator", "text")
    assert has_file_outputs(schema) in (True, False)
    try:
        validator = compile_input(schema)
    except BadSchema:
        return
    for one in validator.problems(msgspec.json.encode(value)):
        assert one.field == "input" or one.field.startswith("input.")


@settings(deadline=None)
@given(st.binary(max_size=64) | st.text(max_size=64).map(str.encode))
def test_no_bytes_raise(data: bytes) -> None:
    compile_input(COG).problems(data)


ITERATOR = {"type": "array", "items": {"type": "string"}, "x-cog-array-type": "iterator"}


@pytest.mark.parametrize(
    ("output", "kind", "files"),
    [
        ({"type": "string"}, "single", False),
        ({"type": "string", "format": "uri"}, "single", True),
        ({"type": "array", "items": {"type": "string", "format": "uri"}}, "single", True),
        (ITERATOR, "iterator", False),
        ({**ITERATOR, "x-cog-array-display": "concatenate"}, "text", False),
        ({"$ref": "#/components/schemas/Text"}, "text", False),
        ({"allOf": [{"$ref": "#/components/schemas/Text"}], "title": "Output"}, "text", False),
        ({"$ref": "#/components/schemas/Loop"}, "single", False),
        ({"type": "object", "properties": {"image": {"$ref": "#/components/schemas/File"}}}, "single", True),
        (None, "single", False),
        ("nonsense", "single", False),
    ],
)
def test_outputs(output: object, kind: str, files: bool) -> None:
    schema = document(
        {},
        Output=output,
        Text={**ITERATOR, "x-cog-array-display": "concatenate"},
        File={"type": "string", "format": "uri"},
        Loop={"items": {"$ref": "#/components/schemas/Loop"}},
    )
    assert output_kind(schema) == kind
    assert has_file_outputs(schema) is files
