"""The two values that a forward pass needs beside its tokens: where each token stands, and where keys and values lie.

Nothing here allocates blocks or schedules; that is engine/. A cache is cut into blocks of BLOCK_SIZE tokens, and a
sequence owns a table of block numbers, so sequences can share blocks and need no neighbouring ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from libremoe.config import ModelConfig

BLOCK_SIZE = 64  # tokens
SCALE_BYTES = 4  # of a head's scale in an int8 cache


@dataclass
class Batch:
    """The flat batch of N tokens of B sequences, sequence after sequence.

    starts: B + 1 numbers; tokens starts[b]:starts[b + 1] are those of sequence b.
    positions: (N,) int64, position of each token in its own sequence.
    context_lens: B numbers; how many tokens of the sequence exist once this batch is written, cached ones included.
    block_tables: B lists of block numbers that cover context_lens, or None without a cache.
    logit_rows: (M,) int64, the rows whose logits are wanted; None for all N.
    n_active: B numbers; how many experts work on each token of a sequence; None where all want the model's own number.
    resident_only: choose among experts that are in memory, for drafts: whatever the pass gives is a guess.
    watched_rows: (W,) int64, rows whose chosen experts are to be reported in `chosen`, a (W, A) tensor for each layer;
    None: none are.
    """

    starts: list[int]
    positions: torch.Tensor
    context_lens: list[int]
    block_tables: list[list[int]] | None = None
    logit_rows: torch.Tensor | None = None
    n_active: list[int] | None = None
    resident_only: bool = False
    watched_rows: torch.Tensor | None = None
    chosen: list[torch.Tensor] = field(default_factory=list)

    @staticmethod
    def of_whole(lengths: list[int], device: torch.device | str = "cpu") -> Batch:
        """Whole sequences without a cache, for training and scoring."""
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])
        return Batch(starts, positions, list(lengths))

    def slots(self) -> torch.Tensor:
        """(N,) int64: the cache slot (block number * BLOCK_SIZE + offset) of each token of this batch."""
        if self.block_tables is None:
            raise ValueError("this batch has no block tables")
        slots = []
        for b, table in enumerate(self.block_tables):
            positions = self.positions[self.starts[b] : self.starts[b + 1]]
            blocks = torch.tensor(table, dtype=torch.int64)[positions // BLOCK_SIZE]
            slots.append(blocks * BLOCK_SIZE + positions % BLOCK_SIZE)
        return torch.cat(slots)


@dataclass
class LayerCache:
    """One layer's part of the cache: keys after rotation, and values.

    k, v: (n_blocks, BLOCK_SIZE, G, K), float32, bfloat16, or int8. seen: (n_blocks, BLOCK_SIZE) bool, shared by all
    layers: False where the token is one that attention must not see (pad ids of Grok-1). k_scale, v_scale: with int8,
    (n_blocks, BLOCK_SIZE, G) float32, what the codes of a head of a token are to be multiplied with; else None.
    """

    k: torch.Tensor
    v: torch.Tensor
    seen: torch.Tensor
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None


class KVCache:
    """Keys and values of all layers for n_blocks * BLOCK_SIZE tokens, in float32, bfloat16 or int8.

    Grok-1 needs 262,144 bytes a token in bfloat16, 135,168 in int8.
    """

    def __init__(self, config: ModelConfig, n_blocks: int, dtype: torch.dtype, device: torch.device | str = "cpu"):
        shape = (n_blocks, BLOCK_SIZE, config.n_kv_heads, config.head_dim)
        self.n_blocks, self.dtype = n_blocks, dtype
        self.any_unseen = False  # whether a token that must not be seen was ever written
        self.seen = torch.ones(n_blocks, BLOCK_SIZE, dtype=torch.bool, device=device)

        def empty() -> torch.Tensor:
            if torch.device(device).type != "cpu":
                return torch.zeros(shape, dtype=dtype, device=device)
            # From the system, which gives zeroed pages when they are first touched: writing zeros to gigabytes that a
            # short text never reaches takes seconds.
            return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)

        def scales() -> torch.Tensor | None:
            return torch.zeros(shape[:3], device=device) if dtype == torch.int8 else None

        self.layers = [LayerCache(empty(), empty(), self.seen, scales(), scales()) for _ in range(config.n_layers)]

    @staticmethod
    def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
        head_bytes = config.head_dim * dtype.itemsize + (SCALE_BYTES if dtype == torch.int8 else 0)
        return 2 * config.n_layers * config.n_kv_heads * head_bytes
