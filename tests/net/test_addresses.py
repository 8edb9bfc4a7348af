"""Which addresses are inside, in whatever form they are written, and what an operator opens."""

import pytest

from cogflare.net.addresses import PUBLIC, Reach, innermost, literal


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0X7F000001", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0177.0.0.01", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("127。0。0。1", "127.0.0.1"),
        ("１２７．０．０．１", "127.0.0.1"),
        ("①②⑦.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("LOCALHOST.", "127.0.0.1"),
        ("a.localhost", "127.0.0.1"),
        ("::1", "::1"),
        ("::ffff:10.0.0.1", "::ffff:a00:1"),
        ("8.8.8.8", "8.8.8.8"),
    ],
)
def test_hosts_that_are_addresses(host: str, address: str) -> None:
    assert str(literal(host)) == address


@pytest.mark.parametrize("host", ["example.com", "", "1.2.3.4.5", "256.1.1.1", "localhost.example", ":", "x:y", "0x"])
def test_hosts_that_are_names(host: str) -> None:
    assert literal(host) is None


def test_wrapped_addresses_are_judged_by_what_they_lead_to() -> None:
    for wrapped in ("::ffff:10.1.2.3", "64:ff9b::a01:203", "2002:a01:203::1"):
        assert str(innermost(wrapped)) == "10.1.2.3"
        assert not PUBLIC.includes(wrapped)
        assert Reach.of(["10.0.0.0/8"]).includes(wrapped)
        assert not Reach.of(["192.168.0.0/16"]).includes(wrapped)


def test_an_operator_opens_networks_and_single_addresses() -> None:
    reach = Reach.of(["127.0.0.0/8", "fd00::/8", "10.1.2.3", "192.168.1.7/24"])
    for address in ("127.9.9.9", "fd12::1", "10.1.2.3", "192.168.1.250", "8.8.8.8", "2606:4700::1111"):
        assert reach.includes(address)
    for address in ("10.1.2.4", "192.168.2.1", "::1", "fe80::1%2", "169.254.169.254", "0.0.0.0"):
        assert not reach.includes(address)


@pytest.mark.parametrize("address", ["168.63.129.16", "192.0.0.192", "::ffff:168.63.129.16", "64:ff9b::c000:c0"])
def test_what_a_cloud_tells_its_machines_is_inside(address: str) -> None:
    assert not PUBLIC.includes(address)
    assert Reach.of(["168.63.129.16", "192.0.0.0/24"]).includes(address)


@pytest.mark.parametrize("text", ["localhost", "10.0.0.0/33", "", "10.0.0.0-10.0.0.9"])
def test_what_is_no_network_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address or a network such as"):
        Reach.of([text])
