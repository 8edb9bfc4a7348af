"""Which addresses are of the open internet, and which inside ones an operator lets connections reach."""

import ipaddress
import socket
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_LOCAL_NAT64: Final = ipaddress.IPv6Network("64:ff9b:1::/48")
_LOOPBACK: Final = ipaddress.IPv4Address("127.0.0.1")
# Of those who run clouds, for the machines in them: they look public, and answer only inside.
_PLATFORMS: Final = (ipaddress.IPv4Network("168.63.129.16/32"), ipaddress.IPv4Network("192.0.0.0/24"))


@dataclass(frozen=True, slots=True)
class Reach:
    """Where connections may go: public addresses, and the networks `inside` that the operator allows."""

    inside: tuple[IPNetwork, ...] = ()

    @staticmethod
    def of(networks: Iterable[str]) -> "Reach":
        """Return the reach with these networks inside; raises `ValueError` that names the one that is none."""
        found = []
        for text in networks:
            try:
                found.append(ipaddress.ip_network(text, strict=False))
            except ValueError as error:
                raise ValueError(f"{text!r} is not an address or a network such as 10.0.0.0/8") from error
        return Reach(tuple(found))

    def includes(self, address: str | IPAddress) -> bool:
        """Say whether a connection may go to the IP address."""
        ip = innermost(address)
        return _is_public(ip) or any(ip in network for network in self.inside)


PUBLIC: Final = Reach()


def is_public(address: str) -> bool:
    """Say whether the IP address is one of the open internet, looking through every way to wrap an IPv4 address."""
    return _is_public(innermost(address))


def innermost(address: str | IPAddress) -> IPAddress:
    """Return the address that traffic to this one ends at: the IPv4 address in a mapped, 6to4, Teredo or NAT64 one."""
    ip = ipaddress.ip_address(address)
    if not isinstance(ip, ipaddress.IPv6Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if ip.teredo is not None:
        return ip.teredo[1]
    return ip.ipv4_mapped or ip.sixtofour or ip


def _is_public(ip: IPAddress) -> bool:
    if isinstance(ip, ipaddress.IPv6Address) and (ip.is_site_local or ip.is_reserved or ip in _LOCAL_NAT64):
        return False
    if any(ip in network for network in _PLATFORMS):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_unspecified


def literal(host: str) -> IPAddress | None:
    """Return the address that a host of a URL is, None for a name that has to be looked up.

    Resolvers take more for an address than the usual four numbers (`127.1`, `0x7f.0.0.1`, `2130706433`), and IDNA turns
    full-width digits and other dots into plain ones.
    """
    plain = unicodedata.normalize("NFKC", host).replace("\u3002", ".").rstrip(".").lower()
    if plain == "localhost" or plain.endswith(".localhost"):
        return _LOOPBACK
    try:
        return ipaddress.IPv6Address(plain) if ":" in plain else ipaddress.IPv4Address(socket.inet_aton(plain))
    except (OSError, ValueError):
        return None


def inside(host: str) -> str:
    """Say why a host is not connected to."""
    return f"{host} is an address of an internal network; the operator can allow it with outgoing_networks"
