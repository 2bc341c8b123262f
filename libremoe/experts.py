"""Where the weights of feed-forwards live. Resident now: every expert is in memory, or mapped, from load to end.

The network asks `experts.get(layer, e)`; a store that streams answers the same call.
"""

from __future__ import annotations

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

    def get(self, layer: int, e: int) -> Expert:
        return self._experts[layer][e]
