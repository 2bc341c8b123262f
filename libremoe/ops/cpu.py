"""The operations of reference.py over the compiled kernels (kernels/), for tensors on the processor, without copies.

Activations are int8 per 256 inputs where weights have 4 bits or fewer, and three times that, about as exact as float32,
where weights are int8 (kernels/types.h says how exactly); all else is float32.
A row's bits do not depend on the batch that it is in, on the number of threads, or on the instruction set, but that AMX
tiles add products with bfloat16 weights in an order of their own, and that AVX2 without VNNI multiplies int8 weights
with float32 (kernels/floats.h). Whatever the kernels do not cover goes to reference.py: gradients, other devices and
types, weights whose group is no multiple of 32, and attention in a sequence with tokens that must not be seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from weakref import WeakKeyDictionary

import torch

from libremoe import _kernels
from libremoe.batch import BLOCK_SIZE, Batch, LayerCache
from libremoe.experts import Expert, Weight
from libremoe.ops import reference
from libremoe.quant import QuantTensor

embed = reference.embed

_FORMAT_NUMBERS = {"int8": 0, "int4": 1, "int3": 2, "int2": 3}  # FormatId of kernels/types.h
_FLOATS = (torch.float32, torch.bfloat16)

# What the kernels know a weight by, made on first use and dropped with the weight.
_weights: WeakKeyDictionary[QuantTensor, _kernels.Weight | None] = WeakKeyDictionary()
_experts: WeakKeyDictionary[Expert, _kernels.Expert | None] = WeakKeyDictionary()


def linear(x_NI: torch.Tensor, weight: Weight) -> torch.Tensor:
    """See reference.linear."""
    if not _is_plain(x_NI):
        return reference.linear(x_NI, weight)
    out_NO = torch.empty(x_NI.shape[0], weight.shape[0])
    if isinstance(weight, QuantTensor):
        known = _weight(weight)
        if known is None:
            return reference.linear(x_NI, weight)
        _kernels.linear(known, _float(x_NI), out_NO)
    elif _is_plain(weight):
        weight = weight.detach()
        _kernels.linear_dense(weight if weight.stride(-1) == 1 else weight.contiguous(), _float(x_NI), out_NO)
    else:
        return reference.linear(x_NI, weight)
    return out_NO.to(x_NI.dtype)


def rms_norm(x_ND: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """See reference.rms_norm."""
    if not _is_plain(x_ND, weight_D):
        return reference.rms_norm(x_ND, weight_D, eps)
    x = _float(x_ND)
    out = torch.empty_like(x)
    _kernels.rms_norm(x, _float(weight_D), eps, out)
    return out.to(x_ND.dtype)


def rope(x_NHK: torch.Tensor, positions_N: torch.Tensor, theta: float) -> torch.Tensor:
    """See reference.rope."""
    if not _is_plain(x_NHK) or not len(positions_N):
        return reference.rope(x_NHK, positions_N, theta)
    n_positions = 1 << int(positions_N.max()).bit_length()
    cos, sin = _rope_table(theta, x_NHK.shape[-1] // 2, max(n_positions, 512))
    x = _float(x_NHK)
    out = torch.empty_like(x)
    _kernels.rope(x, positions_N.contiguous(), cos, sin, out)
    return out.to(x_NHK.dtype)


@lru_cache(maxsize=8)
def _rope_table(theta: float, half: int, n_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, each (n_positions, half) float32, of the float32 angles of reference.rope."""
    frequency = theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = (torch.arange(n_positions, dtype=torch.float32)[:, None] * frequency).double()
    return angle.cos().float(), angle.sin().float()


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
    """See reference.attention."""
    cached = cache is not None and batch.block_tables is not None
    if (
        not _is_plain(q_NHK, k_NGK, v_NGK)
        or (cache is not None and not cached)
        or (cache is not None and not _takes(cache))
    ):
        return reference.attention(q_NHK, k_NGK, v_NGK, batch, cache, seen_N, scale, softcap, window)
    if seen_N is not None:
        return _attention_with_unseen(q_NHK, k_NGK, v_NGK, batch, cache, seen_N, scale, softcap, window)
    n, n_heads, head_dim = q_NHK.shape
    out = torch.empty(n, n_heads * head_dim)
    _kernels.attention(
        _float(q_NHK),
        _float(k_NGK),
        _float(v_NGK),
        batch.starts,
        batch.positions.contiguous(),
        batch.context_lens,
        batch.block_tables if cached else None,
        cache.k if cache else None,
        cache.v if cache else None,
        cache.k_scale if cache else None,
        cache.v_scale if cache else None,
        scale,
        softcap or 0.0,
        window or 0,
        out,
    )
    return out.to(q_NHK.dtype)


def _takes(cache: LayerCache) -> bool:
    """Whether the kernel reads and writes this cache."""
    return cache.k.device.type == "cpu" and cache.k.dtype in (*_FLOATS, torch.int8)


def _attention_with_unseen(
    q_NHK: torch.Tensor,
    k_NGK: torch.Tensor,
    v_NGK: torch.Tensor,
    batch: Batch,
    cache: LayerCache | None,
    seen_N: torch.Tensor,
    *how: float | None,
) -> torch.Tensor:
    """Where some tokens must not be seen. Rows before the first of them in their sequence get the kernel's bits, as in
    other company; each later row is computed by itself, so that its bits do not depend on how the sequence was cut."""
    if cache is None or batch.block_tables is None:
        return reference.attention(q_NHK, k_NGK, v_NGK, batch, None, seen_N, *how)  # type: ignore[arg-type]
    cache.seen.view(-1)[batch.slots()] = seen_N
    out = torch.empty(len(q_NHK), q_NHK.shape[1] * q_NHK.shape[2], dtype=q_NHK.dtype)
    tables: list[list[int]] = []
    before = Batch([0], batch.positions, [], tables)
    rows: list[int] = []
    after = []
    for b, (table, context_len) in enumerate(zip(batch.block_tables, batch.context_lens, strict=True)):
        seen = cache.seen[torch.tensor(table[: -(-context_len // BLOCK_SIZE)])].flatten()[:context_len]
        first_unseen = context_len if bool(seen.all()) else int(seen.int().argmin())
        start, stop = batch.starts[b], batch.starts[b + 1]
        turn = min(stop, max(start, start + first_unseen - int(batch.positions[start])))
        after += [(n, table) for n in range(turn, stop)]
        if turn > start:
            rows += range(start, turn)
            before.starts.append(len(rows))
            before.context_lens.append(int(batch.positions[turn - 1]) + 1)
            tables.append(table)
    if rows:
        before.positions = batch.positions[rows]
        out[rows] = attention(q_NHK[rows], k_NGK[rows], v_NGK[rows], before, cache, None, *how)  # type: ignore[arg-type]
    for n, table in after:
        row = slice(n, n + 1)
        alone = Batch([0, 1], batch.positions[row], [int(batch.positions[n]) + 1], [table])
        out[row] = reference.attention(q_NHK[row], k_NGK[row], v_NGK[row], alone, cache, seen_N[row],
                                       *how)  # type: ignore[arg-type]
    return out


def route(logits_NE: torch.Tensor, n_active: int, renormalise: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """See reference.route."""
    if not _is_plain(logits_NE):
        return reference.route(logits_NE, n_active, renormalise)
    ids = torch.empty(logits_NE.shape[0], n_active, dtype=torch.int64)
    gates = torch.empty(logits_NE.shape[0], n_active)
    _kernels.route(_float(logits_NE), renormalise, ids, gates)
    return ids, gates


def feed_forward(x_ND: torch.Tensor, expert: Expert, activation: str) -> torch.Tensor:
    """See reference.feed_forward."""
    if not _is_plain(x_ND):
        return reference.feed_forward(x_ND, expert, activation)
    x = _float(x_ND)
    known = _expert(expert)
    if known is None or not len(x):
        gate, up = linear(x, expert.gate), linear(x, expert.up)
        return linear(_activate(gate, activation) * up, expert.down)
    out = torch.empty_like(x)
    _kernels.moe(
        x,
        torch.zeros(len(x), 1, dtype=torch.int64),
        torch.ones(len(x), 1),
        [known],
        activation == "gelu",
        out,
    )
    return out


def _activate(gate: torch.Tensor, activation: str) -> torch.Tensor:
    """The activation of reference.feed_forward."""
    if activation == "gelu":
        return torch.nn.functional.gelu(gate, approximate="tanh")
    return torch.nn.functional.silu(gate)


def moe(
    x_ND: torch.Tensor,
    ids_NA: torch.Tensor,
    gates_NA: torch.Tensor,
    waves: Iterable[Mapping[int, Expert]],
    activation: str,
) -> torch.Tensor:
    """See reference.moe."""
    if not _is_plain(x_ND, gates_NA) or not ids_NA.numel():
        return reference.moe(x_ND, ids_NA, gates_NA, waves, activation)
    gates = gates_NA.to(x_ND.dtype).float().contiguous()
    n_chosen = len(ids_NA.unique())
    out_NAD = torch.empty(0)  # made where there is more than one wave
    for wave in waves:
        if len(wave) == n_chosen and _are_of_one_kind(wave):
            return _moe_fused(_float(x_ND), ids_NA.contiguous(), gates, wave, activation).to(x_ND.dtype)
        if not len(out_NAD):
            out_NAD = torch.zeros(*ids_NA.shape, x_ND.shape[1])
        _moe_in_part(x_ND, ids_NA, wave, activation, out_NAD)
    total = torch.zeros(x_ND.shape)
    for a in range(ids_NA.shape[1] if len(out_NAD) else 0):  # as the fused kernel adds, bit for bit
        total += gates[:, a, None] * out_NAD[:, a]
    return total.to(x_ND.dtype)


def _are_of_one_kind(wave: Mapping[int, Expert]) -> bool:
    """Whether the fused kernel takes them all."""
    return len({_kind(e) for e in wave.values()}) == 1 and all(_expert(e) is not None for e in wave.values())


def _moe_fused(x: torch.Tensor, ids: torch.Tensor, gates: torch.Tensor, wave: Mapping[int, Expert],
               activation: str) -> torch.Tensor:
    out = torch.empty_like(x)
    experts = [_expert(wave[e]) if e in wave else None for e in range(max(wave) + 1)]
    _kernels.moe(x, ids, gates, experts, activation == "gelu", out)
    return out


def _moe_in_part(x_ND: torch.Tensor, ids_NA: torch.Tensor, wave: Mapping[int, Expert], activation: str,
                 out_NAD: torch.Tensor) -> None:
    """out_NAD of the places whose expert is in the wave: what each expert makes of its tokens, without gates."""
    if _are_of_one_kind(wave):
        rows, places = torch.isin(ids_NA, torch.tensor(list(wave))).nonzero(as_tuple=True)
        ids = ids_NA[rows, places, None].contiguous()
        out_NAD[rows, places] = _moe_fused(_float(x_ND[rows]), ids, torch.ones(len(rows), 1), wave, activation)
        return
    for e, expert in wave.items():
        rows, places = (ids_NA == e).nonzero(as_tuple=True)
        out_NAD[rows, places] = feed_forward(x_ND[rows], expert, activation).float()


def _is_plain(*tensors: torch.Tensor) -> bool:
    """Float tensors on the processor through which no gradient flows."""
    grad = torch.is_grad_enabled()
    return all(
        t.device.type == "cpu" and t.dtype in _FLOATS and not (grad and t.requires_grad) for t in tensors
    )


def _float(x: torch.Tensor) -> torch.Tensor:
    return x.detach().float().contiguous()


def _weight(weight: QuantTensor) -> _kernels.Weight | None:
    """None where the kernels cannot multiply it."""
    if weight not in _weights:
        _weights[weight] = _make_weight(weight)
    return _weights[weight]


def _make_weight(weight: QuantTensor) -> _kernels.Weight | None:
    n_out, n_in = weight.shape
    group = weight.group
    if group >= n_in:  # one group: any size that covers the inputs means the same
        group = -(-n_in // 64) * 64
    if group % 32 or weight.data.device.type != "cpu":
        return None
    columns = weight.layout == "columns"
    return _kernels.Weight(
        _FORMAT_NUMBERS[weight.format], n_out, n_in, group, columns, weight.data, weight.scales
    )


def _expert(expert: Expert) -> _kernels.Expert | None:
    """None where the fused kernel does not take it."""
    if expert not in _experts:
        _experts[expert] = _make_expert(expert)
    return _experts[expert]


def _make_expert(expert: Expert) -> _kernels.Expert | None:
    gate, up, down = (_weight(w) if isinstance(w, QuantTensor) else None for w in (expert.gate, expert.up, expert.down))
    if gate is None or up is None or down is None or _kind(expert)[0] != _kind(expert)[1]:
        return None
    return _kernels.Expert(gate, up, down)


def _kind(expert: Expert) -> tuple[tuple[str, str], ...]:
    """Format and layout of gate, up and down, which experts of one fused call have in common."""
    return tuple((getattr(w, "format", ""), getattr(w, "layout", "")) for w in (expert.gate, expert.up, expert.down))
