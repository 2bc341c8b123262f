"""An answer on the terminal: Markdown, block by block. What is still being written stands there as plain text, and is
replaced when its block ends, so that nothing is held back and no answer is too long for the screen."""

from __future__ import annotations

import re
import unicodedata

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from libremoe.french import told

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n", re.MULTILINE)
_SHADES = " ░▒▓█"


def harmless(text: str) -> str:
    """Text without what a terminal obeys: control characters, escape sequences with them, and reversed writing."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf") or c == "\u200d")


def end_of_block(text: str) -> int:
    """Where the first block of Markdown that is complete ends, 0 where none is: at an empty line, or with a fence."""
    fence = _FENCE.search(text)
    blank = text.find("\n\n")
    if fence is None or 0 <= blank < fence.start():
        return blank + 2 if blank >= 0 else 0
    mark = fence[1]
    closing = re.compile(rf"^ {{0,3}}{mark[0]}{{{len(mark)},}}[ \t]*(?:\n|\Z)", re.MULTILINE)
    end = closing.search(text, fence.end())
    return end.end() if end is not None and end[0].endswith("\n") else 0


class Screen:
    """The answer that is being written. Where the console is no terminal, the text as it is."""

    def __init__(self, console: Console):
        self.console = console
        self._block = ""
        self._live: Live | None = None

    def add(self, text: str) -> None:
        text = harmless(text)
        if not self.console.is_terminal:
            self.console.print(text, end="", markup=False)
            return
        self._block += text
        while end := end_of_block(self._block):
            block, self._block = self._block[:end], self._block[end:]
            self._print(block)
        if self._block:
            if self._live is None:
                self._live = Live(console=self.console, auto_refresh=False, transient=True)
                self._live.start()
            self._live.update(self._tail(), refresh=True)

    def end(self) -> None:
        """Nothing more comes."""
        block, self._block = self._block, ""
        self._print(block)

    def _tail(self) -> Text:
        """As much of the block's end as the screen has room for."""
        rows = max(3, self.console.height - 2)
        lines = Text(self._block).wrap(self.console, self.console.width)
        return Text("\n").join(lines[-rows:])

    def _print(self, block: str) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if block.strip():
            self.console.print(Markdown(block.strip("\n")), soft_wrap=False)


def atlas_table(counts: list[list[int]], language: str = "en") -> Table:
    """Layer by expert; the darker, the more of the answer's tokens it worked on. The busiest of each layer in bold."""
    table = Table(title=told("experts of the last answer", language), box=None, padding=(0, 1), caption_justify="left",
                  caption=told("rows are layers, columns experts; numbers are percent of the layer's choices",
                               language))
    table.add_column("", justify="right", style="dim")
    for e in range(len(counts[0])):
        table.add_column(str(e), justify="right")
    for layer, row in enumerate(counts):
        total, most = max(1, sum(row)), max(row)
        cells = []
        for n in row:
            shade = _SHADES[min(len(_SHADES) - 1, round(n / max(1, most) * (len(_SHADES) - 1)))]
            cells.append(Text(f"{100 * n / total:.0f} {shade}", style="bold" if n == most else ""))
        table.add_row(str(layer), *cells)
    return table
