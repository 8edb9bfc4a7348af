"""The conditions of a route: when a hop may be taken. A small language of comparisons, read by hand and never executed.

    condition  := all ("or" all)*
    all        := negation ("and" negation)*
    negation   := "not" negation | "(" condition ")" | fact | comparison | window
    comparison := operand ("<" | "<=" | ">" | ">=" | "==" | "!=") operand
    window     := ("hour" | "weekday") "in" number ".." number

An operand is a name or a number, of which one at least is a name; times are seconds, or carry a unit (`30s`). What is
not known yet (None) makes its comparison false.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec

MAX_CHARS: Final = 500
MAX_DEPTH: Final = 20
MAX_NUMBER: Final = 1e9

Kind = Literal["time", "count", "hour", "weekday", "fact"]
Values = Mapping[str, float | bool | None]

NAMES: Final[dict[str, Kind]] = {
    "wait": "time",
    "expected_wait": "time",
    "queued": "count",
    "queue_per_worker": "count",
    "workers": "count",
    "slots": "count",
    "free": "count",
    "hour": "hour",
    "weekday": "weekday",
    "no_workers": "fact",
    "busy": "fact",
}
UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_WORDS: Final = frozenset({"and", "or", "not", "in"})
_KINDS: Final = {"time": "a time", "count": "a number of things", "hour": "an hour of the day", "weekday": "a weekday"}
_WINDOWS: Final = {"hour": (0.0, 24.0), "weekday": (1.0, 7.0)}
_TOKEN: Final = re.compile(
    r"[ \t]*(?:(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<unit>[A-Za-z_][A-Za-z0-9_]*)?|(?P<word>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<sign>\.\.|<=|>=|==|!=|<|>|\(|\))|(?P<odd>&&?|\|\|?|=|!|-|\S|$))",
    re.ASCII,
)
_ODD: Final = {
    "&": "write and",
    "&&": "write and",
    "|": "write or",
    "||": "write or",
    "!": "write not",
    "=": "write == to compare",
    "-": "numbers are never below 0 here",
}


class BadCondition(ValueError):
    """The condition makes no sense; `character` (the first is 1) is where."""

    def __init__(self, character: int, text: str) -> None:
        super().__init__(f"character {character}: {text}")
        self.character = character
        self.text = text


class _Fact(msgspec.Struct, frozen=True):
    name: str


class _Comparison(msgspec.Struct, frozen=True):
    left: str | float
    sign: str
    right: str | float


class _Window(msgspec.Struct, frozen=True):
    """From `first` to `last`, round the end where `last` is less: hours without `last`, weekdays with it."""

    name: str
    first: float
    last: float


class _Not(msgspec.Struct, frozen=True):
    term: Any


class _Join(msgspec.Struct, frozen=True):
    is_or: bool
    terms: tuple[Any, ...]


_Term = _Fact | _Comparison | _Window | _Not | _Join


class Condition(msgspec.Struct, frozen=True):
    """A condition as it was written, and what was read in it."""

    text: str
    term: Any

    def holds(self, values: Values) -> bool:
        """Say whether it is true of these values; they have every one of `NAMES`."""
        return _holds(self.term, values)

    def deciding(self, values: Values) -> list[str]:
        """Return the names that make it true, or false, in the order in which they stand in it."""
        return list(dict.fromkeys(_deciding(self.term, values)))


def _holds(term: _Term, values: Values) -> bool:
    match term:
        case _Fact(name=name):
            return bool(values[name])
        case _Not(term=below):
            return not _holds(below, values)
        case _Join(is_or=is_or, terms=terms):
            return (any if is_or else all)(_holds(below, values) for below in terms)
        case _Window():
            return _is_within(term, values[term.name])
    left, right = _value(term.left, values), _value(term.right, values)
    return left is not None and right is not None and _COMPARE[term.sign](left, right)


def _value(operand: str | float, values: Values) -> float | None:
    return values[operand] if isinstance(operand, str) else operand


def _is_within(window: _Window, value: float | None) -> bool:
    if value is None:
        return False
    is_before_end = value < window.last if window.name == "hour" else value <= window.last
    if window.first <= window.last:
        return window.first <= value and is_before_end
    return window.first <= value or is_before_end


def _deciding(term: _Term, values: Values) -> Iterator[str]:
    match term:
        case _Fact(name=name) | _Window(name=name):
            yield name
        case _Comparison():
            yield from (operand for operand in (term.left, term.right) if isinstance(operand, str))
        case _Not(term=below):
            yield from _deciding(below, values)
        case _Join(is_or=is_or, terms=terms):
            outcome = _holds(term, values)
            for below in terms:
                if outcome is not is_or or _holds(below, values) is outcome:
                    yield from _deciding(below, values)


def parse(text: str) -> Condition:
    """Read a condition; raise `BadCondition`."""
    if len(text) > MAX_CHARS:
        raise BadCondition(MAX_CHARS + 1, f"a condition has at most {MAX_CHARS} characters, this one {len(text)}")
    return Condition(" ".join(text.split()), _Parser(text).condition())


class _Token(NamedTuple):
    """`kind` is number, word, sign or end; `is_time` says that a number has a unit."""

    kind: str
    text: str
    character: int
    number: float = 0.0
    is_time: bool = False


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while found := _TOKEN.match(text, at):
        at = found.end()
        kind = found.lastgroup or ""
        character = found.start("number" if kind == "unit" else kind) + 1
        if kind == "odd":
            if not found["odd"]:
                break
            raise BadCondition(character, _ODD.get(found["odd"], f"{found['odd']!r} has no meaning here"))
        if kind in ("number", "unit"):
            yield _number(found, character)
        else:
            yield _Token(kind, found[kind], character)
    yield _Token("end", "the end", len(text.rstrip()) + 1)


def _number(found: re.Match[str], character: int) -> _Token:
    unit = found["unit"]
    if unit is not None and unit not in UNITS:
        raise BadCondition(found.start("unit") + 1, f"unknown unit {unit!r}; there are {', '.join(UNITS)}")
    value = float(found["number"]) * UNITS.get(unit or "s", 1.0)
    if value > MAX_NUMBER:
        raise BadCondition(character, f"numbers go up to {MAX_NUMBER:.0f}")
    return _Token("number", found["number"] + (unit or ""), character, value, unit is not None)


class _Parser:
    """Recursive descent over the tokens of one condition."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0
        self._depth = 0

    def condition(self) -> _Term:
        """Read the whole text."""
        if self._next.kind == "end":
            raise BadCondition(1, "an empty condition; leave `when` out for a hop that may always be taken")
        term = self._join(is_or=True)
        if self._next.kind != "end":
            raise self._unexpected("and, or, or the end")
        return term

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._next
        self._at = min(self._at + 1, len(self._tokens) - 1)
        return token

    def _has(self, text: str) -> bool:
        if self._next.text != text or self._next.kind not in ("word", "sign"):
            return False
        self._take()
        return True

    def _unexpected(self, expected: str) -> BadCondition:
        token = self._next
        given = "the end" if token.kind == "end" else repr(token.text)
        return BadCondition(token.character, f"expected {expected}, not {given}")

    def _join(self, *, is_or: bool) -> _Term:
        terms = [self._part(is_or=is_or)]
        while self._has("or" if is_or else "and"):
            terms.append(self._part(is_or=is_or))
        return terms[0] if len(terms) == 1 else _Join(is_or, tuple(terms))

    def _part(self, *, is_or: bool) -> _Term:
        return self._join(is_or=False) if is_or else self._negation()

    def _negation(self) -> _Term:
        character = self._next.character
        if self._has("not"):
            return _Not(self._below(character, self._negation))
        if self._has("("):
            term = self._below(character, lambda: self._join(is_or=True))
            if not self._has(")"):
                raise self._unexpected("and, or, or )")
            return term
        return self._comparison()

    def _below(self, character: int, read: Callable[[], _Term]) -> _Term:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise BadCondition(character, f"parentheses and not go at most {MAX_DEPTH} deep")
        term = read()
        self._depth -= 1
        return term

    def _comparison(self) -> _Term:
        left = self._operand("a condition")
        if NAMES.get(left.text) == "fact":
            if self._next.text in _COMPARE or self._next.text == "in":
                raise BadCondition(self._next.character, f"{left.text} is true or false by itself: nothing follows it")
            return _Fact(left.text)
        if self._has("in"):
            return self._window(left)
        sign = self._next
        if sign.text not in _COMPARE:
            more = " or in" if NAMES.get(left.text) in _WINDOWS else ""
            raise self._unexpected(f"a comparison (<, <=, >, >=, ==, !={more}) after {left.text}")
        self._take()
        right = self._operand("a number or a name")
        _check_pair(left, right)
        if self._next.text in _COMPARE:
            raise BadCondition(self._next.character, "one comparison at a time; join two with and")
        return _Comparison(_operand_of(left), sign.text, _operand_of(right))

    def _operand(self, expected: str) -> _Token:
        token = self._next
        if token.kind == "word" and token.text not in _WORDS and token.text not in NAMES:
            raise BadCondition(token.character, f"unknown name {token.text!r}; there are {', '.join(NAMES)}")
        if token.kind != "number" and token.text not in NAMES:
            raise self._unexpected(expected)
        return self._take()

    def _window(self, name: _Token) -> _Window:
        kind = NAMES.get(name.text, "")
        if kind not in _WINDOWS:
            raise BadCondition(name.character, f"in goes with hour and weekday only, not with {name.text}")
        first = self._bound(kind)
        if not self._has(".."):
            raise self._unexpected(".. between the first and the last, as in 22..6")
        last = self._bound(kind)
        if kind == "hour" and first.number % 24 == last.number % 24 and first.number >= last.number:
            raise BadCondition(first.character, "these hours are empty: the first and the last are the same")
        return _Window(name.text, first.number % 24 if kind == "hour" else first.number, last.number)

    def _bound(self, kind: str) -> _Token:
        token = self._take() if self._next.kind == "number" else None
        if token is None:
            raise self._unexpected("a number")
        _check_range(kind, token)
        return token


def _operand_of(token: _Token) -> str | float:
    return token.number if token.kind == "number" else token.text


def _check_pair(left: _Token, right: _Token) -> None:
    """Refuse what cannot be compared, or is always the same."""
    named = [token for token in (left, right) if token.kind == "word"]
    if not named:
        raise BadCondition(left.character, "one side must be a name: two numbers are always the same")
    for token in named:
        if NAMES[token.text] == "fact":
            raise BadCondition(token.character, f"{token.text} is true or false, not a number to compare with")
    kind = NAMES[named[0].text]
    if len(named) == 2:
        if left.text == right.text:
            raise BadCondition(left.character, f"{left.text} is compared with itself")
        if NAMES[right.text] != kind:
            text = f"{left.text} is {_KINDS[kind]}, {right.text} is {_KINDS[NAMES[right.text]]}"
            raise BadCondition(right.character, text)
        return
    _check_range(kind, right if left.kind == "word" else left)


def _check_range(kind: str, number: _Token) -> None:
    if number.is_time and kind != "time":
        raise BadCondition(number.character, f"{number.text} is a time, but {_KINDS[kind]} is compared with a number")
    if kind in _WINDOWS:
        low, high = _WINDOWS[kind]
        if not low <= number.number <= high:
            words = "hours go from 0 to 24" if kind == "hour" else "weekdays go from 1 (Monday) to 7 (Sunday)"
            raise BadCondition(number.character, words)
