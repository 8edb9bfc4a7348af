"""Who is at the other end of a request, as far as proxies tell it."""

import pytest

from cogflare.api.origin import TrustedProxies
from cogflare.api.remote import remote_address

PROXY = "10.0.0.1"


def remote(peer: str | None, trusted: tuple[str, ...] = (PROXY, "10.0.1.0/24"), **headers: str) -> str:
    told = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"client": None if peer is None else (peer, 1), "headers": told}
    return remote_address(scope, TrustedProxies(trusted))


@pytest.mark.parametrize(
    ("peer", "seen"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        (None, "unknown"),
        ("a\nb", "unknown"),
    ],
)
def test_the_peer(peer: str | None, seen: str) -> None:
    assert remote(peer) == seen


@pytest.mark.parametrize(
    ("told", "seen"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1, 10.0.1.9", "192.0.2.1"),
        ("192.0.2.1:4711", "192.0.2.1"),
        ("[2001:db8::1]:4711", "2001:db8::/64"),
        ("2001:db8::1", "2001:db8::/64"),
        ("10.0.1.7, 10.0.1.8", "10.0.1.8"),
        ("6.6.6.6, secret", "unknown"),
        ("\xe9\x00", "unknown"),
        ("", PROXY),
    ],
)
def test_what_a_trusted_proxy_forwards(told: str, seen: str) -> None:
    assert remote(PROXY, x_forwarded_for=told) == seen


def test_what_others_forward_does_not_count() -> None:
    assert remote("192.0.2.1", x_forwarded_for="6.6.6.6") == "192.0.2.1"


def test_forwarded_counts_where_the_other_header_is_not() -> None:
    assert remote(PROXY, forwarded='for=6.6.6.6, for="[2001:db8::1]:80";proto=https') == "2001:db8::/64"
    assert remote(PROXY, forwarded="for=6.6.6.6", x_forwarded_for="192.0.2.1") == "192.0.2.1"
    assert remote(PROXY, forwarded="proto=https") == PROXY


def test_a_socket_of_the_machine_and_everyone() -> None:
    assert remote(None, ("unix",), x_forwarded_for="192.0.2.1") == "192.0.2.1"
    assert remote("192.0.2.9", ("*",), x_forwarded_for="6.6.6.6, 192.0.2.1") == "192.0.2.1"
