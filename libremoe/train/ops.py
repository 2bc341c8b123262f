"""The operations of ops/reference.py, for training: the same results, faster where gradients flow.

Attention runs over rows of packed documents; tokens are sorted by expert, with one product an expert, or one grouped
product where the device has it. On the processor the backward pass of attention is written out, so that its scores stay
in the cache. tests/test_train_ops.py holds everything here, gradients included, to reference.py.
Shape letters: those of reference.py; B rows, T tokens of a row, M = N * A pairs of a token and an expert.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from libremoe.batch import Batch, LayerCache
from libremoe.experts import Expert, Weight
from libremoe.ops import reference
from libremoe.quant import QuantTensor
from libremoe.train.shards import PackedBatch

embed, linear, route = reference.embed, reference.linear, reference.route

_QUERY_BLOCK = 128  # queries at once: scores of one block fit into the second-level cache
_GROUPED_ALIGN = 8  # values; grouped products want rows of 16 bytes


def rms_norm(x_ND: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """See reference.rms_norm."""
    return F.rms_norm(x_ND.float(), (x_ND.shape[-1],), weight_D.float(), eps).to(x_ND.dtype)


def rope(x_NHK: torch.Tensor, positions_N: torch.Tensor, theta: float) -> torch.Tensor:
    """See reference.rope. Positions below _table's length."""
    half = x_NHK.shape[-1] // 2
    cos, sin = _table(theta, half, x_NHK.device)
    cos, sin = cos[positions_N][:, None], sin[positions_N][:, None]
    a, b = x_NHK[..., :half].float(), x_NHK[..., half:].float()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x_NHK.dtype)


@lru_cache(maxsize=8)
def _table(theta: float, half: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    frequency = theta ** (-torch.arange(half, dtype=torch.float32, device=device) / half)
    angle = torch.arange(8192, dtype=torch.float32, device=device)[:, None] * frequency
    return angle.cos(), angle.sin()


def attention(q_NHK: torch.Tensor, k_NGK: torch.Tensor, v_NGK: torch.Tensor, batch: Batch, cache: LayerCache | None,
              seen_N: torch.Tensor | None, scale: float, softcap: float | None, window: int | None) -> torch.Tensor:
    """See reference.attention, to which everything but packed rows goes."""
    if not isinstance(batch, PackedBatch) or cache is not None or seen_N is not None or window is not None:
        return reference.attention(q_NHK, k_NGK, v_NGK, batch, cache, seen_N, scale, softcap, window)
    rows = (-1, batch.row_len)
    q, k, v = (x.view(*rows, *x.shape[1:]).transpose(1, 2) for x in (q_NHK, k_NGK, v_NGK))
    if q.device.type == "cpu" and q.dtype == torch.float32 and softcap is not None:
        out = _CachedAttention.apply(q, k, v, batch.hidden_BTT, scale, softcap)
    else:
        out = _plain_attention(q, k, v, batch.hidden_BTT, scale, softcap)
    return out.transpose(1, 2).reshape(q_NHK.shape[0], -1)


def _plain_attention(q_BHTK: torch.Tensor, k_BGTK: torch.Tensor, v_BGTK: torch.Tensor, hidden_BTT: torch.Tensor,
                     scale: float, softcap: float | None) -> torch.Tensor:
    n_b, n_h, n_t, n_k = q_BHTK.shape
    q = q_BHTK.reshape(n_b, k_BGTK.shape[1], -1, n_k)
    scores = (q @ k_BGTK.transpose(-1, -2)).float() * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.view(n_b, n_h, n_t, n_t).masked_fill(hidden_BTT[:, None], reference.MASKED)
    weights = scores.softmax(-1).to(v_BGTK.dtype).view(n_b, k_BGTK.shape[1], -1, n_t)
    return (weights @ v_BGTK).view(n_b, n_h, n_t, n_k)


class _CachedAttention(torch.autograd.Function):
    """Row by row and block of queries by block; the backward pass computes the scores again (Dao et al. 2022)."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor, scale: float,
                softcap: float) -> torch.Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = torch.empty_like(q)
        for b, begin, end in _blocks(q):
            weights, _ = _weights(q[b, :, begin:end], k[b, :, :end], hidden[b, begin:end, :end], scale, softcap)
            out[b, :, begin:end] = torch.bmm(weights, v[b, :, :end]).view(-1, end - begin, q.shape[-1])
        ctx.save_for_backward(q, k, v, hidden)
        ctx.numbers = scale, softcap
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        q, k, v, hidden = ctx.saved_tensors
        scale, softcap = ctx.numbers
        grad = grads[0]
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        n_g, n_k = k.shape[1], k.shape[-1]
        for b, begin, end in _blocks(q):
            block = q[b, :, begin:end]
            weights, capped = _weights(block, k[b, :, :end], hidden[b, begin:end, :end], scale, softcap)
            g = grad[b, :, begin:end].reshape(n_g, -1, n_k)
            dv[b, :, :end] += torch.bmm(weights.transpose(1, 2), g)
            d = torch.bmm(g, v[b, :, :end].transpose(1, 2)).mul_(weights)
            d.addcmul_(weights, d.sum(-1, keepdim=True), value=-1)  # softmax
            d.mul_(capped.square_().neg_().add_(1)).mul_(scale)  # the cap: d tanh = 1 - tanh^2
            dq[b, :, begin:end] = torch.bmm(d, k[b, :, :end]).view(-1, end - begin, n_k)
            dk[b, :, :end] += torch.bmm(d.transpose(1, 2), block.reshape(n_g, -1, n_k))
        return dq, dk, dv, None, None, None


def _blocks(q_BHTK: torch.Tensor) -> list[tuple[int, int, int]]:
    n_b, _, n_t, _ = q_BHTK.shape
    return [(b, t, min(t + _QUERY_BLOCK, n_t)) for b in range(n_b) for t in range(0, n_t, _QUERY_BLOCK)]


def _weights(q_HtK: torch.Tensor, k_GSK: torch.Tensor, hidden_tS: torch.Tensor, scale: float,
             softcap: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention weights and tanh(scores / softcap), both (G, R * t, S)."""
    n_g, n_s, n_k = k_GSK.shape
    capped = torch.bmm(q_HtK.reshape(n_g, -1, n_k), k_GSK.transpose(1, 2)).mul_(scale / softcap).tanh_()
    scores = (capped * softcap).view(-1, *hidden_tS.shape).masked_fill_(hidden_tS, reference.MASKED)
    return scores.softmax(-1).view(n_g, -1, n_s), capped


class _Dispatch(torch.autograd.Function):
    """Rows of x copied to the experts, sorted: row order[i] // A. Its gradient adds up the A copies in their order."""

    @staticmethod
    def forward(ctx: Any, x_ND: torch.Tensor, order_M: torch.Tensor, inverse_M: torch.Tensor, n_active: int) -> Any:
        ctx.save_for_backward(inverse_M)
        ctx.n_active = n_active
        return x_ND[order_M // n_active]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (inverse,) = ctx.saved_tensors
        return grads[0][inverse].view(-1, ctx.n_active, grads[0].shape[-1]).sum(1), None, None, None


class _Permute(torch.autograd.Function):
    """x[order], whose gradient is grad[inverse]; indexing's own gradient is a slow scatter."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return x[order]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0][ctx.saved_tensors[0]], None, None


def moe(x_ND: torch.Tensor, ids_NA: torch.Tensor, gates_NA: torch.Tensor, waves: Iterable[Mapping[int, Expert]],
        activation: str) -> torch.Tensor:
    """See reference.moe. The waves are gathered first: parameters that learn are all in memory."""
    flat = ids_NA.reshape(-1)
    order = flat.argsort(stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    chosen = {e: expert for wave in waves for e, expert in wave.items()}
    experts = [chosen[e] for e in sorted(chosen)]
    all_counts = torch.bincount(flat).tolist()
    counts = [all_counts[e] for e in sorted(chosen)]
    x_MD = _Dispatch.apply(x_ND, order, inverse, ids_NA.shape[1])
    if can_group(x_MD, experts[0]):
        y_MD = grouped_feed_forward(x_MD, counts, experts, activation)
    else:
        parts = zip(x_MD.split(counts), experts, strict=True)
        y_MD = torch.cat([feed_forward(x, expert, activation) for x, expert in parts])
    y_NAD = _Permute.apply(y_MD, inverse, order).view(*ids_NA.shape, -1)
    gates = gates_NA.to(x_ND.dtype).to(y_NAD.dtype)
    return torch.bmm(gates[:, None], y_NAD).squeeze(1).to(x_ND.dtype)


def feed_forward(x_ND: torch.Tensor, expert: Expert, activation: str) -> torch.Tensor:
    """See reference.feed_forward, but all three products, and the result, are in the type of x."""
    gate = _activate(linear(x_ND, expert.gate), activation)
    return linear(gate * linear(x_ND, expert.up), expert.down)


def _activate(gate: torch.Tensor, activation: str) -> torch.Tensor:
    return F.gelu(gate, approximate="tanh") if activation == "gelu" else F.silu(gate)


def can_group(x_MD: torch.Tensor, expert: Expert) -> bool:
    """Whether the device has grouped products for these: bfloat16 on NVIDIA processors from Hopper on."""
    if x_MD.device.type != "cuda" or x_MD.dtype != torch.bfloat16 or not hasattr(torch, "_grouped_mm"):
        return False
    aligned = all(n % _GROUPED_ALIGN == 0 for n in expert.gate.shape)
    return aligned and torch.cuda.get_device_capability(x_MD.device) >= (9, 0)


def grouped_feed_forward(x_MD: torch.Tensor, counts: list[int], experts: list[Expert], activation: str) -> torch.Tensor:
    """The feed-forwards of all experts as three grouped products: counts[e] rows of x belong to expert e."""
    ends = torch.tensor(counts, device=x_MD.device).cumsum(0).to(torch.int32)

    def product(x: torch.Tensor, weights: list[Weight]) -> torch.Tensor:
        stacked_EIO = torch.stack([_plain(w).to(x.dtype) for w in weights]).transpose(1, 2)
        return torch._grouped_mm(x, stacked_EIO, offs=ends)

    gate = _activate(product(x_MD, [e.gate for e in experts]), activation)
    return product(gate * product(x_MD, [e.up for e in experts]), [e.down for e in experts])


def _plain(weight: Weight) -> torch.Tensor:
    return weight.dequantize() if isinstance(weight, QuantTensor) else weight


class _ChunkedLoss(torch.autograd.Function):
    """Cross-entropy that never holds all logits: gradients are made with the loss, a chunk of rows at a time."""

    @staticmethod
    def forward(ctx: Any, h_MD: torch.Tensor, table_VD: torch.Tensor, targets_M: torch.Tensor, scale: float,
                chunk: int) -> torch.Tensor:
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        table = table_VD.to(h_MD.dtype)
        dh = torch.empty_like(h_MD)
        dtable = torch.zeros(table_VD.shape, dtype=torch.float32, device=h_MD.device)
        total = torch.zeros((), dtype=torch.float64, device=h_MD.device)
        for i in range(0, len(h_MD), chunk):
            h, targets = h_MD[i : i + chunk], targets_M[i : i + chunk]
            logits = (h @ table.T).float() * scale
            log_z = logits.logsumexp(-1)
            total += (log_z - logits.gather(1, targets[:, None])[:, 0]).double().sum()
            if wanted:
                d = logits.sub_(log_z[:, None]).exp_()
                d.scatter_add_(1, targets[:, None], torch.full_like(log_z, -1.0)[:, None])
                d = d.mul_(scale).to(h.dtype)
                dh[i : i + chunk] = d @ table
                dtable += (d.T @ h).float()
        ctx.save_for_backward(dh, dtable)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        dh, dtable = ctx.saved_tensors
        return dh * grads[0].to(dh.dtype), dtable * grads[0], None, None, None


def cross_entropy_sum(h_MD: torch.Tensor, table_VD: torch.Tensor, targets_M: torch.Tensor, logit_scale: float,
                      chunk: int = 1024) -> torch.Tensor:
    """Sum over M rows of -log softmax(h @ table.T * logit_scale)[target], in nats: a float32 scalar."""
    return _ChunkedLoss.apply(h_MD, table_VD, targets_M, logit_scale, chunk)
