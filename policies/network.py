"""Hosts, ports and protocols: how a rule names the other end of a connection."""

from __future__ import annotations

import ipaddress
import re

import msgspec

from safeclaw.policies.document import PortRange
from safeclaw.policies.glob import GlobError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PROTOCOLS = ("tcp", "udp")
_NAME = re.compile(
    r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.?"
)
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")

# What is not "out there": a rule reaches these only by naming them.  The single addresses are
# those at which clouds have their metadata services besides 169.254.169.254: Alibaba's, Azure's
# and Oracle's, Amazon's and Google's over IPv6.
SPECIAL: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
        "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32",
        "::/96", "fe80::/10", "ff00::/8", "fd00:ec2::254/128", "fd20:ce::254/128",
    )
)  # fmt: skip

_METADATA = tuple(
    network
    for network in SPECIAL
    if network.num_addresses == 1 or network == ipaddress.ip_network("169.254.0.0/16")
)

# Where a name that the world's DNS answers must not lead: a rule has to name the network.
PRIVATE: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10",
        "fc00::/7", "fec0::/10", "64:ff9b:1::/48",
    )
)  # fmt: skip

#: The host of a rule that means the loopback of the agent's own network namespace.
OWN_LOOPBACK = "own-loopback"
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: Where :func:`translated` finds an IPv4 address: 6to4, NAT64, Teredo.
_TRANSLATED = (ipaddress.IPv6Network("2002::/16"), _NAT64, ipaddress.IPv6Network("2001::/32"))


class Host(msgspec.Struct, frozen=True):
    """One host of a rule: a network, a name, the own loopback, or (none of them) any host."""

    network: Network | None = None
    name: str | None = None
    own: bool = False


LOCALHOST = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


def hosts(text: str) -> list[Host]:
    """Parse ``*``, a name, ``*.example.com``, an address or a CIDR.  Raises GlobError."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if bare == "*":
        return [Host()]
    if bare == OWN_LOOPBACK:
        return [Host(own=True)]
    if bare.lower() == "localhost":
        return [Host(network=network) for network in LOCALHOST]
    try:
        return [Host(network=_unmap(ipaddress.ip_network(bare)))]
    except ValueError:
        pass
    try:
        wider = ipaddress.ip_network(bare, strict=False)
    except ValueError:
        pass
    else:
        raise GlobError(f"{text} has bits beyond its mask; the network is {wider}")
    name = bare.lower()
    if not _NAME.fullmatch(name) or re.fullmatch(r"[\d.]+", name):
        raise GlobError(f"'{text}' is no host name, address or network")
    return [Host(name=name.removesuffix("."))]


def is_name(text: str) -> bool:
    """Whether ``host: text`` would mean the host of that name, and nothing else.

    What an agent looks up may be anything: ``localhost``, an address, or no name at all.
    """
    try:
        return hosts(text) == [Host(name=text)] and not text.startswith("*.")
    except GlobError:
        return False


def _unmap(network: Network) -> Network:
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def address(text: str) -> Address | None:
    """Parse an address literal, IPv4-mapped ones as IPv4; None when it is none."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return found if mapped is None else mapped


def port_range(text: str) -> PortRange:
    """Parse ``443`` or ``8000-8999``.  Raises GlobError."""
    found = _PORT.fullmatch(text)
    if found is None:
        raise GlobError(f"'{text}' is no port; write 443 or 8000-8999")
    low = int(found[1])
    high = int(found[2] or low)
    if high > 65535 or low > high:
        raise GlobError(f"'{text}' is no range of ports within 0-65535")
    return PortRange(low, high)


def is_metadata(text: str) -> bool:
    """Whether an address literal is one where clouds hand out their credentials, or of its link."""
    where = address(text)
    return where is not None and any(where in one for one in _METADATA)


def is_special(where: Address) -> bool:
    """Return whether an address is loopback, link-local, multicast or the like."""
    return any(one in network for one in _all_of(where) for network in SPECIAL)


def is_private(where: Address) -> bool:
    """Return whether an address is special, or of a network that is not the public one."""
    return is_special(where) or any(one in network for one in _all_of(where) for network in PRIVATE)


def translated(where: Address) -> tuple[Address, ...]:
    """Return the IPv4 address that a translator or a tunnel makes of an IPv6 one, if any.

    6to4 (RFC 3056), NAT64's well-known prefix (RFC 6052), Teredo's client (RFC 4380).
    """
    if isinstance(where, ipaddress.IPv6Address):
        if where.sixtofour is not None:
            return (where.sixtofour,)
        if where in _NAT64:
            return (ipaddress.IPv4Address(int(where) & 0xFFFFFFFF),)
        if where.teredo is not None:
            return (where.teredo[1],)
    return ()


def may_translate(network: Network) -> bool:
    """Return whether some address of a network is one that :func:`translated` knows."""
    return any(
        isinstance(network, ipaddress.IPv6Network) and network.overlaps(one) for one in _TRANSLATED
    )


def _all_of(where: Address) -> tuple[Address, ...]:
    return (where, *translated(where))


def within_special(network: Network) -> bool:
    """Return whether a rule's network lies wholly inside a special one: so it is named."""
    return any(
        network.version == special.version and network.subnet_of(special)  # type: ignore[arg-type]
        for special in SPECIAL
    )


def single(where: Address) -> Network:
    """Return the network that is just this address."""
    return ipaddress.ip_network(where)
