"""Keys that are heard while an answer is written: Esc and Ctrl-C stop it, single letters answer a question."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys

ESCAPE_S = 0.05  # Esc alone is told from the beginning of an arrow key by what follows within this time


class Listener:
    """What to do with keys. stop: called for Esc and Ctrl-C."""

    def __init__(self, stop: Callable[[], object]):
        self.stop = stop
        self._asked: asyncio.Future[str] | None = None

    async def letter(self) -> str:
        """The next key, as a small letter; "n" where the answer is being stopped."""
        self._asked = asyncio.get_running_loop().create_future()
        try:
            return await self._asked
        finally:
            self._asked = None

    def hear(self, press: KeyPress) -> None:
        stops = press.key in (Keys.Escape, Keys.ControlC)
        if self._asked is not None and not self._asked.done():
            self._asked.set_result("n" if stops else press.data.lower())
        if stops:
            self.stop()


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within, the terminal shows no keys and hands each of them to the listener. Needs a running event loop."""
    keys, loop = create_input(), asyncio.get_running_loop()

    def flush() -> None:
        for press in keys.flush_keys():
            listener.hear(press)

    def ready() -> None:
        for press in keys.read_keys():
            listener.hear(press)
        loop.call_later(ESCAPE_S, flush)

    with keys.raw_mode(), keys.attach(ready):
        yield
