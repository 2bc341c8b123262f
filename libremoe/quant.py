"""Quantised weights: the formats as data, QuantTensor, and pack / unpack in plain torch, which define every format.

A weight of shape (out, in) is cut along `in` into groups; weight = scale[group] * (code - offset), codes unsigned.
Two layouts exist:

  tiles    libremoe's own. Tiles of 16 outputs x 64 inputs; in a tile, 16 rows of 16 outputs x 4 consecutive
           inputs, one byte a code: what AVX-512 VNNI multiplies as a register and AMX as a tile. Narrower codes are
           packed in planes: byte row r of a b-bit plane holds in its f-th field (from the low bits) the codes of row
           r + f * 16 * b / 8.
  columns  the official int8 as it lies in the file: signed values (in, out), scales (in / group, out).

Shape letters: O outputs, I inputs, P = ceil(O / 16) tile rows, Q = ceil(I / 64) tile columns, S = ceil(I / group).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from libremoe.errors import LibremoeError

try:
    from libremoe import _kernels
except ImportError:  # not compiled: the twin below does it
    _kernels = None  # type: ignore[assignment]

TILE_OUT = 16
TILE_IN = 64


@dataclass(frozen=True)
class Format:
    """How codes of one width are stored. Bits of `planes` add up to the code; the first plane has the low bits."""

    name: str
    planes: tuple[int, ...]
    offset: float  # the code that means zero
    groups: tuple[int, ...]  # group sizes that quantize() offers, the default first; int8 files may carry any

    @property
    def bits(self) -> int:
        return sum(self.planes)

    @property
    def tile_bytes(self) -> int:
        return TILE_OUT * TILE_IN * self.bits // 8


FORMATS = {
    "int8": Format("int8", (8,), 128, (64, 32, 128)),
    "int4": Format("int4", (4,), 8, (32, 64)),
    "int3": Format("int3", (2, 1), 3.5, (32, 64)),
    "int2": Format("int2", (2,), 1.5, (32, 64)),
}


def get_format(name: str) -> Format:
    """Raises LibremoeError listing the formats that exist."""
    if name not in FORMATS:
        raise LibremoeError(f"no quantised format {name!r}; there are: {', '.join(FORMATS)}")
    return FORMATS[name]


@dataclass(frozen=True, eq=False)
class QuantTensor:
    """A quantised weight of logical shape (out, in), y = x @ W.T.

    layout "tiles": data (P, Q, tile_bytes) uint8, scales (P, S, 16) bfloat16 or float32, padding codes mean zero.
    layout "columns" (int8 only): data (in, out) int8, scales (S, out) bfloat16 or float32.
    group: inputs that share a scale; S groups of it cover `in`, the last one may be short.
    """

    format: str
    shape: tuple[int, int]
    group: int
    data: torch.Tensor
    scales: torch.Tensor
    layout: str = "tiles"

    def __post_init__(self) -> None:
        fmt = get_format(self.format)
        n_out, n_in = self.shape
        n_groups = -(-n_in // self.group)
        tiles = -(-n_out // TILE_OUT), -(-n_in // TILE_IN)
        data: tuple[int, ...]
        scales: tuple[int, ...]
        if self.layout == "tiles":
            data, scales = (*tiles, fmt.tile_bytes), (tiles[0], n_groups, TILE_OUT)
        elif self.layout == "columns" and self.format == "int8":
            data, scales = (n_in, n_out), (n_groups, n_out)
        else:
            raise ValueError(f"layout {self.layout!r} does not go with format {self.format!r}")
        if tuple(self.data.shape) != data or tuple(self.scales.shape) != scales:
            raise ValueError(
                f"{self.format} {self.layout} weight {self.shape} group {self.group} needs data {data} and scales "
                f"{scales}, not {tuple(self.data.shape)} and {tuple(self.scales.shape)}"
            )

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scales.nbytes

    def rows(self, start: int, stop: int) -> QuantTensor:
        """Outputs start:stop as a view; for tiles, start must be a multiple of 16."""
        if self.layout == "columns":
            data, scales = self.data[:, start:stop], self.scales[:, start:stop]
        else:
            if start % TILE_OUT:
                raise ValueError(f"start {start} is not a multiple of {TILE_OUT}")
            tiles = slice(start // TILE_OUT, -(-stop // TILE_OUT))
            data, scales = self.data[tiles], self.scales[tiles]
        return QuantTensor(self.format, (stop - start, self.shape[1]), self.group, data, scales, self.layout)

    def codes(self) -> torch.Tensor:
        """(out, in) int16: code - offset for integral offsets, else 2 * (code - offset)."""
        n_out, n_in = self.shape
        if self.layout == "columns":
            return self.data.t().to(torch.int16, memory_format=torch.contiguous_format)  # rounding follows strides
        return _from_tiles(self._centred(_unpack_planes(self.data, FORMATS[self.format].planes)))[:n_out, :n_in]

    def _centred(self, codes: torch.Tensor) -> torch.Tensor:
        """Stored codes -> what codes() gives."""
        offset = FORMATS[self.format].offset
        codes = codes.to(torch.int16)
        return codes - int(offset) if offset == int(offset) else 2 * codes - int(2 * offset)

    def group_scales(self) -> torch.Tensor:
        """(out, S) float32, to be multiplied with codes()."""
        if self.layout == "columns":
            return self.scales.t().float()
        scales = self.scales.float().transpose(1, 2).reshape(-1, self.scales.shape[1])[: self.shape[0]]
        return scales * self._code_scale()

    def _code_scale(self) -> float:
        """What a scale is worth to codes(), which are doubled where the offset is a half."""
        offset = FORMATS[self.format].offset
        return 1.0 if offset == int(offset) else 0.5

    def dequantize(self) -> torch.Tensor:
        """(out, in) float32, each value int * scale rounded once."""
        scales = self.group_scales().repeat_interleave(self.group, dim=1)[:, : self.shape[1]]
        return self.codes().float() * scales

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """(len(rows), in) float32: the rows named, for embedding tables."""
        if self.layout == "columns":
            picked = QuantTensor(self.format, (len(rows), self.shape[1]), self.group, self.data[:, rows],
                                 self.scales[:, rows], self.layout)
            return picked.dequantize()
        tiles, at = torch.div(rows, TILE_OUT, rounding_mode="floor"), rows % TILE_OUT
        data = self.data.view(*self.data.shape[:2], -1, TILE_OUT, 4)[tiles, :, :, at]  # one output's bytes of each row
        codes = _unpack_planes(data.flatten(2), FORMATS[self.format].planes, width=4)
        values = self._centred(codes).view(len(rows), -1)[:, : self.shape[1]].float()
        scales = self.scales[tiles, :, at].float() * self._code_scale()
        return values * scales.repeat_interleave(self.group, dim=1)[:, : self.shape[1]]

    def to_tiles(self) -> QuantTensor:
        """The same values and scales in the tiles layout."""
        if self.layout == "tiles":
            return self
        return pack(self.format, self.data.t().to(torch.int16), self.scales.t(), self.group)


def pack(format: str, values: torch.Tensor, scales: torch.Tensor, group: int) -> QuantTensor:
    """Codes and scales into the tiles layout.

    values: (out, in) integers, code - offset (twice that where the offset is a half). scales: (out, S), kept in their
    type where bfloat16 or float32. Raises ValueError when a value does not fit the format.
    """
    fmt = get_format(format)
    n_out, n_in = values.shape
    if fmt.offset == int(fmt.offset):
        codes = values.to(torch.int16) + int(fmt.offset)
    else:
        codes = torch.div(values.to(torch.int16) + int(2 * fmt.offset), 2, rounding_mode="floor")
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= 1 << fmt.bits):
        raise ValueError(f"values do not fit {format}")
    pad_out, pad_in = -n_out % TILE_OUT, -n_in % TILE_IN
    codes = F.pad(codes, (0, pad_in, 0, pad_out), value=int(fmt.offset)).to(torch.uint8)
    data = _pack_planes(_to_tiles(codes), fmt.planes)
    if scales.dtype not in (torch.bfloat16, torch.float32):
        scales = scales.float()
    scales = F.pad(scales, (0, 0, 0, pad_out)).view(-1, TILE_OUT, scales.shape[1]).transpose(1, 2).contiguous()
    return QuantTensor(format, (n_out, n_in), group, data, scales)


def quantize(weight: torch.Tensor, format: str, group: int | None = None) -> QuantTensor:
    """Quantise (out, in) float weights, choosing each group's scale to minimise its squared error.

    Scales are bfloat16, and codes are chosen for the rounded scale. Candidates: the largest magnitude of the group put
    on either end of the code range, and the same shrunk in steps, each refined once by least squares.
    Raises LibremoeError for a group that the format does not offer.
    """
    fmt = get_format(format)
    group = group or fmt.groups[0]
    if group not in fmt.groups:
        raise LibremoeError(f"format {format} has groups of {fmt.groups}, not {group}")
    n_out, n_in = weight.shape
    if _kernels is not None and weight.device.type == "cpu" and weight.numel():
        return _quantize_compiled(weight.detach(), fmt, group)
    rows_at_once = max(TILE_OUT, (1 << 20) // max(n_in, 1) // TILE_OUT * TILE_OUT)
    parts = [_quantize_rows(weight[i : i + rows_at_once].float(), fmt, group) for i in range(0, n_out, rows_at_once)]
    return QuantTensor(format, (n_out, n_in), group, torch.cat([p.data for p in parts]),
                       torch.cat([p.scales for p in parts]))


_SHRINK = {8: (1.0,), 4: (1.0, 0.94, 0.88, 0.82, 0.75), 3: (1.0, 0.9, 0.8, 0.7, 0.6), 2: (1.0, 0.85, 0.7, 0.55, 0.4)}


def _factors(fmt: Format) -> list[float]:
    """What a group's largest magnitude is multiplied with to give the scales to be tried."""
    low, high = -fmt.offset, (1 << fmt.bits) - 1 - fmt.offset
    ends = (low,) if low == -high else (low, high)
    return [shrink / end for end in ends for shrink in _SHRINK[fmt.bits]]


def _quantize_compiled(weight: torch.Tensor, fmt: Format, group: int) -> QuantTensor:
    """_quantize_rows by the compiled kernel, which gives the same bits."""
    n_out, n_in = weight.shape
    tiles = -(-n_out // TILE_OUT)
    data = torch.empty(tiles, -(-n_in // TILE_IN), fmt.tile_bytes, dtype=torch.uint8)
    scales = torch.empty(tiles, -(-n_in // group), TILE_OUT, dtype=torch.bfloat16)
    step = max(1, (1 << 24) // (n_in * TILE_OUT))  # tile rows held as float32 at a time
    for i in range(0, tiles, step):
        rows = weight[i * TILE_OUT : (i + step) * TILE_OUT].float().contiguous()
        _kernels.quantize(rows, list(FORMATS).index(fmt.name), group, fmt.offset, _factors(fmt), data[i : i + step],
                          scales[i : i + step])
    return QuantTensor(fmt.name, (n_out, n_in), group, data, scales)


def _quantize_rows(weight: torch.Tensor, fmt: Format, group: int) -> QuantTensor:
    n_out, n_in = weight.shape
    x = F.pad(weight, (0, -n_in % group)).view(n_out, -1, group)
    largest, smallest = x.amax(2, keepdim=True), x.amin(2, keepdim=True)
    peak = torch.where(largest >= -smallest, largest, smallest)  # signed, so that it may sit on the longer end
    best_error = torch.full_like(peak, float("inf"))
    best_scale = torch.zeros_like(peak)
    best_code = torch.zeros_like(x)
    for factor in _factors(fmt):
        scale = peak * factor
        code = _codes_for(x, scale, fmt)
        scale = (_sum(x * code) / _sum(code * code).clamp_min(1e-30)).bfloat16().float()
        code = _codes_for(x, scale, fmt)
        error = _sum((x - scale * code).square())
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_code = torch.where(better, code, best_code)
    doubled = best_code if fmt.offset == int(fmt.offset) else best_code * 2
    values = doubled.view(n_out, -1)[:, :n_in].to(torch.int16)
    return pack(fmt.name, values, best_scale.squeeze(2).bfloat16(), group)


def _sum(x: torch.Tensor) -> torch.Tensor:
    """Over the last dimension, a power of two, which is kept: halves are added until one number is left, which
    gives the compiled kernel's bits."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x


def _codes_for(x: torch.Tensor, scale: torch.Tensor, fmt: Format) -> torch.Tensor:
    """Nearest code - offset for each x at a scale; zero where the scale is zero."""
    inverse = torch.where(scale == 0, 0.0, 1.0 / scale)
    shift = fmt.offset - int(fmt.offset)  # 0, or 0.5 where zero lies between two codes
    low, high = -fmt.offset, (1 << fmt.bits) - 1 - fmt.offset
    return ((x * inverse + shift).round() - shift).clamp(low, high)


def _to_tiles(codes: torch.Tensor) -> torch.Tensor:
    """(P * 16, Q * 64) -> (P, Q, 16, 64): rows of 16 outputs x 4 inputs."""
    p, q = codes.shape[0] // TILE_OUT, codes.shape[1] // TILE_IN
    return codes.view(p, TILE_OUT, q, 16, 4).permute(0, 2, 3, 1, 4).reshape(p, q, 16, 64)


def _from_tiles(tiles: torch.Tensor) -> torch.Tensor:
    """The reverse of _to_tiles."""
    p, q = tiles.shape[:2]
    return tiles.view(p, q, 16, TILE_OUT, 4).permute(0, 3, 1, 2, 4).reshape(p * TILE_OUT, q * TILE_IN)


def _pack_planes(tiles: torch.Tensor, planes: tuple[int, ...]) -> torch.Tensor:
    """(P, Q, 16, 64) codes -> (P, Q, tile_bytes), planes one after the other."""
    p, q = tiles.shape[:2]
    packed, shift = [], 0
    for bits in planes:
        n_rows, n_fields = 2 * bits, 8 // bits
        part = (tiles >> shift) & ((1 << bits) - 1)
        fields = part.view(p, q, n_fields, n_rows, 64)
        byte = fields[:, :, 0].clone()
        for f in range(1, n_fields):
            byte |= fields[:, :, f] << (f * bits)
        packed.append(byte.reshape(p, q, -1))
        shift += bits
    return torch.cat(packed, dim=2) if len(packed) > 1 else packed[0].contiguous()


def _unpack_planes(data: torch.Tensor, planes: tuple[int, ...], width: int = 64) -> torch.Tensor:
    """The reverse of _pack_planes: (P, Q, 16, width) uint8; 4 bytes of a row's width for each output."""
    p, q = data.shape[:2]
    codes = torch.zeros(p, q, 16, width, dtype=torch.uint8)
    start, shift = 0, 0
    for bits in planes:
        n_rows, n_fields = 2 * bits, 8 // bits
        byte = data[:, :, start : start + n_rows * width].reshape(p, q, 1, n_rows, width)
        fields = [(byte >> (f * bits)) & ((1 << bits) - 1) for f in range(n_fields)]
        codes |= torch.cat(fields, dim=2).view(p, q, 16, width) << shift
        start += n_rows * width
        shift += bits
    return codes
