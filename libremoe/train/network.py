"""The network of model.py over parameters that learn, and what its routers did."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from libremoe.config import ModelConfig
from libremoe.errors import LibremoeError
from libremoe.experts import Expert
from libremoe.model import Router, Transformer
from libremoe.quant import QuantTensor
from libremoe.train import ops as train_ops
from libremoe.weights import open_checkpoint, parameter_names
from libremoe.weights.native_layout import PARTS

Parameters = dict[str, nn.Parameter]  # by the names of weights/__init__.py


class LearningExperts:
    """Experts whose weights are parameters (the Experts protocol of model.py)."""

    def __init__(self, parameters: Parameters):
        self._parameters = parameters

    def resident(self, layer: int) -> set[int]:
        """Experts of a layer that are in memory now: all."""
        prefix = f"layers.{layer}.experts."
        return {int(name.removeprefix(prefix).split(".")[0]) for name in self._parameters if name.startswith(prefix)}

    def begin(self, h_ND: torch.Tensor) -> None:
        """A step begins; there is nothing to prepare."""

    def waves(self, layer: int, ids: Sequence[int], x_ND: torch.Tensor) -> Iterator[Mapping[int, Expert]]:
        """All experts of `ids` in one wave."""
        names = {e: [f"layers.{layer}.experts.{e}.{part}.weight" for part in PARTS] for e in ids}
        yield {e: Expert(*(self._parameters[name] for name in names[e])) for e in ids}


def new_parameters(config: ModelConfig, seed: int, device: torch.device | str = "cpu") -> Parameters:
    """Float32, the same for a seed on every device. Post-norms begin small, so that depth does not add up at first."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {}
    for name, shape in parameter_names(config).items():
        if name.endswith("post_norm.weight"):
            value = torch.full(shape, 1 / math.sqrt(2 * config.n_layers))
        elif name.endswith("norm.weight"):
            value = torch.ones(shape)
        else:
            value = torch.randn(shape, generator=generator) / math.sqrt(shape[1])
        parameters[name] = nn.Parameter(value.to(device))
    return parameters


def parameters_of(model: Path, config: ModelConfig, device: torch.device | str = "cpu") -> Parameters:
    """The weights of a model in any readable format, rounded ones as they are meant, as float32 parameters.

    Raises LibremoeError where the model is of another shape than config.
    """
    reader = open_checkpoint(model)
    wanted, found = parameter_names(config), parameter_names(reader.config)
    if wanted != found:
        name = next(n for n in [*wanted, *found] if wanted.get(n) != found.get(n))
        raise LibremoeError(f"--from {model}: {name} has the shape {found.get(name)} there, and {wanted.get(name)} in "
                            "the recipe; give the recipe the model's [model] table")
    weights = {name: reader.read(name) for name in wanted}
    return {name: nn.Parameter((w.dequantize() if isinstance(w, QuantTensor) else w).float().to(device, copy=True))
            for name, w in weights.items()}


def network(config: ModelConfig, parameters: Parameters, dtype: torch.dtype = torch.float32,
            ops: ModuleType = train_ops) -> Transformer:
    """The model over these parameters. dtype: of activations and products."""
    return Transformer(config, parameters.__getitem__, LearningExperts(parameters), ops, dtype)


class RouterWatch:
    """Sees what every router decides while it is attached, without the network knowing.

    balance: E * sum over e of (share of choices that fell on e) * (mean probability of e), 1 when even (Fedus et al.
    2021, equation 4, for several choices a token). z: mean squared logsumexp of the logits (Zoph et al. 2022, eq. 5).
    """

    def __init__(self, model: Transformer):
        self.config = model.config
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # ids (N, A), logits (N, E) of each layer
        for module in model.modules():
            if isinstance(module, Router):
                module.register_forward_hook(self._note)

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        ids, _, logits = output
        self._seen.append((ids, logits))

    def take(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(balance, z, counts (L, E) int64) of the forward pass since the last call; zeros for a dense model."""
        seen, self._seen = self._seen, []
        if not seen:
            return torch.zeros(()), torch.zeros(()), torch.zeros(self.config.n_layers, 0, dtype=torch.int64)
        n_experts = self.config.n_experts
        each = torch.arange(n_experts, device=seen[0][0].device)  # bincount would wait for a GPU
        counts = torch.stack([(ids.reshape(-1, 1) == each).sum(0) for ids, _ in seen])
        shares = counts / counts.sum(1, keepdim=True)
        means = torch.stack([logits.softmax(-1).mean(0) for _, logits in seen])
        z = torch.stack([logits.logsumexp(-1).square().mean() for _, logits in seen]).mean()
        return n_experts * (shares * means).sum(1).mean(), z, counts


def route_at_random(model: Transformer, seed: int) -> None:
    """Send every token to experts drawn by lot, with even gates: what learned routing must beat."""
    generator = torch.Generator().manual_seed(seed)

    def replace(module: nn.Module, inputs: Any, output: Any) -> Any:
        ids, gates, logits = output
        drawn = torch.rand(logits.shape, generator=generator).argsort(-1)[:, : ids.shape[1]]
        return drawn, torch.full_like(gates, 1 / logits.shape[1]), logits

    for module in model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(replace)
