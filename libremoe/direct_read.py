"""Reads of weights past the page cache: many at once, needed ones first, each checked before anyone sees it.

O_DIRECT brings bytes from the disk straight into a buffer of ours. The page cache would keep a second copy of what is
used once, and take memory that the budget has given to experts. Where a file system refuses O_DIRECT, reads are
ordinary and the pages are dropped after each.
"""

from __future__ import annotations

import atexit
import errno
import heapq
import itertools
import math
import mmap
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from libremoe.errors import CheckpointError, LibremoeError

try:
    from libremoe import _kernels
except ImportError:  # not compiled: threads read
    _kernels = None  # type: ignore[assignment]

HUGE_PAGE = 2 << 20
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
    done: int = 0  # bytes that have come
    fd: int = -1
    direct: bool = False

    @property
    def start(self) -> int:
        """Where it begins in its file."""
        return self.piece.offset - self.piece.lead + self.at

    @property
    def wanted(self) -> int:
        """Bytes that must come; the rest of the buffer is padding, which the file may lack."""
        return min(len(self.buffer), self.piece.lead + self.piece.length - self.at)


class DirectReader:
    """Reads under way, and those that wait for their turn.

    how: "uring" or "threads". Counters: bytes_read, and busy_s(), the time in which at least one read was under way.
    """

    def __init__(self, depth: int = DEPTH):
        """depth: reads at once. Raises LibremoeError where LIBREMOE_IO asks for what is not to be had."""
        self.bytes_read = 0
        self._busy_s = 0.0
        self._queue: list[tuple[int, int, _Chunk]] = []
        self._numbers = itertools.count()
        self._wake = threading.Condition()  # its lock is reentrant
        self._n_reading, self._since = 0, 0.0
        self._files: dict[Path, tuple[int, bool]] = {}  # descriptor, whether O_DIRECT
        self._descriptors: list[int] = []  # all of them: one that was replaced may still be in use
        self._closed = False
        ring, self.how = _open_ring(2 * depth + 1)  # half-done reads that go on, and one that wakes the thread
        works: list[Callable[[], None]] = [self._read_in_turn] * depth
        self._bell = -1
        if ring is not None:
            self._bell = os.eventfd(0, os.EFD_CLOEXEC)
            self._descriptors.append(self._bell)
            works = [lambda: self._serve_ring(ring, depth)]
        self._threads = [threading.Thread(target=work, name=f"libremoe reader {i}", daemon=True)
                         for i, work in enumerate(works)]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)

    def busy_s(self) -> float:
        """Seconds in which at least one read was under way, until now."""
        with self._wake:
            return self._busy_s + (time.perf_counter() - self._since if self._n_reading else 0.0)

    def read(self, pieces: list[Piece], buffers: list[torch.Tensor], priority: int) -> Request:
        """Begin to fill each buffer (uint8, piece.room bytes, aligned) with its piece, which begins at piece.lead."""
        request = Request(priority, 0)
        chunks = [_Chunk(request, piece, buffer[at : at + CHUNK], at)
                  for piece, buffer in zip(pieces, buffers, strict=True) for at in range(0, piece.room, CHUNK)]
        request.n_left = len(chunks)
        with self._wake:
            for chunk in chunks:
                heapq.heappush(self._queue, (priority, next(self._numbers), chunk))
            self._ring_bell()
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
        """End the threads and close the files; whoever still waits is told, without what they waited for."""
        atexit.unregister(self.close)
        with self._wake:
            self._closed = True
            for _, _, chunk in self._queue:
                chunk.request.cancelled = True
                self._finish(chunk.request, 1)
            self._queue.clear()
            self._ring_bell()
        for thread in self._threads:
            thread.join()
        for fd in self._descriptors:
            os.close(fd)
        self._descriptors.clear()
        self._files.clear()

    def _ring_bell(self) -> None:
        self._wake.notify_all()
        if self._bell >= 0:
            os.eventfd_write(self._bell, 1)

    def _finish(self, request: Request, n_chunks: int) -> None:
        request.n_left -= n_chunks
        if request.n_left == 0:
            request.done.set()

    def _read_in_turn(self) -> None:
        """One of many threads: a chunk at a time."""
        while True:
            with self._wake:
                while not self._queue and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                chunk = self._take()
            error = None
            try:
                if self._open(chunk):
                    while not self._came(chunk, _pread(chunk)):
                        pass
                    _check(chunk)
            except CheckpointError as found:
                error = found
            self._end(chunk, error)

    def _serve_ring(self, ring: _kernels.Ring, depth: int) -> None:
        """The only thread: hands over reads while there is room, and only then looks at those that came."""
        under_way: dict[int, _Chunk] = {}
        came: list[tuple[_Chunk, int]] = []
        signal = torch.zeros(8, dtype=torch.uint8)
        bell = ring.read(self._bell, signal, 0)
        while True:
            with self._wake:
                if self._closed and not under_way and not came:
                    return
                taken = [self._take() for _ in range(min(depth - len(under_way), len(self._queue)))]
            for chunk in taken:
                self._go_on(chunk, None, ring, under_way)
            for chunk, n in came:
                self._go_on(chunk, n, ring, under_way)
            came.clear()
            if taken and not under_way:
                continue  # they failed at once, and there may be more of them
            for number, n in ring.wait():
                if number != bell:
                    came.append((under_way.pop(number), n))
                elif not self._closed:
                    bell = ring.read(self._bell, signal, 0)

    def _go_on(self, chunk: _Chunk, n: int | None, ring: _kernels.Ring, under_way: dict[int, _Chunk]) -> None:
        """The next read of a chunk, or its end. n: what its last read gave; None where it has not begun."""
        error = None
        try:
            if n is None:
                unfinished = ready = self._open(chunk)
            else:
                unfinished, ready = not self._came(chunk, n), True
            if unfinished:
                under_way[_submit(ring, chunk)] = chunk
                return
            if ready:
                _check(chunk)
        except CheckpointError as found:
            error = found
        self._end(chunk, error)

    def _take(self) -> _Chunk:
        _, _, chunk = heapq.heappop(self._queue)
        if self._n_reading == 0:
            self._since = time.perf_counter()
        self._n_reading += 1
        return chunk

    def _end(self, chunk: _Chunk, error: CheckpointError | None) -> None:
        with self._wake:
            self._n_reading -= 1
            if self._n_reading == 0:
                self._busy_s += time.perf_counter() - self._since
            chunk.request.error = chunk.request.error or error
            self._finish(chunk.request, 1)

    def _open(self, chunk: _Chunk) -> bool:
        """Give a chunk its descriptor. False where nobody wants it any more. Raises CheckpointError."""
        if chunk.request.error is not None or chunk.request.cancelled:
            return False
        chunk.fd, chunk.direct = self._descriptor(chunk.piece.file)
        return True

    def _came(self, chunk: _Chunk, n: int) -> bool:
        """Whether a chunk is whole, now that a read gave n bytes, or -errno. Raises CheckpointError."""
        file, at, missing = chunk.piece.file, chunk.start + chunk.done, chunk.wanted - chunk.done
        if n == -errno.EINVAL and chunk.direct:  # a file system that opens but does not read so
            chunk.fd, chunk.direct = self._descriptor(file, ordinary=True)
            return False
        if n in (-errno.EINTR, -errno.EAGAIN):
            return False
        if n < 0:
            raise CheckpointError(file, f"cannot be read at byte {at}: {os.strerror(-n)}")
        chunk.done += n
        if n == 0 or (n < missing and n % ALIGN and chunk.direct):  # only a file's end stops a direct read so
            raise CheckpointError(file, f"ends at byte {at + n}, {missing - n} bytes too early")
        if n < missing:
            return False
        if not chunk.direct:
            os.posix_fadvise(chunk.fd, chunk.start, len(chunk.buffer), os.POSIX_FADV_DONTNEED)
        with self._wake:
            self.bytes_read += chunk.wanted
        return True

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


def _pread(chunk: _Chunk) -> int:
    """Bytes read, or -errno."""
    try:
        return os.preadv(chunk.fd, [chunk.buffer.numpy().data[chunk.done :]], chunk.start + chunk.done)
    except OSError as error:
        return -(error.errno or errno.EIO)


def _submit(ring: _kernels.Ring, chunk: _Chunk) -> int:
    """The number of the read of what a chunk lacks. Raises CheckpointError."""
    try:
        return ring.read(chunk.fd, chunk.buffer[chunk.done :], chunk.start + chunk.done)
    except OSError as error:
        raise CheckpointError(chunk.piece.file, f"cannot be read at byte {chunk.start}: {error.strerror}") from None


def _check(chunk: _Chunk) -> None:
    if chunk.piece.check is not None:
        chunk.piece.check(chunk.buffer[: chunk.wanted], chunk.at)


def _open_ring(depth: int) -> tuple[_kernels.Ring | None, str]:
    """A ring for so many reads, or none, and the name of the way to read. Raises LibremoeError."""
    wanted = os.environ.get("LIBREMOE_IO", "")
    if wanted not in ("", "uring", "threads"):
        raise LibremoeError(f"LIBREMOE_IO={wanted} is no way to read; there are: uring, threads")
    if wanted == "threads":
        return None, "threads"
    reason = "there are no compiled kernels"
    if _kernels is not None and not hasattr(_kernels, "Ring"):
        reason = "the compiled kernels are older than this file, run make"
    elif _kernels is not None:
        try:
            return _kernels.Ring(depth), "uring"
        except OSError as error:
            reason = str(error.strerror)
    if wanted == "uring":
        raise LibremoeError(f"LIBREMOE_IO=uring, but io_uring cannot be used here: {reason}")
    return None, "threads"


def aligned_buffers(n: int, size: int) -> list[torch.Tensor]:
    """n buffers of `size` bytes, on pages of 2 MiB where the system has them, which it gives for private memory only: a
    direct read looks up each page that it writes to."""
    step = math.ceil(size / HUGE_PAGE) * HUGE_PAGE if size > HUGE_PAGE else math.ceil(size / ALIGN) * ALIGN
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, n * step + HUGE_PAGE, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    first = -whole.data_ptr() % HUGE_PAGE
    return [whole[first + i * step :][:size] for i in range(n)]
