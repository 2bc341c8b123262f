"""asyncio's event loop, taking a few ready connections a turn.

asyncio handles everything that is ready in one turn, and what runs next waits for all of it: when a thousand clients
write in the same moment, the thousandth part of a second that each costs becomes a second for all others. Connections
that are left over are reported again by the next turn, so the cost of a turn stays small however many come.
"""

from __future__ import annotations

import asyncio
import random
import selectors

READY_AT_ONCE = 8


class _FewAtOnce(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """At most READY_AT_ONCE of the ready files, chosen by chance, so that none is passed over for long."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(timeout)
        return ready if len(ready) <= READY_AT_ONCE else random.sample(ready, READY_AT_ONCE)


def new_loop() -> asyncio.AbstractEventLoop:
    """The loop that the server runs in."""
    return asyncio.SelectorEventLoop(_FewAtOnce())
