"""Attacks of test_live_fetch.py in a network namespace where every address answers, and a count of the packets.

    unshare --map-root-user --net python tests/live_namespace.py

Nothing is patched here: the kernel routes all addresses, of both families, to a server of ours, so that a connection
which should not be made would be made. Prints JSON: kind -> [requests that got something, refused, packets elsewhere].
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from live_web import PUBLIC, PUBLIC_V6, Web  # noqa: E402
from test_live_fetch import attack, attack_urls  # noqa: E402

ALL_PROTOCOLS, V4, V6 = 0x0003, 0x0800, 0x86DD  # ETH_P_ALL, and the types of the two families
OURS = {ipaddress.ip_address(PUBLIC), ipaddress.ip_address(PUBLIC_V6)}


class Packets(threading.Thread):
    """Destinations of all packets on all interfaces, but those that the kernel sends to keep an interface up."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ALL_PROTOCOLS))
        self.elsewhere: list[str] = []

    def run(self) -> None:
        while True:
            packet, where = self.socket.recvfrom(65536)
            if where[1] not in (V4, V6):
                continue
            to = ipaddress.ip_address(packet[16:20] if where[1] == V4 else packet[24:40])
            if to not in OURS and not (where[1] == V6 and packet[6] in (0, 58)):  # hop-by-hop and ICMPv6: neighbours
                self.elsewhere.append(str(to))


class Everywhere(Web):
    """The web at port 80 of every address there is."""

    async def __aenter__(self) -> Everywhere:
        self._servers = [await asyncio.start_server(self._serve, "0.0.0.0", 80),
                         await asyncio.start_server(self._serve, "::", 80)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()


def arrange() -> None:
    for command in ("link set lo up", "route add local 0.0.0.0/0 dev lo", "-6 route add local ::/0 dev lo"):
        subprocess.run(["ip", *command.split()], check=True)


async def reaches(address: str) -> bool:
    """Whether a plain connection to this address is made."""
    async with Everywhere():
        try:
            async with asyncio.timeout(5):
                _, writer = await asyncio.open_connection(address, 80)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True


def main() -> None:
    arrange()
    packets = Packets()
    packets.start()
    found: dict[str, list[int]] = {}
    for kind in ("direct", "redirect", "rebinding", "mixed", "name"):
        before = len(packets.elsewhere)
        run = asyncio.run(attack(kind, attack_urls(), Everywhere))
        found[kind] = [run.got, run.refused, len(packets.elsewhere) - before]
    before = len(packets.elsewhere)
    made = [asyncio.run(reaches(address)) for address in ("10.0.0.1", "169.254.169.254", "fd12:3456::1")]
    found["control"] = [sum(made), 0, len(packets.elsewhere) - before]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
