"""The operations of ops/reference.py, for training: the same results, faster where gradients flow.

Attention runs over rows of packed documents; tokens are sorted by expert, with one product an expert, or one grouped
product where the device has it. On the processor the backward pass of attention is written out, so that its scores stay
in the cache. tests/test_train_ops.py holds everything here, gradients included, to reference.py.
Shape letters: those of reference.py; B rows, T tokens of a row, M = N * A pairs of a token and an expert.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from libremoe.batch import Batch, LayerCache
from libremoe.experts import Expert, Weight
from libremoe.ops import reference
from libremoe.quant import QuantTensor
from libremoe.train import fused
from libremoe.train.shards import PackedBatch

embed, linear, route = reference.embed, reference.linear, reference.route

_QUERY_BLOCK = 128  # queries at once: scores of one block fit into the second-level cache
_KEY_STEP = 64
_BLOCK_VALUES = 1 << 17  # float32 values at once: half a megabyte
_ROW_STEP = 128  # rows; oneDNN compiles a product anew for every shape, which takes longer than the product
_GELU_LINE = 2 * math.sqrt(2 / math.pi)
_GELU_CUBE = 0.044715 * _GELU_LINE
_CPU_LOSS_ROWS, _GPU_LOSS_ROWS = 1024, 8192
_GROUPED_ALIGN = 8  # values; grouped products want rows of 16 bytes


def rms_norm(x_ND: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """See reference.rms_norm."""
    if x_ND.device.type == "cpu":
        return _CachedNorm.apply(x_ND, weight_D, eps)
    return fused.compiled(fused.rms_norm)(x_ND, weight_D, eps)


class _CachedNorm(torch.autograd.Function):
    """A few rows at a time, in float32, so that what lies between stays in the cache."""

    @staticmethod
    def forward(ctx: Any, x_ND: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
        out, scales = torch.empty_like(x_ND), torch.empty(len(x_ND), 1)
        for part in _row_blocks(x_ND):
            x = x_ND[part].float()
            scales[part] = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
            out[part] = (x * scales[part]).mul_(weight_D)
        ctx.save_for_backward(x_ND, weight_D, scales)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x_ND, weight_D, scales = ctx.saved_tensors
        dx, dweight = torch.empty_like(x_ND), torch.zeros_like(weight_D)
        for part in _row_blocks(x_ND):
            scale, g = scales[part], grads[0][part].float()
            x = x_ND[part].float().mul_(scale)
            product = g * x
            dweight += product.sum(0)
            inner = product.mul_(weight_D).mean(-1, keepdim=True)
            dx[part] = (g * weight_D).addcmul_(x, inner, value=-1).mul_(scale)
        return dx, dweight, None


def _row_blocks(x_ND: torch.Tensor) -> list[slice]:
    step = max(1, _BLOCK_VALUES // x_ND.shape[1])
    return [slice(i, i + step) for i in range(0, len(x_ND), step)]


def rope(x_NHK: torch.Tensor, positions_N: torch.Tensor, theta: float) -> torch.Tensor:
    """See reference.rope. Positions below _table's length."""
    half = x_NHK.shape[-1] // 2
    cos, sin = _table(theta, half, x_NHK.device)
    rotate = fused.rotate if x_NHK.device.type == "cpu" else fused.compiled(fused.rotate)
    return rotate(x_NHK, cos[positions_N][:, None], sin[positions_N][:, None])


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
    if q.device.type == "cuda":
        out = fused.compiled(fused.packed_attention)(q, k, v, batch.block_mask, scale, softcap)
    elif q.device.type == "cpu" and softcap is not None:
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
    """Row by row and block of queries by block; the backward pass computes the scores again (Dao et al. 2022).

    A block reads no key before its first query's document. Products are in the type of q, the rest in float32.
    """

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor, scale: float,
                softcap: float) -> torch.Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = torch.empty_like(q)
        blocks = _blocks(hidden)
        for b, begin, end, first in blocks:
            keys = slice(first, end)
            weights, _ = _weights(q[b, :, begin:end], k[b, :, keys], hidden[b, begin:end, keys], scale, softcap)
            out[b, :, begin:end] = torch.bmm(weights.to(v.dtype), v[b, :, keys]).view(-1, end - begin, q.shape[-1])
        ctx.save_for_backward(q, k, v, hidden)
        ctx.numbers = scale, softcap, blocks
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        q, k, v, hidden = ctx.saved_tensors
        scale, softcap, blocks = ctx.numbers
        grad = grads[0]
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        n_g, n_k = k.shape[1], k.shape[-1]
        for b, begin, end, first in blocks:
            keys = slice(first, end)
            block = q[b, :, begin:end]
            weights, capped = _weights(block, k[b, :, keys], hidden[b, begin:end, keys], scale, softcap)
            g = grad[b, :, begin:end].reshape(n_g, -1, n_k)
            dv[b, :, keys] += torch.bmm(weights.to(g.dtype).transpose(1, 2), g)
            d = torch.bmm(g, v[b, :, keys].transpose(1, 2)).float().mul_(weights)
            d.addcmul_(weights, d.sum(-1, keepdim=True), value=-1)  # softmax
            d.mul_(capped.square_().neg_().add_(1)).mul_(scale)  # the cap: d tanh = 1 - tanh^2
            d = d.to(q.dtype)
            dq[b, :, begin:end] = torch.bmm(d, k[b, :, keys]).view(-1, end - begin, n_k)
            dk[b, :, keys] += torch.bmm(d.transpose(1, 2), block.reshape(n_g, -1, n_k))
        return dq, dk, dv, None, None, None


def _blocks(hidden_BTT: torch.Tensor) -> list[tuple[int, int, int, int]]:
    """(row, first query, end, first key that the first query sees, rounded down so that few shapes occur)."""
    n_b, n_t, _ = hidden_BTT.shape
    begins = range(0, n_t, _QUERY_BLOCK)
    first_BQ = hidden_BTT[:, ::_QUERY_BLOCK].to(torch.uint8).argmin(-1)  # the keys before it are hidden
    return [(b, t, min(t + _QUERY_BLOCK, n_t), first // _KEY_STEP * _KEY_STEP)
            for b, firsts in enumerate(first_BQ.tolist()) for t, first in zip(begins, firsts, strict=True)]


def _weights(q_HtK: torch.Tensor, k_GSK: torch.Tensor, hidden_tS: torch.Tensor, scale: float,
             softcap: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention weights and tanh(scores / softcap), both (G, R * t, S) in float32."""
    n_g, n_s, n_k = k_GSK.shape
    capped = torch.bmm(q_HtK.reshape(n_g, -1, n_k), k_GSK.transpose(1, 2)).float().mul_(scale / softcap).tanh_()
    scores = (capped * softcap).view(-1, *hidden_tS.shape).masked_fill_(hidden_tS, reference.MASKED)
    return scores.softmax(-1).view(n_g, -1, n_s), capped


class _Spread(torch.autograd.Function):
    """Rows of x copied to the places of their experts; rows between them are zero. Its gradient adds up the A copies in
    their order; indexing's own gradient is a slow scatter."""

    @staticmethod
    def forward(ctx: Any, x_ND: torch.Tensor, places_M: torch.Tensor, n_places: int) -> Any:
        ctx.save_for_backward(places_M)
        ctx.n_tokens = len(x_ND)
        n_active = len(places_M) // len(x_ND)
        if n_places == len(places_M):  # no rows between: read in the order of the places
            return x_ND.index_select(0, places_M.argsort() // n_active)
        out_PD = x_ND.new_zeros(n_places, x_ND.shape[1])
        out_PD[places_M] = x_ND.repeat_interleave(n_active, 0)
        return out_PD

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (places,) = ctx.saved_tensors
        return grads[0][places].view(ctx.n_tokens, -1, grads[0].shape[-1]).sum(1), None, None


class _Collect(torch.autograd.Function):
    """y[places], whose gradient is zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, y_PD: torch.Tensor, places_M: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places_M)
        ctx.n_places = len(y_PD)
        return y_PD[places_M]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (places,) = ctx.saved_tensors
        out = grads[0].new_zeros(ctx.n_places, grads[0].shape[-1])
        out[places] = grads[0]
        return out, None


def moe(x_ND: torch.Tensor, ids_NA: torch.Tensor, gates_NA: torch.Tensor, waves: Iterable[Mapping[int, Expert]],
        activation: str) -> torch.Tensor:
    """See reference.moe. The waves are gathered first: parameters that learn are all in memory."""
    chosen = {e: expert for wave in waves for e, expert in wave.items()}
    experts = [chosen[e] for e in sorted(chosen)]
    step = _ROW_STEP if x_ND.dtype == torch.bfloat16 and x_ND.device.type == "cpu" else 1
    places_M, counts = _places(ids_NA.reshape(-1), step)
    counts = [counts[e] for e in sorted(chosen)]
    x_PD = _Spread.apply(x_ND, places_M, sum(counts))
    if can_group(x_PD, experts[0]):
        y_PD = grouped_feed_forward(x_PD, counts, experts, activation)
    else:
        parts = zip(x_PD.split(counts), experts, strict=True)
        y_PD = torch.cat([feed_forward(x, expert, activation) for x, expert in parts])
    y_NAD = _Collect.apply(y_PD, places_M).view(*ids_NA.shape, -1)
    if x_ND.device.type == "cuda":
        return fused.compiled(fused.weighed)(y_NAD, gates_NA)
    gates = gates_NA.to(x_ND.dtype).to(y_NAD.dtype)
    return torch.bmm(gates[:, None], y_NAD).squeeze(1).to(x_ND.dtype)


def _places(ids_M: torch.Tensor, step: int) -> tuple[torch.Tensor, list[int]]:
    """Where each pair goes when the pairs are sorted by expert, each expert's rows filled up to a multiple of step; and
    the rows of each expert then."""
    order = ids_M.argsort(stable=True)
    counts = torch.bincount(ids_M)
    filled = (counts + step - 1) // step * step
    shift = (filled - counts).cumsum(0) - (filled - counts)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device) + shift[ids_M[order]]
    return places, filled.tolist()


def feed_forward(x_ND: torch.Tensor, expert: Expert, activation: str) -> torch.Tensor:
    """See reference.feed_forward, but all three products, and the result, are in the type of x."""
    gate, up = linear(x_ND, expert.gate), linear(x_ND, expert.up)
    if activation == "gelu" and x_ND.device.type == "cpu":
        return linear(_CachedGate.apply(gate, up), expert.down)
    return linear(_gated(gate, up, activation), expert.down)


class _CachedGate(torch.autograd.Function):
    """gelu(gate) * up, with gelu(x) = x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3)), which is its tanh form."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        for part in _row_blocks(gate):
            x = gate[part].float()
            out[part] = (x * x).mul_(_GELU_CUBE).add_(_GELU_LINE).mul_(x).sigmoid_().mul_(x).mul_(up[part])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        for part in _row_blocks(gate):
            x, g = gate[part].float(), grads[0][part].float()
            square = x * x
            s = (square * _GELU_CUBE).add_(_GELU_LINE).mul_(x).sigmoid_()
            gelu = x * s
            dup[part] = gelu * g
            slope = square.mul_(3 * _GELU_CUBE).add_(_GELU_LINE).mul_(gelu)
            slope.addcmul_(slope, s, value=-1).add_(s)  # s + x s (1 - s) (its argument's slope)
            dgate[part] = slope.mul_(g).mul_(up[part])
        return dgate, dup


def _gated(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    function = fused.compiled(fused.gated) if gate.device.type == "cuda" else fused.gated
    return function(gate, up, activation)


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
        stacked_EIO = torch.stack([_plain(w) for w in weights]).to(x.dtype).transpose(1, 2)
        return torch._grouped_mm(x, stacked_EIO, offs=ends)

    gate, up = (product(x_MD, [getattr(e, part) for e in experts]) for part in ("gate", "up"))
    return product(_gated(gate, up, activation), [e.down for e in experts])


def _plain(weight: Weight) -> torch.Tensor:
    return weight.dequantize() if isinstance(weight, QuantTensor) else weight


class _ChunkedLoss(torch.autograd.Function):
    """Cross-entropy that never holds all logits: gradients are made with the loss, a chunk of rows at a time, in which
    the logits of a few rows at once stay in the cache."""

    @staticmethod
    def forward(ctx: Any, h_MD: torch.Tensor, table_VD: torch.Tensor, targets_M: torch.Tensor, scale: float,
                chunk: int) -> torch.Tensor:
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        table = table_VD.to(h_MD.dtype)
        step = _ROW_STEP if h_MD.device.type == "cpu" else chunk
        chunk = max(chunk // step, 1) * step
        n_rows = len(h_MD)
        h_MD = F.pad(h_MD, (0, 0, 0, -n_rows % step))  # zero rows: few shapes; what they give is dropped
        targets_M = F.pad(targets_M, (0, -n_rows % step), value=-1)
        loss_and_slope = _loss_and_slope if h_MD.device.type == "cpu" else fused.compiled(fused.loss_and_slope)
        dh = torch.empty_like(h_MD)
        dtable = torch.zeros(table_VD.shape, dtype=torch.float32, device=h_MD.device)
        total = torch.zeros((), dtype=torch.float64, device=h_MD.device)
        for i in range(0, len(h_MD), chunk):
            h_chunk = h_MD[i : i + chunk]
            d_chunk = []
            for j in range(i, i + len(h_chunk), step):
                loss, d = loss_and_slope(h_MD[j : j + step] @ table.T, targets_M[j : j + step], scale)
                total += loss
                if wanted:
                    d_chunk.append(d)
                    dh[j : j + step] = d @ table
            if wanted:
                dtable += (torch.cat(d_chunk).T @ h_chunk).float()
        ctx.save_for_backward(dh[:n_rows], dtable)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        dh, dtable = ctx.saved_tensors
        return dh * grads[0].to(dh.dtype), dtable * grads[0], None, None, None


def _loss_and_slope(logits_MV: torch.Tensor, targets_M: torch.Tensor,
                    scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """See fused.loss_and_slope; here in place, for the few rows that the cache holds."""
    logits = logits_MV.float().mul_(scale)
    counts = (targets_M >= 0).float()[:, None]
    targets = targets_M.clamp(min=0)[:, None]
    log_z = logits.logsumexp(-1, keepdim=True)
    loss = ((log_z - logits.gather(1, targets)) * counts).double().sum()
    slope = logits.sub_(log_z).exp_().scatter_add_(1, targets, torch.full_like(log_z, -1.0))
    return loss, slope.mul_(counts * scale).to(logits_MV.dtype)


def cross_entropy_sum(h_MD: torch.Tensor, table_VD: torch.Tensor, targets_M: torch.Tensor, logit_scale: float,
                      chunk: int | None = None) -> torch.Tensor:
    """Sum over M rows of -log softmax(h @ table.T * logit_scale)[target], in nats: a float32 scalar.

    chunk: rows whose logits are in memory at once; None: as many as suit the device.
    """
    chunk = chunk or (_CPU_LOSS_ROWS if h_MD.device.type == "cpu" else _GPU_LOSS_ROWS)
    return _ChunkedLoss.apply(h_MD, table_VD, targets_M, logit_scale, chunk)
