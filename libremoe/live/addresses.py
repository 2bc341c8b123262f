"""Where bytes may go: public addresses only, by a table of our own, plus local places that a person added by hand.

Python's `ipaddress.is_global` is True for several addresses that lead back home (::127.0.0.1, 64:ff9b::7f00:1,
2002:7f00:1::), so it is not asked. Tables: IANA's special-purpose address registries for IPv4 and IPv6.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable

from libremoe.errors import LibremoeError

Resolver = Callable[[str, int], Awaitable[list[str]]]
Place = tuple[str, int]  # host as written in the URL, port

DENIED_V4 = [ipaddress.IPv4Network(n) for n in (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4")]
# Only this block is global unicast; all forms that hold an IPv4 address inside lie elsewhere, or are denied below.
GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
DENIED_V6 = [ipaddress.IPv6Network(n) for n in (
    "2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")]
# What a person may add by hand: loopback and private networks, never link-local ones, where clouds keep secrets.
LOCAL = [ipaddress.ip_network(n) for n in (
    "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "::1/128", "fc00::/7")]
# Mail, databases and the like listen elsewhere; a place that a person added by hand may have any port.
PORTS = frozenset({80, 443, 8000, 8008, 8080, 8443, 8888})
MAX_HOST = 253
RESOLVE_S = 5.0


class Refused(LibremoeError):
    """A request that is not made, and why."""


def is_public(address: str) -> bool:
    """Whether an address, as text, is global unicast by the tables above."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv4Address):
        return not any(parsed in network for network in DENIED_V4)
    if parsed.scope_id is not None:
        return False
    return parsed in GLOBAL_V6 and not any(parsed in network for network in DENIED_V6)


def is_local(address: str) -> bool:
    """Whether an address is of this machine or a private network, such as a person may have added by hand."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed.version == network.version and parsed in network for network in LOCAL)


def check_host(host: str, port: int, local: Place | None) -> None:
    """Refuses names and ports that no request needs, before anything is asked about them."""
    if not host or len(host) > MAX_HOST or re.search(r"[^A-Za-z0-9._:\-]", host):
        raise Refused(f"{host[:60]!r} is no host name")
    if re.search(r"(?:^|\.)(?:0[xX][0-9A-Fa-f]*|\d+)\.?$", host) and not is_literal(host):
        raise Refused(f"{host} is an address in an odd form; write it as four numbers")  # 127.1, 2130706433, 0x7f000001
    if port not in PORTS and (host, port) != local:
        raise Refused(f"port {port} of {host} is none of {', '.join(map(str, sorted(PORTS)))}")


def is_literal(host: str) -> bool:
    """Whether a host is an address in its usual form."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def resolve(host: str, port: int) -> list[str]:
    """The system's answer, as addresses."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


async def checked_addresses(host: str, port: int, resolver: Resolver, local: Place | None = None) -> list[str]:
    """Addresses of a host that may be connected to. One that may not be refuses them all: such a mix is no accident.

    local: the one place on the own network that this request may reach, since a person added it.
    """
    check_host(host, port, local)
    if is_literal(host):
        addresses = [host]
    else:
        try:
            async with asyncio.timeout(RESOLVE_S):
                addresses = await resolver(host, port)
        except TimeoutError:
            raise Refused(f"{host} has no address: the name server did not answer") from None
        except (OSError, UnicodeError) as error:
            raise Refused(f"{host} has no address: {error}") from None
    if not addresses:
        raise Refused(f"{host} has no address")
    for address in addresses:
        if not is_public(address) and not ((host, port) == local and is_local(address)):
            raise Refused(f"{host} has the address {address}, which is not a public one")
    return addresses
