"""Where bytes lie in libremoe's own files: runs, the weights inside a run, the checksums of a run's blocks.

The format is written down in docs/formats.md. native.py reads it, native_writer.py writes it. Placement is
computed from formats and shapes alone, so reader and writer cannot disagree and a file cannot lie about it.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch

from libremoe.errors import CheckpointError
from libremoe.experts import Weight
from libremoe.quant import FORMATS, TILE_IN, TILE_OUT, QuantTensor

try:
    from libremoe import _kernels
except ImportError:  # not compiled: zlib does it
    _kernels = None  # type: ignore[assignment]

VERSION = 1
ALIGN = 4096  # of runs in their file and of their lengths: what O_DIRECT asks for
PART_ALIGN = 64  # of codes and scales inside a run: a cache line, an AVX-512 register
BLOCK = 1 << 20  # bytes under one CRC-32
DESCRIPTION = "libremoe.json"
MANIFEST = "manifest.json"
JOURNAL = "convert.json"  # only while a conversion is on its way
PLAIN = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
PARTS = ("gate", "up", "down")  # of an expert, in the order in which they lie in its run

_EXPERT = re.compile(r"(layers\.\d+\.experts\.\d+)\.(?:gate|up|down)\.weight")


@dataclass(frozen=True)
class WeightLayout:
    """How one weight is stored: format is a key of PLAIN or of quant.FORMATS; only the latter have groups."""

    format: str
    shape: tuple[int, ...]
    group: int = 0
    scales: str = ""  # "bf16" or "f32"

    @staticmethod
    def of(weight: Weight) -> WeightLayout:
        """The layout that keeps a weight exactly."""
        if isinstance(weight, QuantTensor):
            scales = "bf16" if weight.scales.dtype == torch.bfloat16 else "f32"
            return WeightLayout(weight.format, tuple(weight.shape), weight.group, scales)
        names = {dtype: name for name, dtype in PLAIN.items()}
        return WeightLayout(names[weight.dtype], tuple(weight.shape))

    def data_shape(self) -> tuple[int, ...]:
        if self.format in PLAIN:
            return self.shape
        n_out, n_in = self.shape
        return -(-n_out // TILE_OUT), -(-n_in // TILE_IN), FORMATS[self.format].tile_bytes

    def scales_shape(self) -> tuple[int, ...]:
        n_out, n_in = self.shape
        return -(-n_out // TILE_OUT), -(-n_in // self.group), TILE_OUT

    @property
    def data_nbytes(self) -> int:
        return math.prod(self.data_shape()) * (PLAIN[self.format].itemsize if self.format in PLAIN else 1)

    @property
    def scales_nbytes(self) -> int:
        return 0 if self.format in PLAIN else math.prod(self.scales_shape()) * PLAIN[self.scales].itemsize

    @property
    def nbytes(self) -> int:
        return self.data_nbytes + self.scales_nbytes


@dataclass(frozen=True)
class Place:
    """Where a weight lies in its run: byte offsets of its values and of its scales."""

    data_at: int
    scales_at: int
    stop: int


def up(n: int, multiple: int) -> int:
    """n rounded up."""
    return -(-n // multiple) * multiple


def place(layouts: list[WeightLayout]) -> tuple[list[Place], int]:
    """The one placement of weights in a run, and the length of the run with its padding."""
    places, at = [], 0
    for layout in layouts:
        data_at = up(at, PART_ALIGN)
        scales_at = up(data_at + layout.data_nbytes, PART_ALIGN)
        at = scales_at + layout.scales_nbytes
        places.append(Place(data_at, scales_at, at))
    return places, up(at, ALIGN)


def view(layout: WeightLayout, where: Place, buffer: torch.Tensor, base: int = 0) -> Weight:
    """The weight as views into a uint8 buffer that holds its run from byte `base` on."""
    data = buffer[where.data_at - base :][: layout.data_nbytes]
    if layout.format in PLAIN:
        return data.view(PLAIN[layout.format]).view(layout.shape)
    scales = buffer[where.scales_at - base :][: layout.scales_nbytes].view(PLAIN[layout.scales])
    n_out, n_in = layout.shape
    return QuantTensor(layout.format, (n_out, n_in), layout.group, data.view(layout.data_shape()),
                       scales.view(layout.scales_shape()))


def run_of(name: str) -> str:
    """The run that holds a weight: an expert's three weights share one, any other weight has its own."""
    expert = _EXPERT.fullmatch(name)
    return expert.group(1) if expert else name


def block_checksums(buffer: torch.Tensor) -> bytes:
    """CRC-32 of each BLOCK of a uint8 buffer, 4 bytes big-endian each (as hex in the table)."""
    if _kernels is not None:  # five times as fast as zlib, or checking would keep up with no fast disk
        return b"".join(crc.to_bytes(4, "big") for crc in _kernels.block_crc32(buffer, BLOCK))
    memory = buffer.numpy().data
    starts = range(0, len(memory), BLOCK)
    return b"".join(zlib.crc32(memory[i : i + BLOCK]).to_bytes(4, "big") for i in starts)


@dataclass(frozen=True)
class Run:
    """One aligned run: what a store that streams needs to read it and to trust it.

    offset, length: bytes in the file, multiples of ALIGN. checksums: block_checksums of its bytes.
    """

    name: str
    file: Path
    offset: int
    length: int
    checksums: bytes

    def check(self, buffer: torch.Tensor, start: int = 0) -> None:
        """Raises CheckpointError when the bytes from `start`, a multiple of BLOCK, are not those written."""
        found = block_checksums(buffer)
        wanted = self.checksums[start // BLOCK * 4 :][: len(found)]
        if found != wanted:
            bad = next(i for i in range(0, len(found), 4) if found[i : i + 4] != wanted[i : i + 4]) // 4
            at = self.offset + start + bad * BLOCK
            raise CheckpointError(self.file, f"{self.name} is damaged: the checksum at byte {at} differs; "
                                             "copy or convert the file again")
