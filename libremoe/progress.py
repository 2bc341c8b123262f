"""A progress bar of bytes or tokens with rate and time left: rich on a terminal, a plain line now and then elsewhere.

It writes to standard error, so that standard output stays for results.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

PLAIN_LINE_EVERY_S = 10.0


class Progress:
    """Use as `with Progress("converting", total_bytes) as bar: bar.advance(n)`; done stays readable.

    shown: False for no output at all, as with --json. unit: what is counted, where it is not bytes.
    """

    def __init__(self, title: str, total: int, shown: bool = True, unit: str = "bytes"):
        self.title = title
        self.unit = unit
        self.total = total
        self.done = 0
        self.seconds = 0.0
        self._shown = shown
        self._bar: Any = None

    def __enter__(self) -> Progress:
        self._started = self._last_line = time.monotonic()
        if self._shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )
            from rich.progress import Progress as RichProgress

            counted = (DownloadColumn(), TransferSpeedColumn()) if self.unit == "bytes" else (
                MofNCompleteColumn(), TextColumn(self.unit))
            columns = (TextColumn("{task.description}"), BarColumn(), *counted, TimeRemainingColumn())
            self._bar = RichProgress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done)
            self._bar.start()
        return self

    def advance(self, n: int, note: str = "") -> None:
        """n more are done. note: shown beside. To be called from one thread."""
        self.done += n
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, description=f"{self.title} {note}".rstrip())
            return
        now = time.monotonic()
        if self._shown and now - self._last_line >= PLAIN_LINE_EVERY_S:
            self._last_line = now
            rate = self.done / (now - self._started)
            left = (self.total - self.done) / max(rate, 1e-3)
            shown = f"{rate / 1e6:.0f} MB/s" if self.unit == "bytes" else f"{rate:.1f} {self.unit}/s"
            print(f"{self.title}: {100 * self.done / max(self.total, 1):.0f} %, {shown}, {left:.0f} s left"
                  f"{', ' if note else ''}{note}", file=sys.stderr, flush=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.seconds = time.monotonic() - self._started
        if self._bar is not None:
            self._bar.stop()


def size_text(nbytes: int) -> str:
    """Bytes for people, in decimal units: 318.2 GB."""
    value, units = float(nbytes), iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 999.95 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{nbytes} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
