"""Type hints as schemas: equal to Cog's for equal models, and complaints about what cannot be served."""

import json
import re
import sys
import types
import typing
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from functools import partial
from pathlib import Path, PosixPath
from typing import Annotated, Any, ClassVar, Literal, NewType, NotRequired, TypedDict

import jsonschema_rs
import pytest

from cogflare.agent.hosting.annotations import Kinds, Unsupported
from cogflare.agent.hosting.checking import check, problems
from cogflare.agent.hosting.files import Files
from cogflare.agent.hosting.functions import describe, load
from cogflare.agent.hosting.model import SetupError
from cogflare.domain.inputs import compile_input

MODELS = Path(__file__).parents[2] / "models"


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Point:
    x: int
    y: float = 0.0
    colour: Colour = Colour.RED
    tags: list[str] = field(default_factory=list)


@dataclass
class Tree:
    left: "Tree | None"


@dataclass
class Counted:
    made: ClassVar[int] = 0
    first: int
    total: int = field(init=False, default=0)
    last: int = field(default=9, kw_only=True)


POSTPONED = """
from __future__ import annotations
from typing import Annotated, NotRequired, Required, TypedDict

class Options(TypedDict):
    steps: Annotated[int, {"ge": 1}]
    name: NotRequired[str]

class Others(TypedDict, total=False):
    seed: Required[int]
    name: str

def predict(options: Options, others: Others) -> str: ...
"""
METHODS = """
class Model:
    @classmethod
    def made(cls, text: str) -> str: ...
    @staticmethod
    def plain(text: str) -> str: ...
    def predict(self, text: str) -> str: ...

model = Model()
"""


class Options(TypedDict):
    steps: Annotated[int, {"ge": 1}]
    name: NotRequired[str]


class FieldInfo:
    """As Cog's ``Input(…)`` and pydantic's ``Field(…)`` leave it in a signature."""

    def __init__(self, default: object = None, **said: object) -> None:
        self.default = default
        self.__dict__.update(said)


def said(default: object = None, **said: object) -> Any:
    """Return such an object, of any type as theirs are."""
    return FieldInfo(default, **said)


Seed = NewType("Seed", int)


# --- the same as Cog's ------------------------------------------------------------------------------------------------


def noop(text: Annotated[str, "What to answer"] = "hello") -> str:
    raise NotImplementedError


def failing(message: Annotated[str, "What to raise", {"min_length": 1}]) -> str:
    raise NotImplementedError


def sleeper(
    seconds: Annotated[float, {"description": "How long to sleep", "ge": 0, "le": 600}],
    stubborn: Annotated[bool, "Swallow the cancellation"] = False,
) -> str:
    raise NotImplementedError


def tokens(
    count: int = said(5, description="How many words", ge=0, le=100_000),
    delay_s: Annotated[float, "Pause between words", {"ge": 0, "le": 10}] = 0.0,
) -> Iterator[str]:
    raise NotImplementedError


def frames(count: Annotated[int, "How many files", {"ge": 0, "le": 100}] = 3) -> Generator[Path, None, None]:
    raise NotImplementedError


def gallery(count: Annotated[int, "How many files", {"ge": 0, "le": 20}] = 6) -> list[Path]:
    raise NotImplementedError


@dataclass
class FilesOutput:
    single: Path
    many: list[Path]
    text: str


def files(source: Annotated[Path, "The file to shout"], copies: Annotated[int, {"ge": 0}] = 2) -> FilesOutput:
    raise NotImplementedError


@pytest.mark.parametrize("function", [noop, failing, sleeper, tokens, frames, gallery, files])
def test_a_function_has_the_schema_of_the_same_model_in_cog(function: Callable[..., Any]) -> None:
    theirs = json.loads((MODELS / function.__name__ / ".cog" / "openapi_schema.json").read_text())
    ours = describe(function).document
    for name in ("Input", "Output"):
        assert ours["components"]["schemas"][name] == theirs["components"]["schemas"][name]
    assert {**theirs["paths"]["/predictions"]["post"], "x-cog-streaming": True}.keys() == ours["paths"]["/predictions"][
        "post"
    ].keys()


# --- hints ------------------------------------------------------------------------------------------------------------


def kind_of(hint: Any, value: Any = None) -> tuple[dict[str, Any], Any]:
    """The schema of a hint, and what a value becomes."""
    kinds = Kinds()
    kind = kinds.of(hint, "x")
    assert value is None or not check(kind.schema, value, kinds.components)
    return kind.schema, kind.load(value, Files("", "r1")) if value is not None else None


@pytest.mark.parametrize(
    ("hint", "schema", "given", "value"),
    [
        (str, {"type": "string"}, "a", "a"),
        (int, {"type": "integer"}, 2.0, 2),
        (float, {"type": "number"}, 2, 2.0),
        (bool, {"type": "boolean"}, True, True),
        (Any, {}, [1], [1]),
        (list, {"type": "array", "items": {}}, [1, "a"], [1, "a"]),
        (list[int], {"type": "array", "items": {"type": "integer"}}, [1], [1]),
        (Sequence[float], {"type": "array", "items": {"type": "number"}}, [1], [1.0]),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}, [1], (1,)),
        (set[str], {"type": "array", "items": {"type": "string"}}, ["a"], {"a"}),
        (dict, {"type": "object", "additionalProperties": True}, {"a": 1}, {"a": 1}),
        (dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}, {"a": 1}, {"a": 1.0}),
        (typing.Optional[str], {"type": "string", "nullable": True}, "a", "a"),  # noqa: UP045
        (int | None, {"type": "integer", "nullable": True}, 1, 1),
        (int | str, {"anyOf": [{"type": "integer"}, {"type": "string"}]}, "a", "a"),
        (Seed, {"type": "integer"}, 3, 3),
        (Annotated[str, "d", {"max_length": 3, "pattern": "^a"}],
         {"type": "string", "description": "d", "maxLength": 3, "pattern": "^a"}, "ab", "ab"),
        (Annotated[list[str], {"min_length": 1}], {"type": "array", "items": {"type": "string"}, "minItems": 1},
         ["a"], ["a"]),
        (Annotated[int, FieldInfo(gt=1, lt=9)], {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 9},
         5, 5),
        (Annotated[float, FieldInfo(metadata=[FieldInfo(ge=1)])], {"type": "number", "minimum": 1}, 5, 5.0),
    ],
)  # fmt: skip
def test_a_hint_has_a_schema_and_makes_values(hint: Any, schema: dict[str, Any], given: Any, value: Any) -> None:
    assert kind_of(hint, given) == (schema, value)
    assert type(kind_of(hint, given)[1]) is type(value)


@pytest.mark.parametrize(
    ("hint", "name", "component", "given", "value"),
    [
        (Literal["a", "b"], "x", {"enum": ["a", "b"], "type": "string"}, "b", "b"),
        (Literal[1, 2], "x", {"enum": [1, 2], "type": "integer"}, 2, 2),
        (Literal[1, "a"], "x", {"enum": [1, "a"]}, "a", "a"),
        (Colour, "Colour", {"enum": ["red", "blue"], "type": "string"}, "blue", Colour.BLUE),
        (Level, "Level", {"enum": [1, 2], "type": "integer"}, 2, Level.HIGH),
        (Annotated[str, {"choices": ["s", "m"]}], "x", {"enum": ["s", "m"], "type": "string"}, "m", "m"),
    ],
)
def test_choices_are_components(hint: Any, name: str, component: dict[str, Any], given: Any, value: Any) -> None:
    kinds = Kinds()
    kind = kinds.of(hint, "x")
    assert kind.schema == {"allOf": [{"$ref": f"#/components/schemas/{name}"}]}
    assert kinds.components == {name: {"title": name, "description": "An enumeration.", **component}}
    assert kind.load(given, Files("", "r1")) == value


def test_a_choice_may_be_missing() -> None:
    kinds = Kinds()
    kind = kinds.of(Annotated[Literal["a"] | None, "why"], "x")
    reference = {"allOf": [{"$ref": "#/components/schemas/x"}]}
    assert kind.schema == {**reference, "nullable": True, "description": "why"}
    assert not check(kind.schema, None, kinds.components)
    assert check(kind.schema, "b", kinds.components)


def test_two_choices_of_one_name_are_two() -> None:
    kinds = Kinds()
    first, second, again = (kinds.of(hint, "x").schema for hint in (Literal["a"], Literal["b"], Literal["a"]))
    assert first == again != second
    assert len(kinds.components) == 2


def test_data_classes_and_typed_dictionaries_are_objects() -> None:
    kinds = Kinds()
    kind = kinds.of(Point, "x")
    assert kind.schema["required"] == ["x"]
    assert kind.schema["properties"]["y"] == {"type": "number", "title": "Y"}
    assert kind.load({"x": 1, "colour": "blue"}, Files("", "r1")) == Point(1, 0.0, Colour.BLUE)
    options = kinds.of(Options, "x")
    assert options.schema["required"] == ["steps"]
    assert options.schema["properties"]["steps"] == {"type": "integer", "minimum": 1, "title": "Steps"}
    assert options.load({"steps": 2}, Files("", "r1")) == {"steps": 2}


def test_of_a_data_class_what_can_be_given_is_offered() -> None:
    kind = Kinds().of(Counted, "x")
    assert list(kind.schema["properties"]) == ["first", "last"]
    assert kind.schema["required"] == ["first"]
    assert kind.load({"first": 1, "total": 5}, Files("", "r1")) == Counted(1)


def test_hints_that_are_texts_say_which_keys_are_required() -> None:
    module = types.ModuleType("postponed")
    exec(POSTPONED, module.__dict__)
    sys.modules["postponed"] = module
    try:
        given, _ = schemas_of(module.predict)
    finally:
        del sys.modules["postponed"]
    assert given["properties"]["options"]["required"] == ["steps"]
    assert given["properties"]["others"]["required"] == ["seed"]
    assert given["required"] == ["options", "others"]


def test_choices_of_a_list_are_those_of_its_items() -> None:
    kinds = Kinds()
    kind = kinds.of(Annotated[list[str], {"choices": ["a", "b"]}], "x")
    assert kind.schema == {"type": "array", "items": {"allOf": [{"$ref": "#/components/schemas/x"}]}}
    assert check(kind.schema, ["a", "b", "a"], kinds.components) == []
    assert check(kind.schema, ["c"], kinds.components)
    assert check(kind.schema, "a", kinds.components)


def test_none_among_choices_is_null() -> None:
    kinds = Kinds()
    kind = kinds.of(Literal["a", None], "x")
    assert check(kind.schema, None, kinds.components) == check(kind.schema, "a", kinds.components) == []
    assert kinds.components["x"]["enum"] == ["a"]


def test_components_have_names_that_references_can_have() -> None:
    def predict() -> Literal["a", "b"]:
        return "a"

    names = describe(predict).document["components"]["schemas"]
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names), names


def test_a_path_is_of_the_class_that_was_asked_for() -> None:
    with Files("", "r1") as fetched:
        path = Kinds().of(PosixPath, "x").load("data:text/plain,hello", fetched)
        assert type(path) is PosixPath
        assert path.read_text() == "hello"
    assert not path.exists()


@pytest.mark.parametrize(
    ("hint", "complaint"),
    [
        (bytes, "x: bytes is not a type that an input or output can have"),
        (list[complex], "x: complex is not a type"),
        (dict[int, str], "x: the keys of a dictionary are texts, not int"),
        (tuple[int, str], "x: tuple[int, str] has items of several types"),
        (Tree, "x.left: Tree has itself as a part"),
        (Callable[[], None], "x: collections.abc.Callable"),
        (typing.TypeVar("T"), "x: ~T is not a type"),
        (Literal["a", b"b"], "x: a choice is between texts, numbers and truth values"),
        (Annotated[str, {"pattern": "("}], "x: pattern cannot be '('"),
        (Annotated[int, {"ge": "a"}], "x: ge cannot be 'a'"),
        (Annotated[str, {"description": 1}], "x: description cannot be 1"),
        (Annotated[int, {"atleast": 1}], "x: nothing is known of atleast; there is description, ge, le,"),
    ],
)
def test_hints_that_cannot_be_served_are_named(hint: Any, complaint: str) -> None:
    with pytest.raises(Unsupported) as raised:
        Kinds().of(hint, "x")
    assert str(raised.value).startswith(complaint)


# --- functions --------------------------------------------------------------------------------------------------------


def schemas_of(function: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    components = describe(function).document["components"]["schemas"]
    return components["Input"], components["Output"]


def test_parameters_are_fields_in_their_order() -> None:
    def predict(a, b: int, /, c: str = "x", *, d: Path | None = None, e: Colour = Colour.RED, f: Any = object()):  # type: ignore[no-untyped-def]  # noqa: B008
        """Does it."""
        return a, b, c, d, e

    given, output = schemas_of(predict)
    assert given["required"] == ["a", "b"]
    assert given["description"] == "Does it."
    assert given["properties"] == {
        "a": {"x-order": 0, "title": "A"},
        "b": {"x-order": 1, "title": "B", "type": "integer"},
        "c": {"x-order": 2, "title": "C", "type": "string", "default": "x"},
        "d": {"x-order": 3, "title": "D", "type": "string", "format": "uri", "nullable": True},
        "e": {"x-order": 4, "allOf": [{"$ref": "#/components/schemas/Colour"}], "default": "red"},
        "f": {"x-order": 5, "title": "F"},
    }
    assert output == {"title": "Output"}
    call = describe(predict).bind("r1", {"a": 1, "b": 2.0, "e": "blue"}, Files("", "r1"))
    assert call() == (1, 2, "x", None, Colour.BLUE)


def test_a_field_object_may_have_no_default() -> None:
    def predict(a: str = said(description="needed"), b: str = said(...), c: str | None = said()) -> str:
        return f"{a}{b}{c}"

    assert schemas_of(predict)[0]["required"] == ["a", "b"]
    assert describe(predict).bind("r1", {"a": "x", "b": "y"}, Files("", "r1"))() == "xyNone"


@pytest.mark.parametrize(
    ("hint", "output"),
    [
        (Iterator[str], {"items": {"type": "string"}, "x-cog-array-display": "concatenate"}),
        (Iterator, {"items": {}}),
        (AsyncIterator[int], {"items": {"type": "integer"}}),
        (Generator[Path, None, None], {"items": {"type": "string", "format": "uri"}}),
    ],
)
def test_iterators_stream(hint: Any, output: dict[str, Any]) -> None:
    def predict():  # type: ignore[no-untyped-def]
        pass

    predict.__annotations__["return"] = hint
    assert schemas_of(predict)[1] == {"title": "Output", "type": "array", "x-cog-array-type": "iterator", **output}
    assert describe(predict).is_iterator


def test_what_yields_streams_without_a_hint() -> None:
    def predict():  # type: ignore[no-untyped-def]
        yield 1

    assert describe(predict).is_iterator


def test_other_callables_are_functions_too() -> None:
    class Model:
        def __call__(self, text: str) -> str:
            return text

        async def later(self, text: str) -> str:
            return text

    assert list(schemas_of(Model())[0]["properties"]) == ["text"]
    assert describe(Model().later).is_async
    assert not describe(Model()).is_async
    given, _ = schemas_of(partial(Model(), text="x"))
    assert given["properties"]["text"]["default"] == "x"


def test_methods_need_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "methods.py").write_text(METHODS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("Model.made", "Model.plain", "model.predict"):
        assert load(f"methods:{name}").document["components"]["schemas"]["Input"]["required"] == ["text"]
    with pytest.raises(SetupError, match=r"methods:Model.predict is a method of objects: .* methods:object.predict"):
        load("methods:Model.predict")


def test_functions_that_cannot_be_served_say_why() -> None:
    def variadic(*args: int) -> None: ...

    def named(**options: int) -> None: ...

    def unknown(x: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    def listed() -> list[int]:  # type: ignore[misc]
        yield 1

    for function, complaint in (
        (variadic, "*args: every input has a name of its own"),
        (named, "*options: every input has a name of its own"),
        (unknown, "name 'Nowhere' is not defined"),
        (listed, "it yields, and is hinted to return list[int]; Iterator[…] says what it yields"),
    ):
        with pytest.raises(SetupError) as raised:
            describe(function)
        assert str(raised.value) == f"{function.__name__} cannot be made into a model: {complaint}"


# --- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [
    *({"type": name} for name in ("string", "integer", "number", "boolean", "array", "object")),
    {"type": "string", "minLength": 1}, {"type": "string", "minLength": 3}, {"type": "string", "maxLength": 2},
    {"type": "string", "pattern": "^a+$"}, {"type": "integer", "minimum": 2}, {"type": "number", "maximum": 1.5},
    {"type": "number", "exclusiveMinimum": 2}, {"type": "number", "exclusiveMaximum": 2},
    {"type": "array", "items": {"type": "integer"}}, {"type": "array", "minItems": 1}, {"type": "array", "maxItems": 1},
    {"enum": ["a", "b", "c"]}, {"enum": [1, 2]}, {"enum": [True]}, {"enum": ["x"]},
    {"anyOf": [{"type": "string"}, {"type": "integer"}]},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"type": "string"}}}}},
])  # fmt: skip
@pytest.mark.parametrize(
    "value",
    [None, True, 0, 1, 2, 2.0, 2.5, "", "a", "aaab", "ünï", [], [1], ["x", 2, None], {}, {"a": 1}, {"a": {"b": 1}}],
)
def test_problems_are_told_in_the_words_of_cogs_server(schema: dict[str, Any], value: object) -> None:
    theirs = [
        ("/".join(map(str, error.instance_path)), error.message)
        for error in jsonschema_rs.validator_for(schema).iter_errors(value)
    ]
    assert [("/".join(path), message) for path, message in check(schema, value, {})] == theirs


def test_problems_have_a_place() -> None:
    def predict(some: list[Point], count: Annotated[int, {"ge": 1}] = 1, maybe: int | None = None) -> None: ...

    document = describe(predict).document
    given = {"some": [{"x": 1}, {"y": "a"}], "count": 0, "maybe": None, "unknown": 1}
    assert [(problem["loc"][2:], problem["msg"], problem["type"]) for problem in problems(document, given)] == [
        (["some/1/x"], "Field required", "value_error.missing"),
        (["some/1/y"], '"a" is not of type "number"', "value_error"),
        (["count"], "0 is less than the minimum of 1", "value_error"),
    ]
    assert problems(document, "text")[0]["loc"] == ["body", "input", "__root__"]


@pytest.mark.parametrize("function", [noop, failing, sleeper, tokens, frames, gallery, files])
def test_the_server_understands_the_documents(function: Callable[..., Any]) -> None:
    validator = compile_input(describe(function).document)
    assert validator.problems({}) == [] or "required" in describe(function).document["components"]["schemas"]["Input"]
    assert validator.problems({"count": "text", "text": 1, "message": 1, "seconds": "x", "source": 1})
