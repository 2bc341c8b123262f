"""The header of a safetensors file, read by rules stricter than the official ones, and reads by pread.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON, data). The
official parser accepts duplicate keys, path-like names and headers of a million empty tensors; here they are
refused, so that any file is judged in time and memory proportional to a small header. Nothing is mapped: a file
that shrinks under a server gives a short read, an error of one request, where a mapping would end the process.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from libremoe.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

# Grok-1 with every expert apart and three tensors a weight has 10^4 tensors and 1.5 MB of header.
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 100_000
MAX_DIMS = 8
MAX_READ = 1 << 30  # bytes a call: Linux reads at most 2 GiB - 4 KiB at once
DROP_STEP = 16 << 20  # bytes that may be in the system's cache where they are to be dropped
_MAX_DIGITS = 15  # 10^15 - 1 > 2^48: longer numbers are never converted
_LIMIT = 1 << 48
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}", re.ASCII)


@dataclass(frozen=True)
class TensorSpan:
    """Where one tensor lies. start, stop: byte offsets from the beginning of the file."""

    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class SafetensorsHeader:
    """All that a safetensors file says of itself. data_start: offset of the first byte after the header."""

    metadata: dict[str, str]
    tensors: dict[str, TensorSpan]
    data_start: int
    file_size: int


class _Refused(Exception):
    """A reason to refuse the header, on its way to parse_header, which knows the path."""


def parse_header(path: Path | str) -> SafetensorsHeader:
    """Read and check the header of a safetensors file; no weight is read.

    Refused, each with its reason: a header over 16 MiB or over the file, duplicate keys, unknown fields and
    dtypes, path-like names, empty tensors, shapes that do not fill their span, spans that overlap, leave
    holes or do not end where the file ends. Raises CheckpointError.
    """
    path = Path(path)
    with opened(path) as fd:
        size = os.fstat(fd).st_size
        if size < 10:
            raise CheckpointError(path, f"not a safetensors file: {size} bytes are too few")
        length = int.from_bytes(read_bytes(fd, 0, 8, path), "little")
        if length > size - 8:
            raise CheckpointError(path, f"header of {length} bytes in a file of {size}: cut off or not safetensors")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(path, f"header of {length} bytes; at most {MAX_HEADER_BYTES} are accepted")
        text = read_bytes(fd, 8, length, path)
    try:
        if not text.startswith(b"{"):
            raise _Refused("header does not begin with '{'")
        if text.count(b'"dtype"') > MAX_TENSORS:
            raise _Refused(f"more than {MAX_TENSORS} tensors")
        entries = _strict_json(text)
        metadata = _metadata(entries.pop("__metadata__", {}))
        tensors = {name: _span(name, entry, 8 + length) for name, entry in entries.items()}
        _check_tiling(tensors, 8 + length, size)
    except _Refused as refused:
        raise CheckpointError(path, str(refused)) from None
    return SafetensorsHeader(metadata, tensors, 8 + length, size)


def read_span(source: int | Path | str, span: TensorSpan, path: Path | str | None = None) -> torch.Tensor:
    """Read one tensor into memory of its own, in the type and shape of its span.

    source: an open file descriptor, or a path; path: what an error names when source is a descriptor.
    Raises CheckpointError when the file has become shorter than its header says or cannot be read.
    """
    if not isinstance(source, int):
        with opened(Path(source)) as fd:
            return read_span(fd, span, source)
    name = f"descriptor {source}" if path is None else path
    data = torch.empty(span.nbytes, dtype=torch.uint8)
    read_into(source, span.start, data.numpy().data, Path(name))
    return data.view(DTYPES[span.dtype]).view(span.shape)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of a regular file. Raises CheckpointError where there is none or it cannot be opened."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hang us
    except OSError as error:
        raise CheckpointError(path, f"cannot be opened: {error.strerror}") from None
    except ValueError:
        raise CheckpointError(repr(str(path)), "not a file name") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise CheckpointError(path, "not a regular file")
        yield fd
    finally:
        os.close(fd)


def read_bytes(fd: int, start: int, length: int, path: Path) -> bytes:
    """Exactly length bytes from start; the caller has bounded length by the file's size."""
    buffer = bytearray(length)
    read_into(fd, start, memoryview(buffer), path)
    return bytes(buffer)


def read_into(fd: int, start: int, buffer: memoryview, path: Path, drop_pages: bool = False) -> None:
    """Fill the buffer from the file at start. Raises CheckpointError on a short read or an I/O error.

    drop_pages: let the system's cache forget what was read, so that it is not in memory twice.
    """
    done = 0
    while done < len(buffer):
        try:
            n = os.preadv(fd, [buffer[done : done + (DROP_STEP if drop_pages else MAX_READ)]], start + done)
        except OSError as error:
            raise CheckpointError(path, f"cannot be read at byte {start + done}: {error.strerror}") from None
        if n == 0:
            raise CheckpointError(path, f"ends at byte {start + done}, {len(buffer) - done} bytes too early")
        if drop_pages:
            os.posix_fadvise(fd, start + done, n, os.POSIX_FADV_DONTNEED)
        done += n


def read_json(path: Path, max_bytes: int) -> dict[str, Any]:
    """A small JSON file that must be an object, by the same rules as a header. Raises CheckpointError."""
    with opened(path) as fd:
        size = os.fstat(fd).st_size
        if size > max_bytes:
            raise CheckpointError(path, f"{size} bytes; at most {max_bytes} are accepted")
        text = read_bytes(fd, 0, size, path)
    try:
        return _strict_json(text)
    except _Refused as refused:
        raise CheckpointError(path, str(refused)) from None


def _strict_json(text: bytes) -> dict[str, Any]:
    """A JSON object with unique keys and integers below 2^48; no NaN. Raises _Refused."""
    try:
        value = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_int=_integer, parse_constant=_no_constant
        )
    except UnicodeDecodeError:
        raise _Refused("JSON is not UTF-8") from None
    except RecursionError:
        raise _Refused("JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise _Refused(f"not JSON: {error.msg} at byte {error.pos}") from None
    if not isinstance(value, dict):
        raise _Refused("not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused(f"key {key[:80]!r} occurs twice")
            seen.add(key)
    return found


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS or not -_LIMIT < int(text) < _LIMIT:
        raise _Refused(f"number {text[:20]} is not below 2^48")
    return int(text)


def _no_constant(text: str) -> NoReturn:
    raise _Refused(f"{text} is not a number")


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise _Refused("__metadata__ is not an object of strings")
    return value


def _span(name: str, entry: Any, data_start: int) -> TensorSpan:
    if not _NAME.fullmatch(name) or ".." in name or name.startswith("."):
        raise _Refused(f"tensor name {name[:80]!r} is not made of letters, digits, '.', '_' and '-'")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _Refused(f"entry of {name} is not exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _Refused(f"{name} has dtype {str(dtype)[:40]!r}, which is not known")
    if not _is_counts(shape) or len(shape) > MAX_DIMS or 0 in shape:
        raise _Refused(f"{name} has a shape that is not a list of at most {MAX_DIMS} positive integers")
    if not _is_counts(offsets) or len(offsets) != 2:
        raise _Refused(f"{name} has data_offsets that are not two integers")
    start, stop = offsets
    if start > stop:
        raise _Refused(f"{name} ends before it begins")
    wanted = math.prod(shape) * DTYPES[dtype].itemsize
    if stop - start != wanted:
        raise _Refused(f"{name} is {dtype} {shape}, {wanted} bytes, but its span has {stop - start}")
    return TensorSpan(dtype, tuple(shape), data_start + start, data_start + stop)


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)  # bool is no count


def _check_tiling(tensors: dict[str, TensorSpan], data_start: int, file_size: int) -> None:
    """Spans must follow each other without gap or overlap from the header's end to the file's end."""
    at, previous = data_start, "the header"
    for name, span in sorted(tensors.items(), key=lambda item: item[1].start):
        if span.start != at:
            what = "overlaps" if span.start < at else "leaves a hole after"
            raise _Refused(f"{name} {what} {previous}")
        at, previous = span.stop, name
    if at != file_size:
        what = "the file is truncated" if at > file_size else "bytes that belong to no tensor follow"
        raise _Refused(f"tensors end at byte {at}, the file at {file_size}: {what}")
