"""The header of a GGUF file: metadata and tensor places, parsed with every count held against the bytes left.

Format: docs/gguf.md of the ggml project, versions 2 and 3, little-endian. Refused beyond the specification, as
llama.cpp refuses them: arrays of arrays, duplicate keys and names, tensors that do not follow each other at the
stated alignment. Only the header is read, by pread and in pieces; weights are left where they are.
"""

from __future__ import annotations

import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from libremoe.errors import CheckpointError
from libremoe.weights.gguf_dequant import TYPES, GGMLType
from libremoe.weights.safetensors_header import opened, read_bytes

MAX_HEADER_BYTES = 64 << 20  # a vocabulary of 262,144 pieces with merges and scores takes about 12 MB
MAX_TENSORS = 100_000
MAX_KEYS = 4096
MAX_KEY_BYTES = 1024
MAX_NAME_BYTES = 64  # GGML_MAX_NAME
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_ALIGNMENT = 1 << 16
_LIMIT = 1 << 48
_PIECE = 1 << 20  # bytes read at a time
_TENSOR_NAME = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)

# Value types of the format: struct letter of scalars. 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GGUFTensor:
    """Where one tensor lies. shape: slowest axis first, the reverse of the file's order; start: file offset."""

    file: Path
    type: GGMLType
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // self.type.block * self.type.nbytes


@dataclass(frozen=True)
class GGUFHeader:
    """Metadata values are int, float, bool, bytes (strings as they lie), or lists of these."""

    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


class _Cursor:
    """A reading position in the header, which never goes past the file's end or MAX_HEADER_BYTES."""

    def __init__(self, fd: int, path: Path):
        self.fd, self.path = fd, path
        self.file_size = os.fstat(fd).st_size
        self.limit = min(self.file_size, MAX_HEADER_BYTES)
        self.at = 0
        self._piece, self._piece_start = b"", 0

    @property
    def left(self) -> int:
        return self.limit - self.at

    def refuse(self, reason: str) -> CheckpointError:
        return CheckpointError(self.path, reason)

    def take(self, n: int) -> bytes:
        if n > self.left:
            raise self.refuse(f"header ends at byte {self.limit}, {n - self.left} bytes too early")
        start = self.at - self._piece_start
        if start + n > len(self._piece):
            self._piece = read_bytes(self.fd, self.at, min(max(n, _PIECE), self.left), self.path)
            self._piece_start, start = self.at, 0
        self.at += n
        return self._piece[start : start + n]

    def number(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def count(self, what: str, least_bytes: int, most: int) -> int:
        """A 64-bit count of things of at least least_bytes each, refused before anything is made of it."""
        n = self.number("Q")
        if n > self.left // least_bytes:
            raise self.refuse(f"{what} {n} do not fit in the {self.left} bytes left")
        if n > most:
            raise self.refuse(f"{what} {n}; at most {most} are accepted")
        return n

    def string(self, what: str, most: int) -> bytes:
        return self.take(self.count(f"bytes of {what}:", 1, most))


def parse_header(path: Path | str) -> GGUFHeader:
    """Read and check metadata and tensor places of one file; no weight is read. Raises CheckpointError."""
    path = Path(path)
    with opened(path) as fd:
        cursor = _Cursor(fd, path)
        if cursor.file_size < 24 or cursor.take(4) != b"GGUF":
            raise CheckpointError(path, "not a GGUF file")
        version = cursor.number("I")
        if version not in (2, 3):
            what = "big-endian files are" if version in (2 << 24, 3 << 24) else f"version {version} is"
            raise CheckpointError(path, f"{what} not supported; versions 2 and 3, little-endian, are")
        n_tensors = cursor.count("tensors:", 33, MAX_TENSORS)
        n_keys = cursor.count("keys:", 14, MAX_KEYS)
        metadata = _metadata(cursor, n_keys)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment % 8 or not 8 <= alignment <= MAX_ALIGNMENT:
            raise CheckpointError(path, f"general.alignment {str(alignment)[:40]} is not a multiple of 8")
        infos = [_tensor_info(cursor, alignment) for _ in range(n_tensors)]
        data_start = cursor.at + -cursor.at % alignment
        return GGUFHeader(metadata, _place(cursor, infos, data_start, alignment))


def _metadata(cursor: _Cursor, n_keys: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(n_keys):
        raw = cursor.string("a key", MAX_KEY_BYTES)
        if not raw.isascii() or not raw:
            raise cursor.refuse(f"key {raw[:40]!r} is not ASCII text")
        key = raw.decode("ascii")
        if key in metadata:
            raise cursor.refuse(f"key {key[:80]!r} occurs twice")
        metadata[key] = _value(cursor, key)
    return metadata


def _value(cursor: _Cursor, key: str) -> Any:
    kind = cursor.number("I")
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind == _STRING:
        return cursor.string(f"value of {key[:80]}", MAX_HEADER_BYTES)
    if kind != _ARRAY:
        raise cursor.refuse(f"{key[:80]} has value type {kind}, which is not known")
    element = cursor.number("I")
    if element == _STRING:
        n = cursor.count(f"strings of {key[:80]}:", 8, MAX_HEADER_BYTES)
        return [cursor.string(f"a string of {key[:80]}", MAX_HEADER_BYTES) for _ in range(n)]
    if element not in _SCALARS:
        what = "arrays of arrays are" if element == _ARRAY else f"element type {element} is"
        raise cursor.refuse(f"{key[:80]}: {what} not supported")
    dtype = np.dtype("<" + _SCALARS[element])
    n = cursor.count(f"numbers of {key[:80]}:", dtype.itemsize, MAX_HEADER_BYTES)
    return np.frombuffer(cursor.take(n * dtype.itemsize), dtype=dtype).tolist()


def _tensor_info(cursor: _Cursor, alignment: int) -> tuple[str, GGUFTensor]:
    """Name and place; start is still relative to the data section."""
    name = cursor.string("a tensor name", MAX_NAME_BYTES).decode("latin-1")
    if not _TENSOR_NAME.fullmatch(name):
        raise cursor.refuse(f"tensor name {name!r} is not made of letters, digits, '.', '_' and '-'")
    n_dims = cursor.number("I")
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.refuse(f"{name} has {n_dims} dimensions; 1 to {MAX_DIMS} are possible")
    dims = [cursor.number("Q") for _ in range(n_dims)]
    type_id, offset = cursor.number("I"), cursor.number("Q")
    if type_id not in TYPES:
        known = ", ".join(t.name for t in TYPES.values())
        raise cursor.refuse(f"{name} has storage type {type_id}, which is not supported; these are: {known}")
    kind = TYPES[type_id]
    if not all(0 < d < _LIMIT for d in dims) or math.prod(dims) >= _LIMIT or offset >= _LIMIT:
        raise cursor.refuse(f"{name} has impossible dimensions {dims} or offset {offset}")
    if dims[0] % kind.block:
        raise cursor.refuse(f"{name} has rows of {dims[0]} values; {kind.name} comes in blocks of {kind.block}")
    if offset % alignment:
        raise cursor.refuse(f"{name} lies at offset {offset}, which is no multiple of {alignment}")
    return name, GGUFTensor(cursor.path, kind, tuple(reversed(dims)), offset)


def _place(cursor: _Cursor, infos: list[tuple[str, GGUFTensor]], data_start: int,
           alignment: int) -> dict[str, GGUFTensor]:
    """Absolute offsets, checked to follow each other at the alignment and to end within the file."""
    tensors: dict[str, GGUFTensor] = {}
    at, previous = 0, "the header"
    for name, tensor in sorted(infos, key=lambda info: info[1].start):
        if name in tensors:
            raise cursor.refuse(f"tensor {name} occurs twice")
        if tensor.start != at:
            what = "overlaps" if tensor.start < at else "leaves a hole after"
            raise cursor.refuse(f"{name} {what} {previous}")
        end = data_start + at + tensor.nbytes
        if end > cursor.file_size:
            raise cursor.refuse(f"{name} ends at byte {end}, the file at {cursor.file_size}: the file is truncated")
        tensors[name] = GGUFTensor(cursor.path, tensor.type, tensor.shape, data_start + at)
        at += tensor.nbytes + -tensor.nbytes % alignment
        previous = name
    return tensors
