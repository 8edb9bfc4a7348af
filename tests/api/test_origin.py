"""The public base URL: configured, forwarded by a trusted proxy, or the Host header, and never a hostile one."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogflare.api.origin import TrustedProxies, check_public_url, public_base
from cogflare.api.problems import Problem


def scope(*headers: tuple[str, str], peer: str | None = "10.0.0.7", scheme: str = "http") -> dict[str, Any]:
    return {
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
        "client": (peer, 1234) if peer else None,
        "scheme": scheme,
    }


HOST = ("host", "gw.example:8000")
NOBODY = TrustedProxies()
PROXY = TrustedProxies(["10.0.0.0/8"])


@pytest.mark.parametrize(
    ("headers", "trusted", "base"),
    [
        ([HOST], NOBODY, "http://gw.example:8000"),
        ([("host", "[::1]:80")], NOBODY, "http://[::1]"),
        (
            [HOST, ("x-forwarded-proto", "https"), ("x-forwarded-host", "evil.example")],
            NOBODY,
            "http://gw.example:8000",
        ),
        ([HOST, ("x-forwarded-proto", "https")], PROXY, "https://gw.example:8000"),
        ([HOST, ("x-forwarded-proto", "https"), ("x-forwarded-host", "pub.example")], PROXY, "https://pub.example"),
        ([HOST, ("x-forwarded-host", "evil.example, pub.example:80")], PROXY, "http://pub.example"),
        ([HOST, ("forwarded", 'for=1.2.3.4;host="pub.example:443";proto=https')], PROXY, "https://pub.example"),
        ([HOST, ("forwarded", "host=evil.example, For=x; Host=pub.example")], PROXY, "http://pub.example"),
        ([HOST, ("forwarded", "host=evil.example"), ("x-forwarded-proto", "https")], PROXY, "https://gw.example:8000"),
        ([HOST, ("forwarded", "for=1.2.3.4")], PROXY, "http://gw.example:8000"),
    ],
)
def test_where_the_base_comes_from(headers: list[tuple[str, str]], trusted: TrustedProxies, base: str) -> None:
    assert public_base(scope(*headers), None, trusted) == base


def test_the_configured_url_wins() -> None:
    hostile = scope(("host", "evil"), ("x-forwarded-host", "evil"))
    assert public_base(hostile, "https://gw.example/base", PROXY) == "https://gw.example/base"


def test_a_websocket_request_has_an_http_base() -> None:
    assert public_base(scope(HOST, scheme="wss"), None, NOBODY) == "https://gw.example:8000"


@pytest.mark.parametrize(
    "host",
    ['evil"><', "a b", "a\r\nx: y", "", "a/b", "user@a", "a:port", "a:123456", "[zz]", "é.example", "a\x00", "-a"],
)
def test_a_hostile_host_is_refused(host: str) -> None:
    for headers, trusted in [([("host", host)], NOBODY), ([HOST, ("x-forwarded-host", host)], PROXY)]:
        with pytest.raises(Problem) as caught:
            public_base(scope(*headers), None, trusted)
        assert caught.value.status == 400


def test_missing_and_doubled_hosts_are_refused() -> None:
    for headers in ([], [HOST, HOST], [HOST, ("x-forwarded-proto", "gopher")]):
        with pytest.raises(Problem):
            public_base(scope(*headers), None, PROXY)


@pytest.mark.parametrize(
    ("entries", "peer", "believed"),
    [
        ([], "10.0.0.7", False),
        (["10.0.0.7"], "10.0.0.7", True),
        (["10.0.0.0/8"], "11.0.0.7", False),
        (["10.0.0.0/8"], "::ffff:10.0.0.7", True),
        (["fd00::/8"], "fd00::1", True),
        (["fd00::/8"], "10.0.0.7", False),
        (["10.0.0.0/8"], "testclient", False),
        (["10.0.0.0/8"], None, False),
        (["unix"], None, True),
        (["unix"], "10.0.0.7", False),
        (["*"], None, True),
        (["*"], "anyone", True),
    ],
)
def test_trusted_proxies(entries: list[str], peer: str | None, believed: bool) -> None:
    assert (peer in TrustedProxies(entries)) is believed


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gw.example",
        "ftp://gw",
        "https://",
        "https://a b",
        'https://a"',
        "https://u:p@a",
        "https://a/?q",
        "https://a/\n<",
    ],
)
def test_a_public_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="public URL"):
        check_public_url(url)


def test_a_public_url_loses_its_trailing_slash() -> None:
    assert check_public_url("https://gw.example:8443/api/") == "https://gw.example:8443/api"


@given(st.text(st.characters(max_codepoint=255)), st.text(st.characters(max_codepoint=255)))
def test_any_header_gives_a_clean_base_or_a_problem(host: str, forwarded: str) -> None:
    try:
        base = public_base(scope(("host", host), ("forwarded", forwarded)), None, TrustedProxies(["*"]))
    except Problem:
        return
    assert not set(base) & set("\"'<> \r\n\\")
