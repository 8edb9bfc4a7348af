"""What a version's schema says of its output."""

from typing import Any

import pytest

from cogflare.domain.schemas import is_file_output

URI = {"type": "string", "format": "uri"}
NULL = {"type": "null"}


def document(output: Any, **others: Any) -> dict[str, Any]:
    return {"components": {"schemas": {"Output": output, **others}}}


@pytest.mark.parametrize(
    "output",
    [
        URI,
        {"type": "array", "items": URI},
        {"type": "array", "items": URI, "x-cog-array-type": "iterator"},
        {"anyOf": [URI, NULL]},
        {"type": "array", "items": {"anyOf": [NULL, URI]}},
        {"$ref": "#/components/schemas/File"},
        {"allOf": [{"$ref": "#/components/schemas/File"}]},
    ],
)
def test_outputs_that_are_files(output: dict[str, Any]) -> None:
    assert is_file_output(document(output, File=URI))


@pytest.mark.parametrize(
    "output",
    [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "object", "properties": {"image": URI}},
        {"anyOf": [URI, {"type": "string"}]},
        {"$ref": "#/components/schemas/Round"},
        {"items": {"$ref": "#/components/schemas/Endless"}},
        {"anyOf": 5},
        {"anyOf": [5]},
        {"items": 5},
        5,
        None,
    ],
)
def test_outputs_that_are_not(output: Any) -> None:
    endless = {"type": "array", "items": {"$ref": "#/components/schemas/Endless"}}
    assert not is_file_output(document(output, Round={"$ref": "#/components/schemas/Round"}, Endless=endless))
