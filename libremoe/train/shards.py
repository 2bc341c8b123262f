"""Token shards as training batches. Which rows a step reads is a function of seed and step only.

A shard is a folder: tokens.bin (uint16 little-endian), mask.bin (uint8, 1 where the token is one to learn when only
answers are), docs.bin (int64, where each document starts), meta.json (tokenizer's and data's digests, counts).
Shape letters: B rows, T tokens of a row, N = B * T.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from libremoe.batch import Batch
from libremoe.errors import CheckpointError
from libremoe.train import fused


@dataclass
class PackedBatch(Batch):
    """B rows of T tokens, each row holding pieces of documents one after another; a piece is a sequence of Batch.

    first_BT: int64, the place in the row at which the token's document begins.
    """

    row_len: int = 0
    first_BT: torch.Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))

    @cached_property
    def hidden_BTT(self) -> torch.Tensor:
        """bool, True where query t must not see key s: another document's, or a later one."""
        place = torch.arange(self.row_len, device=self.first_BT.device)
        return (place[None, None, :] > place[None, :, None]) | (place[None, None, :] < self.first_BT[:, :, None])

    @cached_property
    def block_mask(self) -> Any:
        """The same for the blocks of train/fused.py."""
        return fused.block_mask(self.first_BT)


@dataclass(frozen=True)
class Rows:
    """Everything of one forward pass. targets: (N,) int64, the next tokens. weights: (N,) float32, 1 where learned."""

    tokens: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    batch: PackedBatch


class Shard:
    """A folder of token ids, mapped. Raises CheckpointError where files are missing or do not fit each other."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            self.tokens = np.memmap(folder / "tokens.bin", dtype="<u2", mode="r")
            self.mask = np.memmap(folder / "mask.bin", dtype=np.uint8, mode="r")
            self.docs = np.fromfile(folder / "docs.bin", dtype="<i8")
        except (OSError, ValueError) as error:
            raise CheckpointError(folder, f"is no folder of token shards ({error}): make one with `libremoe train data`"
                                  ) from None
        ordered = len(self.docs) > 0 and self.docs[0] == 0 and bool((np.diff(self.docs) > 0).all())
        if len(self.mask) != len(self.tokens) or not ordered or self.docs[-1] >= len(self.tokens):
            raise CheckpointError(folder, "tokens.bin, mask.bin and docs.bin do not fit each other: make them again")

    def row_starts(self, context: int, whole_documents: bool) -> np.ndarray:
        """(R,) int64: where each row of `context` tokens, and one more to predict, begins."""
        last = len(self.tokens) - context - 1
        if last < 0:
            raise CheckpointError(self.folder, f"holds {len(self.tokens)} tokens, too few for one row of {context}")
        if not whole_documents:
            return np.arange(0, last + 1, context, dtype=np.int64)
        starts, at = [], 0
        while at <= last:
            starts.append(at)
            end = at + context
            cut = self.docs[np.searchsorted(self.docs, end, side="right") - 1]  # the document in which the row ends
            at = int(cut) if cut > at else end  # begun again in the next row, unless it is longer than one
        return np.array(starts, dtype=np.int64)

    def rows(self, starts_B: np.ndarray, context: int, answers_only: bool, device: torch.device | str = "cpu") -> Rows:
        """The rows that begin there, as one batch."""
        at_BT = starts_B[:, None] + np.arange(context)
        owner = np.searchsorted(self.docs, at_BT, side="right") - 1
        begin_BT = np.maximum(self.docs[owner], starts_B[:, None])
        positions_BT = at_BT - begin_BT
        next_owner = np.searchsorted(self.docs, at_BT + 1, side="right") - 1
        weights = (next_owner == owner).astype(np.float32)  # the first token of a document follows from nothing
        if answers_only:
            weights *= self.mask[at_BT + 1] > 0
        first_N = np.flatnonzero(positions_BT.reshape(-1) == 0)
        starts = [*first_N.tolist(), at_BT.size]
        first_BT = torch.from_numpy(begin_BT - starts_B[:, None]).to(device)
        batch = PackedBatch(starts, torch.from_numpy(positions_BT.reshape(-1)).to(device),
                            np.diff(starts).tolist(), row_len=context, first_BT=first_BT)
        tokens = torch.from_numpy(self.tokens[at_BT].astype(np.int64).reshape(-1))
        targets = torch.from_numpy(self.tokens[at_BT + 1].astype(np.int64).reshape(-1))
        return Rows(tokens.to(device), targets.to(device), torch.from_numpy(weights.reshape(-1)).to(device), batch)


def chosen_rows(n_rows: int, seed: int, first: int, count: int) -> np.ndarray:
    """Numbers of the rows first .. first + count of an endless run through n_rows, shuffled anew each time around."""
    places = np.arange(first, first + count)
    return np.array([_shuffled(n_rows, seed, int(p) // n_rows)[int(p) % n_rows] for p in places], dtype=np.int64)


@lru_cache(maxsize=4)
def _shuffled(n_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n_rows)


def write_shard(folder: Path, documents: list[tuple[list[int], list[bool]]], meta: dict[str, Any]) -> None:
    """A shard of documents as (ids, targets): small ones, for trying a recipe out."""
    folder.mkdir(parents=True)
    lengths = [len(ids) for ids, _ in documents]
    np.concatenate([np.array(ids, dtype="<u2") for ids, _ in documents]).tofile(folder / "tokens.bin")
    np.concatenate([np.array(t, dtype=np.uint8) for _, t in documents]).tofile(folder / "mask.bin")
    np.array([0, *np.cumsum(lengths)[:-1]], dtype="<i8").tofile(folder / "docs.bin")
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
