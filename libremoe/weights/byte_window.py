"""An untrusted file seen through a small window: each step is checked against the bytes that are left.

The pickle grammar reads through it. It knows one thing of pickles, their frames: stretches announced in
advance that opcodes must not straddle (PEP 3154).
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from libremoe.errors import CheckpointError

WINDOW = 4096  # bytes read at a time
MAX_NUMBER = 1 << 48


def open_regular(path: Path) -> io.FileIO:
    """Open an ordinary file to read, unbuffered. Raises CheckpointError for all else, pipes too."""
    flags = os.O_RDONLY
    for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # not every system has all of them
        flags |= getattr(os, name, 0)
    try:
        fd = os.open(path, flags)
    except OSError as e:
        raise CheckpointError(path, f"cannot be opened: {e.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CheckpointError(path, "is not an ordinary file")
    return io.FileIO(fd, "r")


class Window:
    """A position in a file of `size` bytes. `start` is the byte of the current opcode, for messages."""

    def __init__(self, path: Path, file: io.FileIO, size: int):
        self.path, self.file, self.size = path, file, size
        self.pos = self.start = 0
        self.cached, self.cached_from = b"", 0
        self.frame_end: int | None = None

    @property
    def left(self) -> int:
        return self.size - self.pos

    def refused(self, reason: str) -> CheckpointError:
        return CheckpointError(self.path, reason)

    def next_opcode(self) -> int:
        if self.pos == self.frame_end:
            self.frame_end = None
        self.start = self.pos
        return self.take(1)[0]

    def open_frame(self) -> None:
        """Read the length of a frame, which must fit in the file and lie in no other."""
        if self.frame_end is not None:
            raise self.refused(f"a frame inside a frame at byte {self.start}")
        n = self.number(8)
        if n > self.left:
            raise self.refused(f"the frame at byte {self.start} has {n:,} bytes where {self.left:,} are left: "
                               "the file is cut short or damaged")
        self.frame_end = self.pos + n

    def take(self, n: int) -> bytes:
        """The next n bytes, at most WINDOW."""
        self.check(n)
        taken = self.peek(n)
        self.pos += n
        return taken

    def skip(self, n: int) -> None:
        """Step over n bytes without reading them."""
        self.check(n)
        self.pos += n

    def number(self, n: int, signed: bool = False) -> int:
        """A little-endian integer of n bytes, below 2^48."""
        value = int.from_bytes(self.take(n), "little", signed=signed)
        if value >= MAX_NUMBER:
            raise self.refused(f"the opcode at byte {self.start} says {value:,}, more than any shard has")
        return value

    def check(self, n: int) -> None:
        """Refuse n more bytes where the file or the open frame has fewer."""
        if n > self.left:
            raise self.refused(
                f"the opcode at byte {self.start} needs {n:,} bytes where {self.left:,} are left: "
                "the file is cut short or damaged"
            )
        if self.frame_end is not None and self.pos + n > self.frame_end:
            raise self.refused(f"the opcode at byte {self.start} leaves its frame")

    def peek(self, n: int) -> bytes:
        """Up to n bytes from here on, whatever the frame, without moving."""
        n = min(n, self.left)
        offset = self.pos - self.cached_from
        if offset < 0 or offset + n > len(self.cached):
            self.cached, self.cached_from, offset = self.read(), self.pos, 0
            if len(self.cached) < n:
                end = self.pos + len(self.cached)
                raise self.refused(f"the file ended at byte {end:,} while it was read")
        return self.cached[offset : offset + n]

    def read(self) -> bytes:
        try:
            self.file.seek(self.pos)
            return self.file.read(WINDOW)
        except OSError as e:
            raise self.refused(f"cannot be read at byte {self.pos:,}: {e.strerror}") from None
