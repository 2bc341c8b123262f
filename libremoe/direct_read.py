"""Reads of weights past the page cache: many at once, needed ones first, each checked before anyone sees it.

O_DIRECT brings bytes from the disk straight into a buffer of ours. The page cache would keep a second copy of what is
used once, and take memory that the budget has given to experts. Where a file system refuses O_DIRECT, reads are
ordinary and the pages are dropped after each.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from libremoe.errors import CheckpointError

ALIGN = 4096  # of offsets, lengths and buffers, which O_DIRECT asks for
CHUNK = 4 << 20  # bytes of one read: enough for a disk's full rate with a few at once
DEPTH = 8  # reads at once
NEEDED, GUESSED = 0, 1  # priorities

Check = Callable[[torch.Tensor, int], None]  # (bytes, their offset in the piece); raises CheckpointError


@dataclass(frozen=True)
class Piece:
    """Bytes offset..offset + length of a file. check: see Check; called for aligned chunks, in any order."""

    file: Path
    offset: int
    length: int
    check: Check | None = None

    @property
    def lead(self) -> int:
        """Bytes that an aligned read brings before the first."""
        return self.offset % ALIGN

    @property
    def room(self) -> int:
        """Bytes of buffer that an aligned read needs, a multiple of ALIGN."""
        return -(-(self.lead + self.length) // ALIGN) * ALIGN


@dataclass
class Request:
    """Several pieces on their way into their buffers. `done` is set at the end, with `error` where one failed."""

    priority: int
    n_left: int
    done: threading.Event = field(default_factory=threading.Event)
    error: CheckpointError | None = None
    cancelled: bool = False


@dataclass
class _Chunk:
    request: Request
    piece: Piece
    buffer: torch.Tensor  # uint8, aligned, for this chunk
    at: int  # offset of the buffer's first byte in the aligned piece
    taken: bool = False


class DirectReader:
    """Threads that read. Counters: bytes_read, and busy_s, the time in which at least one read was under way."""

    def __init__(self, depth: int = DEPTH):
        self.bytes_read = 0
        self.busy_s = 0.0
        self._queue: list[tuple[int, int, _Chunk]] = []
        self._numbers = itertools.count()
        self._wake = threading.Condition()  # its lock is reentrant
        self._n_reading, self._since = 0, 0.0
        self._files: dict[Path, tuple[int, bool]] = {}  # descriptor, whether O_DIRECT
        self._descriptors: list[int] = []  # all of them: one that was replaced may still be in use
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name=f"libremoe reader {i}", daemon=True)
                         for i in range(depth)]
        for thread in self._threads:
            thread.start()

    def read(self, pieces: list[Piece], buffers: list[torch.Tensor], priority: int) -> Request:
        """Begin to fill each buffer (uint8, piece.room bytes, aligned) with its piece, which begins at piece.lead."""
        request = Request(priority, 0)
        chunks = [_Chunk(request, piece, buffer[at : at + CHUNK], at)
                  for piece, buffer in zip(pieces, buffers, strict=True) for at in range(0, piece.room, CHUNK)]
        request.n_left = len(chunks)
        with self._wake:
            for chunk in chunks:
                heapq.heappush(self._queue, (priority, next(self._numbers), chunk))
            self._wake.notify_all()
        return request

    def hurry(self, request: Request) -> None:
        """What was guessed is needed after all: its waiting chunks go before all guesses."""
        with self._wake:
            if request.priority == NEEDED:
                return
            request.priority = NEEDED
            ahead = [entry for entry in self._queue if entry[2].request is request]
            self._queue = [entry for entry in self._queue if entry[2].request is not request]
            self._queue += [(NEEDED, number, chunk) for _, number, chunk in ahead]
            heapq.heapify(self._queue)

    def cancel(self, request: Request) -> None:
        """Forget the chunks that have not begun. `done` is set when those under way have ended."""
        with self._wake:
            request.cancelled = True
            waiting = [entry for entry in self._queue if entry[2].request is request]
            self._queue = [entry for entry in self._queue if entry[2].request is not request]
            heapq.heapify(self._queue)
            self._finish(request, len(waiting))

    def close(self) -> None:
        """End the threads and close the files."""
        with self._wake:
            self._closed = True
            self._queue.clear()
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()
        for fd in self._descriptors:
            os.close(fd)
        self._descriptors.clear()
        self._files.clear()

    def _finish(self, request: Request, n_chunks: int) -> None:
        request.n_left -= n_chunks
        if request.n_left == 0:
            request.done.set()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                _, _, chunk = heapq.heappop(self._queue)
                if self._n_reading == 0:
                    self._since = time.perf_counter()
                self._n_reading += 1
            error = None
            try:
                if chunk.request.error is None and not chunk.request.cancelled:
                    self._fill(chunk)
            except CheckpointError as found:
                error = found
            with self._wake:
                self._n_reading -= 1
                if self._n_reading == 0:
                    self.busy_s += time.perf_counter() - self._since
                chunk.request.error = chunk.request.error or error
                self._finish(chunk.request, 1)

    def _fill(self, chunk: _Chunk) -> None:
        piece = chunk.piece
        fd, direct = self._descriptor(piece.file)
        start = piece.offset - piece.lead + chunk.at  # in the file
        wanted = min(len(chunk.buffer), piece.lead + piece.length - chunk.at)  # the rest is padding of the last read
        memory, done = chunk.buffer.numpy().data, 0
        while done < wanted:
            try:
                n = os.preadv(fd, [memory[done:]], start + done)
            except OSError as error:
                if error.errno == errno.EINVAL and direct:  # a file system that opens but does not read so
                    fd, direct = self._descriptor(piece.file, ordinary=True)
                    continue
                raise CheckpointError(piece.file, f"cannot be read at byte {start + done}: {error.strerror}") from None
            if n == 0:
                raise CheckpointError(piece.file, f"ends at byte {start + done}, {wanted - done} bytes too early")
            done += n
            if done < wanted and done % ALIGN and direct:
                raise CheckpointError(piece.file, f"ends at byte {start + done}, {wanted - done} bytes too early")
        if not direct:
            os.posix_fadvise(fd, start, len(chunk.buffer), os.POSIX_FADV_DONTNEED)
        with self._wake:
            self.bytes_read += wanted
        if piece.check is not None:
            piece.check(chunk.buffer[:wanted], chunk.at)

    def _descriptor(self, file: Path, ordinary: bool = False) -> tuple[int, bool]:
        with self._wake:
            if file in self._files and not (ordinary and self._files[file][1]):
                return self._files[file]
            direct = not ordinary and hasattr(os, "O_DIRECT")
            try:
                try:
                    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if direct else 0))
                except OSError as error:
                    if error.errno != errno.EINVAL or not direct:
                        raise
                    fd, direct = os.open(file, os.O_RDONLY | os.O_CLOEXEC), False
            except OSError as error:
                raise CheckpointError(file, f"cannot be opened: {error.strerror}") from None
            self._descriptors.append(fd)
            self._files[file] = (fd, direct)
            return fd, direct
