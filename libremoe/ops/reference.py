"""The definition of right: every operation in plain torch, differentiable, on any device. Backends are held to it.

Shape letters: B sequences, N tokens in a flat batch, T tokens of one sequence, S keys of one sequence, D dim, H query
heads, G kv heads, R = H / G, K head_dim, F hidden_dim, E experts, A active experts, O outputs, I inputs.
Precision: products in the type of x, everything between them (norms, scores, softmax, activation, sums over experts)
in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F

from libremoe.batch import BLOCK_SIZE, Batch, LayerCache
from libremoe.experts import Expert, Weight
from libremoe.quant import QuantTensor

MASKED = -1e30  # as in the release; finite, so that a row that sees no key stays finite
_TINY = 1e-35  # below, 127 / x is not finite
_CHUNK_VALUES = 1 << 24  # dequantise at most this many weights at a time


def embed(tokens_N: torch.Tensor, weight: Weight) -> torch.Tensor:
    """Rows of a (V, D) table: (N, D), float32 from quantised tables, else in the table's type."""
    if isinstance(weight, QuantTensor):
        return weight.take(tokens_N)
    return F.embedding(tokens_N, weight)


def linear(x_NI: torch.Tensor, weight: Weight) -> torch.Tensor:
    """x @ W.T for W of logical shape (O, I): (N, O) in the type of x. Quantised weights are dequantised in pieces."""
    if not isinstance(weight, QuantTensor):
        return F.linear(x_NI, weight.to(x_NI.dtype))
    n_out, n_in = weight.shape
    step = max(16, _CHUNK_VALUES // n_in // 16 * 16)
    pieces = [weight.rows(i, min(i + step, n_out)).dequantize() for i in range(0, n_out, step)]
    return torch.cat([F.linear(x_NI, piece.to(x_NI.dtype)) for piece in pieces], dim=-1)


def rms_norm(x_ND: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight in float32, back in the type of x (Zhang & Sennrich 2019)."""
    x = x_ND.float()
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight_D.float()).to(x_ND.dtype)


def rope(x_NHK: torch.Tensor, positions_N: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary embedding, half-split: component i pairs with i + K/2 (Su et al. 2021; docs/grok-1.md)."""
    half = x_NHK.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float32, device=x_NHK.device) / half)
    angle = positions_N.float()[:, None, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    a, b = x_NHK[..., :half].float(), x_NHK[..., half:].float()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x_NHK.dtype)


def attention(
    q_NHK: torch.Tensor,
    k_NGK: torch.Tensor,
    v_NGK: torch.Tensor,
    batch: Batch,
    cache: LayerCache | None,
    seen_N: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    """Causal attention with grouped queries: (N, H * K) in the type of q.

    With a cache the batch's keys and values are written to their slots first, rounded to its type (int8: to_int8), and
    each sequence reads its context_len keys through its block table. seen_N: bool, False for tokens that nobody may
    see (pads); None where all are seen. A row that sees no key at all averages the values of every key present; such
    rows are meaningless but finite.
    """
    if cache is not None:
        slots = batch.slots()
        _write(cache.k, cache.k_scale, slots, k_NGK)
        _write(cache.v, cache.v_scale, slots, v_NGK)
        if seen_N is not None:
            cache.seen.view(-1)[slots] = seen_N
    rows = []
    for b, context_len in enumerate(batch.context_lens):
        part = slice(batch.starts[b], batch.starts[b + 1])
        if cache is None or batch.block_tables is None:
            k, v, seen = k_NGK[part], v_NGK[part], None if seen_N is None else seen_N[part]
        else:
            table = torch.tensor(batch.block_tables[b][: -(-context_len // BLOCK_SIZE)])
            k = _read(cache.k, cache.k_scale, table, context_len).to(q_NHK.dtype)
            v = _read(cache.v, cache.v_scale, table, context_len).to(q_NHK.dtype)
            seen = None if seen_N is None else cache.seen[table].flatten()[:context_len]
        rows.append(_attend(q_NHK[part], k, v, batch.positions[part], seen, scale, softcap, window))
    return torch.cat(rows)


def to_int8(x_NGK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (N, G, K) int8 from -127 to 127 and scales (N, G) float32: x is about codes * scales[..., None], each head
    of a token with a scale of its own. Where a head has something that is not finite its scale is NaN."""
    x = x_NGK.float()
    peak = x.abs().amax(-1)
    finite, tiny = peak.isfinite(), peak < _TINY
    most = torch.full_like(peak, 127.0)
    inverse = torch.where(tiny | ~finite, 0.0, most / peak)  # 127.0 / peak would be 127 times a rounded reciprocal
    codes = torch.round(torch.where(finite[..., None], x, 0.0) * inverse[..., None]).to(torch.int8)
    scales = torch.where(finite, torch.where(tiny, 0.0, peak / most), torch.nan)
    return codes, scales


def _write(cache: torch.Tensor, scales: torch.Tensor | None, slots: torch.Tensor, x_NGK: torch.Tensor) -> None:
    if scales is None:
        cache.view(-1, *x_NGK.shape[1:])[slots] = x_NGK.to(cache.dtype)
    else:
        cache.view(-1, *x_NGK.shape[1:])[slots], scales.view(-1, x_NGK.shape[1])[slots] = to_int8(x_NGK)


def _read(cache: torch.Tensor, scales: torch.Tensor | None, table: torch.Tensor, context_len: int) -> torch.Tensor:
    """(S, G, K): what the blocks of a table hold, float32 from an int8 cache."""
    blocks = cache[table] if scales is None else cache[table].float() * scales[table][..., None]
    return blocks.flatten(0, 1)[:context_len]


def _attend(q_THK: torch.Tensor, k_SGK: torch.Tensor, v_SGK: torch.Tensor, positions_T: torch.Tensor,
            seen_S: torch.Tensor | None, scale: float, softcap: float | None, window: int | None) -> torch.Tensor:
    """One sequence: (T, H * K). Order as in the release: scale, cap, mask, softmax."""
    n_kv = k_SGK.shape[1]
    q = q_THK.view(q_THK.shape[0], n_kv, -1, q_THK.shape[2])
    scores = torch.einsum("tgrk,sgk->grts", q, k_SGK).float() * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    key_positions = torch.arange(k_SGK.shape[0], device=q.device)
    distance = positions_T[:, None] - key_positions
    visible = distance >= 0
    if window is not None:
        visible = visible & (distance < window)
    if seen_S is not None:
        visible = visible & seen_S
    weights = scores.masked_fill(~visible, MASKED).softmax(-1).to(v_SGK.dtype)
    return torch.einsum("grts,sgk->tgrk", weights, v_SGK).reshape(q_THK.shape[0], -1)


def route(logits_NE: torch.Tensor, n_active: int, renormalise: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Chosen experts, most probable first, and their gates: ids (N, A) int64, gates (N, A) float32.

    Softmax over all experts before the choice; on equal values the lower index wins (docs/grok-1.md).
    """
    probabilities = logits_NE.float().softmax(-1)
    ordered, order = torch.sort(probabilities, dim=-1, descending=True, stable=True)
    gates, ids = ordered[:, :n_active], order[:, :n_active]
    return ids, gates / gates.sum(-1, keepdim=True) if renormalise else gates


def feed_forward(x_ND: torch.Tensor, expert: Expert, activation: str) -> torch.Tensor:
    """down(act(gate(x)) * up(x)): (N, D) float32. The products with gate and up are in the type of x."""
    gate = linear(x_ND, expert.gate).float()
    gate = F.gelu(gate, approximate="tanh") if activation == "gelu" else F.silu(gate)
    return linear(gate * linear(x_ND, expert.up).float(), expert.down)


def moe(x_ND: torch.Tensor, ids_NA: torch.Tensor, gates_NA: torch.Tensor, waves: Iterable[Mapping[int, Expert]],
        activation: str) -> torch.Tensor:
    """Sum over a token's chosen experts of gate * expert(x): (N, D) in the type of x.

    waves: the chosen experts by number, each in one wave; a wave is done with before the next is asked for. Each expert
    is computed once, on the tokens that chose it. Gates are rounded to the type of x; the sum is float32, in the order
    of ids, so it does not depend on the waves.
    """
    out_NAD = torch.zeros(*ids_NA.shape, x_ND.shape[1], dtype=torch.float32, device=x_ND.device)
    for wave in waves:
        for e, expert in wave.items():
            rows, places = (ids_NA == e).nonzero(as_tuple=True)
            out_NAD[rows, places] = feed_forward(x_ND[rows], expert, activation)
    gates = gates_NA.to(x_ND.dtype).float()
    return (gates[:, :, None] * out_NAD).sum(1).to(x_ND.dtype)
