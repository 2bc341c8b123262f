"""AdamW and Muon, short, with all state in tensors by name, so that a run can be stopped and continued bit for bit.

AdamW: Loshchilov & Hutter 2019. Muon: momentum, then the nearest orthogonal matrix by Newton-Schulz (Jordan et al.
2024, "Muon: An optimizer for hidden layers"), scaled so that AdamW's learning rate and decay fit (Liu et al. 2025,
"Muon is scalable for LLM training", section 2.2). Muon takes the matrices inside the layers; embedding, router and
norms keep AdamW.
"""

from __future__ import annotations

import math

import torch

from libremoe.train.network import Parameters

BETAS, EPS = (0.9, 0.95), 1e-8
MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic, tuned for a steep start (Jordan et al. 2024)
NEWTON_SCHULZ_STEPS = 5
MATCHED_RMS = 0.2  # root mean square of an AdamW update (Liu et al. 2025)


class Optimizer:
    """kind: "adamw" or "muon". state: tensors by "PARAMETER/adam_m", ".../adam_v", ".../momentum"."""

    def __init__(self, parameters: Parameters, kind: str, weight_decay: float):
        parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        self.parameters, self.weight_decay = parameters, weight_decay
        self.muon = [n for n in parameters if kind == "muon" and _is_hidden_matrix(n)]
        self.adam = [n for n in parameters if n not in set(self.muon)]
        self.decayed = [n for n in parameters if not n.endswith("norm.weight") and n != "embed.weight"]
        slots = [(n, slot) for n in self.adam for slot in ("adam_m", "adam_v")] + [(n, "momentum") for n in self.muon]
        self.state = {f"{n}/{slot}": torch.zeros_like(parameters[n].data) for n, slot in slots}

    @torch.no_grad()
    def step(self, number: int, lr: float) -> None:
        """Update all parameters from their gradients, which are set to None. number: counts from 1."""
        for parameter in self.parameters.values():
            if parameter.grad is None:  # an expert that no token chose
                parameter.grad = torch.zeros_like(parameter)
        torch._foreach_mul_([self.parameters[n].data for n in self.decayed], 1 - lr * self.weight_decay)
        self._adam(number, lr)
        self._muon(lr)
        for parameter in self.parameters.values():
            parameter.grad = None

    def _adam(self, number: int, lr: float) -> None:
        values = [self.parameters[n].data for n in self.adam]
        grads = [_grad(self.parameters[n]) for n in self.adam]
        means = [self.state[f"{n}/adam_m"] for n in self.adam]
        squares = [self.state[f"{n}/adam_v"] for n in self.adam]
        torch._foreach_lerp_(means, grads, 1 - BETAS[0])
        torch._foreach_mul_(squares, BETAS[1])
        torch._foreach_addcmul_(squares, grads, grads, 1 - BETAS[1])
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, math.sqrt(1 - BETAS[1] ** number))
        torch._foreach_add_(roots, EPS)
        torch._foreach_addcdiv_(values, means, roots, -lr / (1 - BETAS[0] ** number))

    def _muon(self, lr: float) -> None:
        same: dict[tuple[int, ...], list[str]] = {}
        for name in self.muon:
            same.setdefault(tuple(self.parameters[name].shape), []).append(name)
        for shape, names in same.items():  # matrices of one shape together
            grads = [_grad(self.parameters[n]) for n in names]
            momenta = [self.state[f"{n}/momentum"] for n in names]
            torch._foreach_lerp_(momenta, grads, 1 - MOMENTUM)
            nesterov = torch.stack(torch._foreach_lerp(grads, momenta, MOMENTUM))
            updates = orthogonal(nesterov, torch.bfloat16 if has_fast_bfloat16(nesterov.device) else torch.float32)
            scale = -lr * MATCHED_RMS * math.sqrt(max(shape))
            torch._foreach_add_([self.parameters[n].data for n in names], list(updates.unbind()), alpha=scale)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster there than in float32: on GPUs, and on processors with AMX."""
    if device.type != "cpu":
        return device.type == "cuda"
    known = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return known is not None and bool(known())


def orthogonal(x_BMN: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Each matrix with its singular values brought near 1 (0.7 to 1.2). dtype: of the products."""
    a, b, c = NEWTON_SCHULZ
    x = x_BMN.to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.transpose(1, 2) if tall else x).to(x_BMN.dtype)


def clip(parameters: Parameters, limit: float) -> torch.Tensor:
    """Scale all gradients so that their joint norm is at most limit; the norm before, as a scalar tensor."""
    grads = [p.grad for p in parameters.values() if p.grad is not None]
    norm = torch.stack(torch._foreach_norm(grads)).norm()
    torch._foreach_mul_(grads, torch.clamp(limit / (norm + 1e-6), max=1.0))
    return norm


def _is_hidden_matrix(name: str) -> bool:
    return ".attn." in name or ".experts." in name


def _grad(parameter: torch.nn.Parameter) -> torch.Tensor:
    if parameter.grad is None:
        raise ValueError("step before the gradients are there")
    return parameter.grad
