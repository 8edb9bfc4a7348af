"""What the model's process serves: a function with a description of its input and output.

SetupError    the model cannot be served; the message is for whoever starts it
Failed        a run has failed, for a reason that is all there is to say
"""

import dataclasses
import datetime
import enum
import inspect
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .files import Files


class SetupError(Exception):
    """The model cannot be served."""


class Failed(Exception):
    """A run has failed; the message is its error."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A function. ``bind`` makes the call of a run out of its id and input, ``settle`` says what its result means."""

    document: dict[str, Any]
    is_async: bool
    is_iterator: bool
    bind: Callable[[str, dict[str, Any], Files], Callable[[], Any]]
    settle: Callable[[Any], Any] = lambda value: value


def is_async(function: Any) -> bool:
    """Whether a function is to be run on an event loop."""
    return any(inspect.iscoroutinefunction(part) or inspect.isasyncgenfunction(part) for part in _parts(function))


def is_generator(function: Any) -> bool:
    """Whether a function yields."""
    return any(inspect.isgeneratorfunction(part) or inspect.isasyncgenfunction(part) for part in _parts(function))


async def awaited(result: Any) -> Any:
    """Return what an awaitable comes to."""
    return await result


def _parts(function: Any) -> tuple[Any, ...]:
    function = inspect.unwrap(function)
    return function, getattr(function, "__call__", None)  # noqa: B004 - an object may be called as well


def plain(value: Any, files: Files) -> Any:
    """Return a result as JSON has it, its files stored; raises `TypeError` for what JSON cannot say."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"the output holds {value}, which is no JSON")
    if value is None or isinstance(value, bool | str) or type(value) in (int, float):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, enum.Enum):
        return plain(value.value, files)
    if isinstance(value, pathlib.PurePath):
        return files.store(value)
    if isinstance(value, Mapping):
        return {_key(key): plain(member, files) for key, member in value.items()}
    if isinstance(value, list | tuple | set | frozenset | Iterator):
        return [plain(item, files) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), files) for field in dataclasses.fields(value)}
    return _foreign(value, files)


def _foreign(value: Any, files: Files) -> Any:
    """Values of libraries that know how to become plain ones: arrays and their scalars, models of pydantic, times."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    for method in ("tolist", "model_dump"):
        if callable(made := getattr(value, method, None)) and not isinstance(value, type):
            return plain(made(), files)
    raise TypeError(f"the output holds something of type {type(value).__qualname__}, which is no JSON")


def _key(key: object) -> str:
    key = key.value if isinstance(key, enum.Enum) else key
    if isinstance(key, str | int | float | bool):
        return str(key)
    raise TypeError(f"the output holds a dictionary with a key of type {type(key).__qualname__}, which is no JSON")
