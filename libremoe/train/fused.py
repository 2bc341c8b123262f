"""The pieces of train/ops.py that a GPU would spend its time on moving bytes for, each compiled into a few kernels.

Every function here is plain torch and runs uncompiled anywhere, which is its twin: tests/test_train_ops.py holds it to
ops/reference.py on the processor, and the compiled one to it where there is a GPU. `compiled` gives the fast form.
Shape letters: those of train/ops.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

Function = Callable[..., Any]


@lru_cache(maxsize=16)
def compiled(function: Function) -> Function:
    """function by torch.compile, made once."""
    return torch.compile(function)


def rms_norm(x_ND: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """See reference.rms_norm."""
    x = x_ND.float()
    return (x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight_D).to(x_ND.dtype)


def rotate(x_NHK: torch.Tensor, cos_NH: torch.Tensor, sin_NH: torch.Tensor) -> torch.Tensor:
    """Rotary positions (reference.rope), with cos and sin of shape (N, 1, K / 2)."""
    half = x_NHK.shape[-1] // 2
    a, b = x_NHK[..., :half].float(), x_NHK[..., half:].float()
    return torch.cat([a * cos_NH - b * sin_NH, b * cos_NH + a * sin_NH], dim=-1).to(x_NHK.dtype)


def gated(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """activation(gate) * up, GELU in its tanh form."""
    return (F.gelu(gate, approximate="tanh") if activation == "gelu" else F.silu(gate)) * up


def weighed(y_NAD: torch.Tensor, gates_NA: torch.Tensor) -> torch.Tensor:
    """(N, D): what the chosen experts said, added up in float32."""
    return (y_NAD.float() * gates_NA[..., None]).sum(1).to(y_NAD.dtype)


def loss_and_slope(logits_MV: torch.Tensor, targets_M: torch.Tensor,
                   scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the cross-entropies of scale * logits (a scalar, nats), and its gradient by the logits, in their type.

    A target below 0 marks a row that counts for nothing.
    """
    logits = logits_MV.float() * scale
    counts = (targets_M >= 0).float()[:, None]
    is_target = torch.arange(logits.shape[1], device=logits.device) == targets_M[:, None]
    log_z = logits.logsumexp(-1, keepdim=True)
    wanted = torch.where(is_target, logits, 0.0).sum(-1, keepdim=True)
    slope = (torch.exp(logits - log_z) - is_target.float()) * (counts * scale)
    return ((log_z - wanted) * counts).sum(), slope.to(logits_MV.dtype)


def packed_attention(q_BHTK: torch.Tensor, k_BGTK: torch.Tensor, v_BGTK: torch.Tensor, mask: Any, scale: float,
                     softcap: float | None) -> torch.Tensor:
    """(B, H, T, K), scores never in memory (torch's flex_attention). mask: of block_mask."""
    from torch.nn.attention.flex_attention import flex_attention

    def capped(score: torch.Tensor, b: Any, h: Any, q: Any, k: Any) -> torch.Tensor:
        return score if softcap is None else softcap * torch.tanh(score / softcap)

    return flex_attention(q_BHTK, k_BGTK, v_BGTK, score_mod=capped, block_mask=mask, scale=scale, enable_gqa=True)


def block_mask(first_BT: torch.Tensor) -> Any:
    """Which blocks of keys a block of queries sees: no later key, and none before the first of its document.

    first_BT: int64, the place in the row at which a token's document begins.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (k <= q) & (k >= first_BT[b, q])

    n_b, n_t = first_BT.shape
    return create_block_mask(seen, n_b, None, n_t, n_t, device=str(first_BT.device))
