"""Block formats of ggml in plain torch: bytes of a file to float32.

Source of the layouts: ggml-common.h (block_q4_0, block_q8_0, block_q4_K, block_q5_K, block_q6_K) and the loops
of ggml-quants.c (dequantize_row_*). Products are rounded in the same order, so values agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

_BLOCKS_AT_ONCE = 1 << 14  # bounds temporary memory to about 100 MB


@dataclass(frozen=True)
class GGMLType:
    """A storage type: `block` values take `nbytes` bytes."""

    name: str
    block: int
    nbytes: int


# Numbers of enum ggml_type in ggml.h.
TYPES = {
    0: GGMLType("f32", 1, 4),
    1: GGMLType("f16", 1, 2),
    2: GGMLType("q4_0", 32, 18),
    8: GGMLType("q8_0", 32, 34),
    12: GGMLType("q4_k", 256, 144),
    13: GGMLType("q5_k", 256, 176),
    14: GGMLType("q6_k", 256, 210),
    30: GGMLType("bf16", 1, 2),
}
PLAIN = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def dequantize(name: str, data: torch.Tensor) -> torch.Tensor:
    """(n * nbytes,) uint8 -> (n * block,) float32 for a block format; plain types come in their own type."""
    if name in PLAIN:
        return data.view(PLAIN[name])
    kind = next(t for t in TYPES.values() if t.name == name)
    blocks = data.view(-1, kind.nbytes)
    values = torch.empty(blocks.shape[0], kind.block)
    for i in range(0, blocks.shape[0], _BLOCKS_AT_ONCE):
        values[i : i + _BLOCKS_AT_ONCE] = _UNPACK[name](blocks[i : i + _BLOCKS_AT_ONCE])
    return values.view(-1)


def _half(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """(n, 1) float32: the float16 at byte `start` of each block."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    """d * (q - 8): value i in the low nibble of byte i, value i + 16 in the high one."""
    codes = torch.cat([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], dim=1)
    return (codes.float() - 8) * _half(blocks, 0)


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float() * _half(blocks, 0)


def _scales_and_mins(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 12) -> two (n, 8): six-bit scales and minima of eight groups (get_scale_min_k4 in ggml-quants.c).

    Groups 0-3 lie in the low six bits of bytes 0-3 and 4-7; of groups 4-7 the low nibbles lie in bytes 8-11 and
    the two high bits on top of bytes 0-3 and 4-7.
    """
    low, mid, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat([low & 63, (high & 15) | (low >> 6 << 4)], dim=1)
    mins = torch.cat([mid & 63, (high >> 4) | (mid >> 6 << 4)], dim=1)
    return scales.float(), mins.float()


def _k_groups(blocks: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """d * scale * q - dmin * min for codes (n, 8, 32) of Q4_K and Q5_K, whose heads are alike."""
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    d = (_half(blocks, 0) * scales).unsqueeze(2)
    dmin = (_half(blocks, 2) * mins).unsqueeze(2)
    return (d * codes.float() - dmin).view(-1, 256)


def _nibble_groups(packed: torch.Tensor) -> torch.Tensor:
    """(n, 128) -> (n, 8, 32): each 32 bytes hold one group in low nibbles and the next in high ones."""
    part = packed.reshape(-1, 4, 1, 32)
    return torch.cat([part & 15, part >> 4], dim=2).view(-1, 8, 32)


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    return _k_groups(blocks, _nibble_groups(blocks[:, 16:]))


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    """Q4_K with a fifth bit: bit g of byte i belongs to value i of group g."""
    high = torch.stack([(blocks[:, 16:48] >> g) & 1 for g in range(8)], dim=1)
    return _k_groups(blocks, _nibble_groups(blocks[:, 48:]) | (high << 4))


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """d * scale * (q - 32), int8 scales of 16 values; halves of 128 values: 64 bytes of nibbles, 32 of high bits."""
    low, high = blocks[:, :128].reshape(-1, 2, 1, 64), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    low = torch.cat([low & 15, low >> 4], dim=2).view(-1, 2, 4, 32)
    high = torch.cat([(high >> shift) & 3 for shift in (0, 2, 4, 6)], dim=2)
    codes = (low | (high << 4)).view(-1, 16, 16).float() - 32
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    return ((_half(blocks, 208) * scales).unsqueeze(2) * codes).view(-1, 256)


_UNPACK: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "q4_0": _q4_0, "q8_0": _q8_0, "q4_k": _q4_k, "q5_k": _q5_k, "q6_k": _q6_k,
}  # fmt: skip
