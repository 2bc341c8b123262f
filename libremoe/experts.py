"""The weights of feed-forwards, and the plain way to keep them: all in memory, or mapped, from load to end.

The network asks `experts.waves(layer, ids, x)` and computes with each wave while the next one arrives. Here the first
wave is everything; streaming.py answers the same call with what a memory budget holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from libremoe.quant import QuantTensor

Weight = torch.Tensor | QuantTensor  # logical shape (out, in), y = x @ W.T


@dataclass(frozen=True, eq=False)
class Expert:
    """One gated feed-forward: down(act(gate(x)) * up(x)).

    gate, up: (hidden_dim, dim); down: (dim, hidden_dim).
    """

    gate: Weight
    up: Weight
    down: Weight

    @property
    def nbytes(self) -> int:
        return self.gate.nbytes + self.up.nbytes + self.down.nbytes


class ResidentExperts:
    """All experts in memory: experts[layer][e]."""

    def __init__(self, experts: list[list[Expert]]):
        self._experts = experts

    def resident(self, layer: int) -> set[int]:
        """Experts of a layer that are in memory now: all."""
        return set(range(len(self._experts[layer])))

    def begin(self, h_ND: torch.Tensor) -> None:
        """A step begins. h_ND: the hidden state before the first layer, from which a store that streams guesses."""

    def waves(self, layer: int, ids: Sequence[int], x_ND: torch.Tensor) -> Iterator[Mapping[int, Expert]]:
        """Experts of `ids`, each in one wave. A wave's experts may be gone once the next one is asked for.

        x_ND: what the layer's experts will work on; a store that streams guesses from it what comes next.
        """
        yield {e: self._experts[layer][e] for e in ids}
