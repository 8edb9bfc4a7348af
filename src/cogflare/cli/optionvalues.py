"""Values of options: numbers within bounds, and how what is refused is quoted."""

import math
from typing import Generic, TypeVar

import click
import msgspec

from cogflare.domain.requirements import Tag

_N = TypeVar("_N", int, float)


class _Bounded(click.ParamType[_N], Generic[_N]):
    """A number from `least` to `most`; `least` itself may be left out of that."""

    name = "number"
    _what = "number"

    def __init__(self, least: _N, most: _N | None = None, *, is_open: bool = False) -> None:
        self._least: _N = least
        self._most: _N | None = most
        self._is_open = is_open

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> _N:
        """Read the text of the command line."""
        try:
            number = self._read(str(value))
        except ValueError:
            self.fail(f"{shown(value)} is no {self._what}", param, ctx)
        is_small = number <= self._least if self._is_open else number < self._least
        if is_small or (self._most is not None and number > self._most):
            self.fail(f"{shown(value)} is not {self._bounds()}", param, ctx)
        return number

    def _read(self, text: str) -> _N:
        raise NotImplementedError

    def _bounds(self) -> str:
        if self._is_open:
            most = "" if self._most is None else f", at most {self._most}"
            return f"a {self._what} above {self._least}{most}"
        return f"a {self._what} from {self._least} {'on' if self._most is None else f'to {self._most}'}"


class Whole(_Bounded[int]):
    """A whole number."""

    _what = "whole number"

    def _read(self, text: str) -> int:
        return int(text)


class Number(_Bounded[float]):
    """A number."""

    def _read(self, text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(text)
        return number


class Line(click.ParamType[str]):
    """A line of text of `least` to `most` characters."""

    name = "text"

    def __init__(self, most: int, least: int = 0) -> None:
        self._least, self._most = least, most

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read the text of the command line."""
        text = str(value).strip()
        if not self._least <= len(text) <= self._most or not text.isprintable():
            self.fail(f"{shown(value)} is not one line of {self._least or 'up'} to {self._most} characters", param, ctx)
        return text


class TagName(click.ParamType[str]):
    """What a machine has, and models may require."""

    name = "text"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read the text of the command line."""
        try:
            return msgspec.convert(value, Tag)
        except msgspec.ValidationError:
            form = "letters, digits and . _ : / = + -, 64 at most, a letter or digit first"
            self.fail(f"{shown(value)} is no tag: {form}", param, ctx)


def shown(value: object) -> str:
    """Quote what was given, of something long only how it begins."""
    text = str(value)
    return repr(text if len(text) <= 50 else f"{text[:50]}…")
