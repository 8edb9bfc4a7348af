"""What a request wishes of its route: the field `route` of a create, the headers `Cogflare-Route` and `Cogflare-Hops`.

Pure: values and text in, JSON text out; whatever is no route raises `Problem` 422 with the place of the fault.
"""

import re
from typing import Any, Final

import msgspec

from cogflare.api.problems import Problem, bad_request, invalid_input
from cogflare.domain.inputs import FieldProblem
from cogflare.domain.policy import BadPolicy, Policy, parse

MAX_ROUTE_CHARS: Final = 4096
HEADER: Final = "Cogflare-Route"
_HOPS: Final = re.compile(r"[0-9]{1,3}", re.ASCII)

_json: Final = msgspec.json.Encoder(order="deterministic")


def parse_route(value: Any, field: str = "route") -> Policy:
    """Read a route out of decoded JSON; raise `Problem` 422 that says where in `field` the fault is, and which."""
    try:
        return parse(value)
    except BadPolicy as error:
        raise bad_route(error.place, error.text, field) from None


def bad_route(place: str, text: str, field: str = "route") -> Problem:
    """422: what is no route, or names what there is not; the place is written as a path into `field`."""
    path, _, character = place.rpartition("character ")
    if not character.isdecimal():
        path, character = place, ""
    where = f"character {character}: " if character else ""
    path = path.removesuffix(", ").removeprefix("policy")
    return invalid_input([FieldProblem("invalid_route", field + path, where + text)])


def parse_wish(value: str | list[Any] | None) -> str | None:
    """Return the wish of a body as JSON text, None where there is none."""
    if value is None:
        return None
    parse_route(value)
    return _checked(_json.encode(value).decode(), "route")


def parse_wish_header(header: str | None) -> str | None:
    """Return the wish of the header `Cogflare-Route` as JSON text: a name as it is, or a JSON list."""
    if header is None or not header.strip():
        return None
    value: Any = header.strip()
    if value[0] in '["':
        try:
            value = msgspec.json.decode(value)
        except (ValueError, RecursionError) as error:
            raise invalid_input([FieldProblem("invalid_route", HEADER, f"is not valid JSON: {error}")]) from None
    parse_route(value, HEADER)
    return _checked(_json.encode(value).decode(), HEADER)


def parse_hops(header: str | None) -> int:
    """Return how many servers a prediction came through (`Cogflare-Hops`); raise `Problem` 400 for no such number."""
    if header is None:
        return 0
    if _HOPS.fullmatch(header.strip()) is None:
        raise bad_request("Cogflare-Hops must be a number from 0 to 999", title="Invalid header")
    return int(header)


def _checked(text: str, field: str) -> str:
    if len(text) > MAX_ROUTE_CHARS:
        problem = f"String length must be less than or equal to {MAX_ROUTE_CHARS}"
        raise invalid_input([FieldProblem("string_lte", field, problem)])
    return text
