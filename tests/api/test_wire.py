"""The wire: what requests say and what answers look like, by the reference's examples and the real client's classes."""

import base64
import json
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from replicate.account import Account
from replicate.model import Model
from replicate.prediction import Prediction
from replicate.version import Version

from cogflare.api import requests, wire
from cogflare.api.problems import Problem

T = TypeVar("T")
VERSION = "9dcd6d78e7c6560c340d916fe32e9f24aabfa331e5cce95fe31f77fb03121426"
ID = "pw050dtb51rj40cjb2vrcw97b8"
BASE = "https://api.example.net"
LINKS = wire.Links(BASE)
T0 = requests.parse_time("2026-01-02T03:04:05.678Z")


def refused(body: bytes, *, versioned: bool = True) -> Problem:
    with pytest.raises(Problem) as caught:
        requests.parse_prediction(body, versioned=versioned)
    return caught.value


def attempt(action: Callable[[], T]) -> T | Problem:
    try:
        return action()
    except Problem as problem:
        return problem


def fields(problem: Problem) -> list[tuple[str, str, str]]:
    return [(one.type, one.field, one.description) for one in problem.invalid_fields]


# --- create bodies


def test_the_reference_create_body() -> None:
    body = (
        b'{"version":"%b","input":{"text":"Alice"},"webhook":"https://example.com/hook?x=1",'
        b'"webhook_events_filter":["start","completed"]}' % VERSION.encode()
    )
    assert requests.parse_prediction(body, versioned=True) == requests.PredictionBody(
        input=b'{"text":"Alice"}',
        values={"text": "Alice"},
        version=VERSION,
        webhook="https://example.com/hook?x=1",
        webhook_events_filter=("start", "completed"),
    )


def test_what_older_clients_send_is_taken() -> None:
    body = (
        b'{"input":{"a":1},"stream":true,"webhook":null,"webhook_completed":"http://h/x","webhook_events_filter":null}'
    )
    parsed = requests.parse_prediction(body, versioned=False)
    assert (parsed.webhook, parsed.webhook_events_filter) == ("http://h/x", ("completed",))
    assert requests.parse_prediction(b'{"input":{},"version":null,"webhook":""}', versioned=False).webhook is None


@pytest.mark.parametrize("text", [b'{ "a" : [1.0, 1E5, 123456789012345678901234567890] }', rb'{"a":"\u0000\u00e9"}'])
def test_the_input_text_is_kept_as_it_came(text: bytes) -> None:
    assert requests.parse_prediction(b'{"input":%b}' % text, versioned=False).input == text


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", [("required", "", "version is required"), ("required", "", "input is required")]),
        (
            b'{"version":"v","input":{},"model":"a/b"}',
            [("additional_property_not_allowed", "", "Additional property model is not allowed")],
        ),
        (
            b'{"version":5,"input":[]}',
            [
                ("invalid_type", "version", "Invalid type. Expected: string, given: integer"),
                ("invalid_type", "input", "Invalid type. Expected: object, given: array"),
            ],
        ),
        (
            b'{"version":null,"input":null}',
            [
                ("invalid_type", "version", "Invalid type. Expected: string, given: null"),
                ("invalid_type", "input", "Invalid type. Expected: object, given: null"),
            ],
        ),
        (b"[]", [("invalid_type", "", "Invalid type. Expected: object, given: array")]),
        (
            b'{"version":"v","input":{},"webhook_events_filter":["start","end",1]}',
            [
                (
                    "enum",
                    "webhook_events_filter.1",
                    'webhook_events_filter.1 must be one of the following: "start", "output", "logs", "completed"',
                ),
                ("invalid_type", "webhook_events_filter.2", "Invalid type. Expected: string, given: integer"),
            ],
        ),
        (
            b'{"version":"v","input":{},"webhook":"ftp://h"}',
            [("format", "webhook", "Does not match format 'uri': pass an http(s) URL")],
        ),
        (
            b'{"version":"v","input":{},"webhook":"http://%b"}' % (b"h" * 2048),
            [("string_lte", "webhook", "String length must be less than or equal to 2048")],
        ),
        (
            b'{"version":"v","input":{},"stream":"yes"}',
            [("invalid_type", "stream", "Invalid type. Expected: boolean, given: string")],
        ),
    ],
)
def test_wrong_bodies_are_422_in_gojsonschemas_words(body: bytes, expected: list[tuple[str, str, str]]) -> None:
    problem = refused(body)
    assert problem.status == 422
    assert fields(problem) == expected


def test_a_version_does_not_belong_in_a_model_request() -> None:
    problem = refused(b'{"version":"v","input":{}}', versioned=False)
    assert fields(problem) == [("additional_property_not_allowed", "", "Additional property version is not allowed")]


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (b"", "is empty"),
        (b'{"input":{}', "ends too early"),
        (b'{"input":{"a":NaN},"version":"v"}', "byte 14"),
        (b'{"input":{},}', "byte 12"),
        (b'{"input":{}} x', "byte 14"),
        (b'{"input":{"a":"\xff"},"version":"v"}', "not UTF-8"),
        (rb'{"input":{"a":"\ud800"},"version":"v"}', "surrogate"),
        (rb'{"input":{"\udc00":1},"version":"v"}', ""),
        (b'{"input":{"a":1e999},"version":"v"}', "out of range"),
        (b'{"input":{"a":' + b"[" * 200 + b"]" * 200 + b'},"version":"v"}', "nested"),
        (b'{"input":' + b'{"a":' * 100_000, ""),
        (b'{"input":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b'},"version":"v"}', "nested"),
        (b"[" * 100_000, ""),
        (b'{"input":{},"version":"v","stream":1,"stream":true}', "repeated"),
    ],
)
def test_what_is_not_json_is_a_400_that_says_where(body: bytes, hint: str) -> None:
    problem = refused(body)
    assert problem.status == 400
    assert hint in problem.detail
    assert isinstance(json.loads(problem.body()), dict)


def test_many_brackets_without_depth_are_fine() -> None:
    body = b'{"input":{"a":[' + b",".join([b"[]"] * 5000) + b"]}}"
    assert len(requests.parse_prediction(body, versioned=False).values["a"]) == 5000


@pytest.mark.parametrize(
    ("url", "fits"),
    [
        ("https://example.com/hook?x=1", True),
        ("http://[::1]:8000/x", True),
        ("HTTP://h", True),
        ("http://h:99999/", False),
        ("http://", False),
        ("http:///x", False),
        ("//h/x", False),
        ("h", False),
        ("http://a b", False),
        ("http://h/\x00", False),
        ("http://h/\r\nx: y", False),
        ("http://[::1", False),
        ("http://evil\\@h", False),
        ("http://h:0/", False),
    ],
)
def test_webhook_urls(url: str, fits: bool) -> None:
    assert requests.is_http_url(url) is fits


@pytest.mark.parametrize("host", ["[v1.a]", "a..b", "x" * 64 + ".com", ".".join(["x" * 50] * 6)])
def test_webhooks_of_hosts_that_cannot_be(host: str) -> None:
    body = b'{"version":"v","input":{},"webhook":"http://%b/hook"}' % host.encode()
    with pytest.raises(Problem) as refused:
        requests.parse_prediction(body, versioned=True)
    assert b"no host name" in refused.value.body()


@settings(deadline=None, max_examples=300)
@given(
    st.binary(max_size=80)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("start"),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["input", "version", "webhook", "webhook_events_filter", "stream", "webhook_completed"])
                | st.text(max_size=3),
                inner,
                max_size=6,
            )
        ),
    ).map(msgspec.json.encode),
    st.booleans(),
)
def test_any_body_parses_or_is_a_problem(body: bytes, versioned: bool) -> None:
    parsed = attempt(lambda: requests.parse_prediction(body, versioned=versioned))
    if isinstance(parsed, Problem):
        assert parsed.status in (400, 422)
        assert parsed.detail
        assert isinstance(json.loads(parsed.body()), dict)
    else:
        assert json.loads(parsed.input) == parsed.values
        assert (parsed.version is not None) is versioned


# --- headers and parameters


@pytest.mark.parametrize(
    ("header", "seconds", "applied"),
    [
        (None, None, None),
        ("", None, None),
        ("wait", 58.0, "wait"),
        ("WAIT", 58.0, "WAIT"),
        ("wait=10", 10.0, "wait=10"),
        ("wait=2.5", 2.5, "wait=2.5"),
        ("wait=0", 1.0, "wait=0"),
        ("wait=.5", 1.0, "wait=.5"),
        ("wait=60", 60.0, "wait=60"),
        ("wait=3600", 60.0, "wait=3600"),
        ('respond-async, wait="7" ; x', 7.0, 'wait="7"'),
        ("respond-async", None, None),
        ("wait=abc", None, None),
        ("wait=-1", None, None),
        ("await", None, None),
        ("wait=NaN", None, None),
    ],
)
def test_prefer(header: str | None, seconds: float | None, applied: str | None) -> None:
    assert requests.parse_prefer(header) == seconds
    assert requests.preference_applied(header) == applied


@pytest.mark.parametrize(
    ("header", "seconds"), [("90", 90), ("30s", 30), ("5m", 300), ("1h30m45s", 5445), (" 2h ", 7200), ("1m5", 65)]
)
def test_cancel_after(header: str, seconds: int) -> None:
    assert requests.parse_cancel_after(header) == seconds * 1_000_000


def test_cancel_after_absent_and_wrong() -> None:
    assert requests.parse_cancel_after(None) is None
    for header in ("", "4", "0s", "soon", "-5s", "5d", "1.5m", "9" * 40):
        with pytest.raises(Problem) as caught:
            requests.parse_cancel_after(header)
        assert caught.value.status == 400


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        (VERSION, (VERSION, None, None)),
        (f"acme/my-model.v2:{VERSION}", (VERSION, "acme", "my-model.v2")),
        ("acme/hello_world", (None, "acme", "hello_world")),
    ],
)
def test_references(text: str, reference: tuple[str | None, ...]) -> None:
    found = requests.parse_reference(text)
    assert (found.id, found.owner, found.name) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        "latest",
        "acme/m:latest",
        "acme/m:",
        f":{VERSION}",
        f"acme/m{VERSION}:",
        VERSION.upper(),
        VERSION[1:],
        "a/b/c",
        "a/b\x00",
        f"{VERSION}\n",
        f"../x:{VERSION}",
        "a b/c",
    ],
)
def test_other_references_are_the_known_422(text: str) -> None:
    with pytest.raises(Problem) as caught:
        requests.parse_reference(text)
    assert (caught.value.status, caught.value.title) == (422, "Invalid version or not permitted")


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:01.5z", 1_500_000),
        ("1970-01-01T00:00:00.123456789Z", 123_456),
        ("1970-01-01T02:00:00+02:00", 0),
        ("1970-01-01T02:00:00 02:00", 0),
        ("1969-12-31T22:30:00-0130", 0),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000_000),
        ("9999-12-31T23:59:59Z", 2**53 - 1),
    ],
)
def test_times_are_read(text: str, us: int) -> None:
    assert requests.parse_time(text) == us


@pytest.mark.parametrize(
    "text", ["", "now", "2026-01-02", "2026-13-01T00:00:00Z", "2026-01-02T03:04:05", "0000-01-01T00:00:00Z"]
)
def test_times_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(Problem) as caught:
        requests.parse_time(text, "created_after")
    assert caught.value.detail.startswith("created_after must be")


@given(st.integers(0, 2**53 - 1))
def test_times_survive_the_wire(us: int) -> None:
    assert requests.parse_time(wire.format_time(us)) == us


@given(st.text())
def test_any_text_is_read_or_a_problem(text: str) -> None:
    requests.parse_prefer(text)
    requests.preference_applied(text)
    requests.is_http_url(text)
    for parse in (requests.parse_reference, requests.parse_time, requests.parse_cancel_after, wire.parse_cursor):
        outcome = attempt(partial(parse, text))
        assert not isinstance(outcome, Problem) or 400 <= outcome.status < 500


# --- answers


def prediction(**changes: Any) -> wire.WirePrediction:
    values: dict[str, Any] = {
        "id": ID,
        "model": "replicate/hello-world",
        "version": VERSION,
        "input": Raw(b'{"text":"Alice"}'),
        "status": "starting",
        "created_at": T0,
        "urls": LINKS.prediction(ID),
    }
    return wire.WirePrediction(**(values | changes))


FINISHED = prediction(
    status="succeeded",
    output=Raw(b'"hello Alice"'),
    started_at=T0 + 23_000,
    completed_at=T0 + 42_000,
    metrics={"predict_time": 0.019, "total_time": 0.042},
)
URLS = {
    "cancel": f"{BASE}/v1/predictions/{ID}/cancel",
    "get": f"{BASE}/v1/predictions/{ID}",
    "web": f"{BASE}/p/{ID}",
}


def test_the_reference_create_answer() -> None:
    shown = prediction(
        webhook="https://example.com/hook?x=1",
        webhook_events_filter=("start", "completed"),
        urls=LINKS.prediction(ID, "eot4gbydowuin4snhncydwxt57dfwgsc3w3snycx5nid7oef7jga"),
    )
    assert json.loads(wire.render_prediction(shown, "create")) == {
        "id": ID,
        "model": "replicate/hello-world",
        "version": VERSION,
        "input": {"text": "Alice"},
        "logs": "",
        "output": None,
        "data_removed": False,
        "error": None,
        "status": "starting",
        "created_at": "2026-01-02T03:04:05.678000Z",
        "webhook": "https://example.com/hook?x=1",
        "webhook_events_filter": ["start", "completed"],
        "urls": {**URLS, "stream": f"{BASE}/v1/streams/eot4gbydowuin4snhncydwxt57dfwgsc3w3snycx5nid7oef7jga"},
    }


def test_the_reference_get_answer() -> None:
    expected = {
        "id": ID,
        "model": "replicate/hello-world",
        "version": VERSION,
        "input": {"text": "Alice"},
        "logs": "",
        "output": "hello Alice",
        "data_removed": False,
        "error": None,
        "status": "succeeded",
        "source": "api",
        "created_at": "2026-01-02T03:04:05.678000Z",
        "started_at": "2026-01-02T03:04:05.701000Z",
        "completed_at": "2026-01-02T03:04:05.720000Z",
        "metrics": {"predict_time": 0.019, "total_time": 0.042},
        "urls": URLS,
    }
    assert json.loads(wire.render_prediction(FINISHED)) == expected
    del expected["source"]
    assert json.loads(wire.render_prediction(FINISHED, "webhook")) == expected


def test_absent_null_and_optional_members() -> None:
    waiting = json.loads(wire.render_prediction(prediction(deadline=T0 + 5_000_000, deployment="acme/app")))
    assert waiting["started_at"] is None
    assert waiting["completed_at"] is None
    assert "metrics" not in waiting
    assert (waiting["deadline"], waiting["deployment"]) == ("2026-01-02T03:04:10.678000Z", "acme/app")


def test_error_is_null_unless_failed() -> None:
    assert json.loads(wire.render_prediction(prediction(status="canceled", error="late")))["error"] is None
    assert json.loads(wire.render_prediction(prediction(status="failed", error="boom")))["error"] == "boom"


def test_removed_data_is_shown_empty() -> None:
    shown = json.loads(wire.render_prediction(msgspec.structs.replace(FINISHED, data_removed=True, logs="x")))
    assert (shown["data_removed"], shown["input"], shown["output"], shown["logs"]) == (True, {}, None, "")


@pytest.mark.parametrize("form", ["create", "get", "webhook"])
def test_the_python_client_reads_predictions(form: wire.Form) -> None:
    for shown in (prediction(), FINISHED, prediction(status="failed", error="boom", metrics=Raw(b"{}"))):
        parsed = Prediction(**json.loads(wire.render_prediction(shown, form)))
        assert (parsed.id, parsed.status) == (ID, shown.status)


V = wire.WireVersion(id=VERSION, created_at=T0, openapi_schema=Raw(b'{"openapi":"3.0.2"}'))


def test_the_python_client_reads_models_versions_and_accounts() -> None:
    url = LINKS.model("acme", "m")
    bare = wire.WireModel(owner="acme", name="m", url=url, visibility="private", created_at=T0)
    full = msgspec.structs.replace(
        bare, latest_version=V, default_example=Raw(wire.render_prediction(FINISHED)), run_count=7
    )
    assert Model(**json.loads(wire.render_model(bare))).latest_version is None
    model = Model(**json.loads(wire.render_model(full)))
    assert (model.url, model.run_count) == (f"{BASE}/acme/m", 7)
    assert model.latest_version is not None
    assert model.latest_version.cog_version == "0.16.0"
    assert model.default_example is not None
    assert model.default_example.output == "hello Alice"
    assert Version(**json.loads(wire.render_version(V))).openapi_schema == {"openapi": "3.0.2"}
    account = json.loads(wire.render_account(wire.WireAccount(username="me")))
    assert account == {"type": "user", "username": "me", "name": "me", "github_url": None}
    assert Account(**account).name == "me"


def test_pages_and_cursors() -> None:
    url = LINKS.page("/v1/predictions", wire.Cursor(ID), {"created_after": "2026-01-02T00:00:00+00:00"})
    assert "created_after=2026-01-02T00%3A00%3A00%2B00%3A00" in url
    shown = json.loads(wire.page([b'{"id":1}', b'{"id":2}'], url, None))
    assert shown == {"previous": None, "next": url, "results": [{"id": 1}, {"id": 2}]}
    assert json.loads(wire.page([], None, None)) == {"previous": None, "next": None, "results": []}
    for cursor in (wire.Cursor(ID), wire.Cursor("acme/my-model", backwards=True)):
        text = wire.format_cursor(cursor)
        assert wire.parse_cursor(text) == cursor
        assert wire.parse_cursor(f"{text}=") == cursor
    assert wire.parse_cursor(None) is None
    assert wire.parse_cursor("") is None


@pytest.mark.parametrize(
    "text",
    ["x", "!!!!", "é", *(base64.urlsafe_b64encode(raw).decode() for raw in (b"n:", b"q:abc", b"n:a\x00b", b"n:\xff"))],
)
def test_a_cursor_made_by_someone_else_is_a_404(text: str) -> None:
    with pytest.raises(Problem) as caught:
        wire.parse_cursor(text)
    assert caught.value.status == 404


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (b"null", b"null"),
        (b'"cogflare-file:/f/a.png"', b'"https://api.example.net/f/a.png"'),
        (
            b'["cogflare-file:/f/a","cogflare-file:/f/b"]',
            b'["https://api.example.net/f/a","https://api.example.net/f/b"]',
        ),
        (b'"see cogflare-file:/f/a"', b'"see cogflare-file:/f/a"'),
        (rb'"the \"cogflare-file:/f/a\" form"', rb'"the \"cogflare-file:/f/a\" form"'),
        (rb'["cogflare-file:/f/a","\"cogflare-file:/"]', rb'["https://api.example.net/f/a","\"cogflare-file:/"]'),
    ],
)
def test_file_references_become_absolute(stored: bytes, shown: bytes) -> None:
    assert wire.absolute_files(stored, BASE) == shown
