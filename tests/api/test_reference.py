"""The page about the HTTP API names the routes of the application: all of them, and no others."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
from starlette.routing import Match, Route

from cogflare.api import problems, wire
from cogflare.app import build
from cogflare.protocol.messages import LINK_PATH
from cogflare.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "http-api.md").read_text()
LINK = ("GET", LINK_PATH)


@pytest.fixture
def routes(tmp_path: Path) -> list[Route]:
    """Return the routes of a real application, of which nothing is started."""
    router = build(Settings(data=str(tmp_path))).app._router
    return [route for route in router.routes if isinstance(route, Route)]


def test_every_route_is_named_and_no_other(routes: list[Route]) -> None:
    named = set(re.findall(r"`([A-Z]+) (/[^\s`]*)`", PAGE))
    there = {(method, route.path) for route in routes for method in route.methods or () if method != "HEAD"}
    assert there
    assert named == there | {LINK}


def test_the_examples_ask_for_what_is_there(routes: list[Route]) -> None:
    calls = re.findall(r"^ {4}(curl .*)", PAGE.replace("\\\n", ""), re.MULTILINE)
    assert calls
    for call in calls:
        found = re.search(r"\$COGFLARE_SERVER([^\s\"]*)", call)
        method = re.search(r"-X (\w+)", call)
        assert found, call
        scope = {
            "type": "http",
            "path": urlsplit(found[1]).path.removeprefix("/v1"),
            "method": method[1] if method else "POST" if " -d " in call else "GET",
        }
        assert any(route.matches(scope)[0] is Match.FULL for route in routes), call


def test_every_field_of_an_answer_is_named() -> None:
    shown = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`\n]+`", PAGE))))
    for struct in (wire.WirePrediction, wire.WireModel, wire.WireVersion):
        assert not {field.name for field in msgspec.structs.fields(struct)} - shown


def test_every_kind_of_problem_is_in_the_table() -> None:
    rows = dict.fromkeys(re.findall(r"^\| (\d{3}) \| ([^|]*?) ?\|", PAGE, re.MULTILINE))
    known = [
        problems.unauthenticated(token_given=False),
        problems.forbidden(),
        problems.not_found(),
        problems.method_not_allowed("GET", ()),
        problems.version_not_permitted(),
        problems.invalid_input(()),
        problems.bad_request(""),
        problems.malformed_json(""),
        problems.body_too_large(1),
        problems.conflict(""),
        problems.insufficient_budget(""),
        problems.reused(""),
        problems.queue_full(""),
        problems.internal_error(),
        problems.unavailable(1),
        problems.storage_full(),
    ]
    for problem in known:
        assert (str(problem.status), problem.title or "") in rows
