"""The compiled kernels against their slow twins: every format, layout, instruction set and odd shape; equal bits for
any batch, thread count and instruction set; and a Python exception for whatever does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

kernels = pytest.importorskip("libremoe._kernels", reason="the compiled kernels are not built")

from libremoe.batch import BLOCK_SIZE, Batch, LayerCache  # noqa: E402
from libremoe.experts import Expert, ResidentExperts, Weight  # noqa: E402
from libremoe.language_model import load  # noqa: E402
from libremoe.model import Transformer  # noqa: E402
from libremoe.ops import cpu, reference  # noqa: E402
from libremoe.quant import FORMATS, QuantTensor, _quantize_rows, quantize  # noqa: E402
from libremoe.weights import open_checkpoint  # noqa: E402

EXACT_FORMULA = (
    2e-6  # of the largest output: float32 sums of exact block products against the same in float64
)
INT8_ACTIVATIONS = (
    0.02  # of the largest output: rounding of activations to 1/127 of their block's largest, against none
)
INT8_KEYS_AND_VALUES = 0.02  # of the largest output: rounding to 1/127 of a head's largest component, against none
FLOAT_SUMS = 5e-6  # float32 sums in another order
ISAS = kernels.available_isas()
TILES = {"amx", "amx-emulated"}
FLOATS = {"avx2"}  # these multiply int8 weights with float32, and have bits of their own there
SCALE_INPUTS = 256  # inputs that share an activation scale: kScaleInputs of kernels/types.h
SHAPES = [(1, 1), (16, 64), (70, 200), (130, 97), (200, 4160 + 40)]  # odd ones, and one that spans two panels
KINDS = [(f, g, False) for f, fmt in FORMATS.items() for g in fmt.groups] + [
    ("int8", g, True) for g in (32, 64, 96, 128, 8192)
]


@pytest.fixture(autouse=True)
def _as_at_start() -> Iterator[None]:
    n_threads = kernels.threads()
    yield
    kernels.use_isa("")
    kernels.set_threads(n_threads)


def weight(format: str, n_out: int, n_in: int, group: int, columns: bool, seed: int = 0) -> QuantTensor:
    rng = torch.Generator().manual_seed(seed)
    if columns:
        data = torch.randint(-128, 128, (n_in, n_out), dtype=torch.int8, generator=rng)
        scales = torch.rand(-(-n_in // group), n_out, generator=rng)
        return QuantTensor(format, (n_out, n_in), group, data, scales, "columns")
    return quantize(torch.randn(n_out, n_in, generator=rng), format, group)


def linear_in_float64(x: torch.Tensor, w: QuantTensor) -> torch.Tensor:
    """The formula of kernels/types.h with activations as int8, in float64."""
    n, n_in = x.shape
    rest = torch.nn.functional.pad(x, (0, -n_in % SCALE_INPUTS)).view(n, -1, SCALE_INPUTS)
    rounded = torch.zeros_like(rest, dtype=torch.float64)
    for _ in range(3 if w.format == "int8" else 1):
        peak = rest.abs().amax(-1, keepdim=True)
        codes = torch.round(rest * torch.where(peak > 0, 127.0 / peak, 0.0))
        rounded += codes.double() * (peak / 127.0).double()
        rest = rest - (peak / 127.0) * codes
    scales = w.group_scales().double().repeat_interleave(w.group, 1)[:, :n_in]
    return rounded.view(n, -1)[:, :n_in] @ (w.codes().double() * scales).T


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp_min(1e-30))


@pytest.mark.parametrize(("format", "group", "columns"), KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_against_the_formula_and_the_reference(
    shape: tuple[int, int], format: str, group: int, columns: bool
) -> None:
    n_out, n_in = shape
    w = weight(format, n_out, n_in, group, columns)
    x = torch.randn(19, n_in, generator=torch.Generator().manual_seed(1))
    outputs: dict[bool, torch.Tensor] = {}  # whether by float32
    for isa in ISAS:
        kernels.use_isa(isa)
        y = cpu.linear(x, w)
        assert torch.equal(y, outputs.setdefault(isa in FLOATS and format == "int8", y)), isa
    assert relative_error(outputs[False], linear_in_float64(x, w)) < EXACT_FORMULA
    assert relative_error(outputs[False], reference.linear(x, w)) < INT8_ACTIVATIONS
    if True in outputs:
        assert relative_error(outputs[True], reference.linear(x, w)) < FLOAT_SUMS


@pytest.mark.parametrize(
    ("format", "group", "columns"),
    [("int8", 64, False), ("int4", 32, False), ("int2", 32, False), ("int8", 8192, True), ("int8", 96, True)],
)
def test_a_row_has_the_same_bits_in_any_batch_and_on_any_number_of_threads(
    format: str, group: int, columns: bool
) -> None:
    w = weight(format, 600, 4200, group, columns)
    x = torch.randn(40, 4200)
    for isa in {kernels.isa(), *(FLOATS & set(ISAS))}:
        kernels.use_isa(isa)
        whole = cpu.linear(x, w)
        for n_threads in (1, 2, 5):
            kernels.set_threads(n_threads)
            for n in (*range(1, 10), 16, 23, 40):
                assert torch.equal(cpu.linear(x[:n], w), whole[:n]), (isa, n_threads, n)
                assert torch.equal(cpu.linear(x[40 - n :], w), whole[40 - n :]), (isa, n_threads, n)


def test_more_tokens_than_a_chunk() -> None:
    w = weight("int4", 40, 96, 32, False)
    x = torch.randn(1100, 96)
    y = cpu.linear(x, w)
    assert torch.equal(y[1050:], cpu.linear(x[1050:], w))
    assert relative_error(y, linear_in_float64(x, w)) < EXACT_FORMULA


@settings(max_examples=25, deadline=None)
@given(
    n_out=st.integers(1, 150),
    n_in=st.integers(1, 300),
    group=st.sampled_from([32, 64, 96, 128]),
    seed=st.integers(0, 9),
)
def test_columns_and_tiles_of_the_same_weight_have_the_same_bits(
    n_out: int, n_in: int, group: int, seed: int
) -> None:
    w = weight("int8", n_out, n_in, group, True, seed)
    x = torch.randn(11, n_in, generator=torch.Generator().manual_seed(seed))
    for isa in {kernels.isa(), *(FLOATS & set(ISAS))}:
        kernels.use_isa(isa)
        for n in (1, 2, 5, 11):
            assert torch.equal(cpu.linear(x[:n], w), cpu.linear(x[:n], w.to_tiles()))


def test_rows_of_a_columns_weight_are_multiplied_in_place() -> None:
    w = weight("int8", 300, 256, 64, True)
    x = torch.randn(3, 256)
    assert torch.equal(cpu.linear(x, w.rows(100, 237)), cpu.linear(x, w)[:, 100:237])


def test_extreme_activations() -> None:
    w = weight("int8", 20, 128, 64, False)
    x = torch.randn(6, 128)
    x[0, 3], x[1, 70], x[2], x[3, :64], x[4] = math.nan, math.inf, 0.0, 1e-40, 3e38
    for isa in ISAS:
        kernels.use_isa(isa)
        y = cpu.linear(x, w)
        assert y[0].isnan().all() and y[1].isnan().all() and not y[2].any() and y[3].isfinite().all()
        assert relative_error(y[5:], linear_in_float64(x[5:], w)) < EXACT_FORMULA


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (8, 96), (37, 130), (300, 515)])
def test_plain_weights(shape: tuple[int, int], dtype: torch.dtype) -> None:
    w = torch.randn(shape).to(dtype)
    x = torch.randn(150, shape[1])
    outputs: dict[bool, torch.Tensor] = {}  # whether by tiles, which add in an order of their own
    for isa in ISAS:
        kernels.use_isa(isa)
        y = cpu.linear(x, w)
        assert torch.equal(y, outputs.setdefault(isa in TILES and dtype == torch.bfloat16, y)), isa
        for n in (1, 3, 4, 7, 16, 17, 33, 48):
            assert torch.equal(cpu.linear(x[:n], w), y[:n])
        assert relative_error(y, x.double() @ w.double().T) < FLOAT_SUMS
    assert len(outputs) == 1 + (dtype == torch.bfloat16 and not TILES.isdisjoint(ISAS))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("n", "n_out", "n_in"), [(60, 520, 560), (530, 40, 67)])
def test_bfloat16_weights_give_a_row_its_bits_whatever_the_other_rows_are(
    n: int, n_out: int, n_in: int, isa: str
) -> None:
    """Rows that need one part of bfloat16, two or three; not finite ones; whole strips of outputs and several chunks of
    inputs; and more rows than are multiplied at a time."""
    kernels.use_isa(isa)
    kernels.set_threads(1)
    w = torch.randn(n_out, n_in + 3).bfloat16()[:, 3:]  # rows further apart than they are long
    x = torch.randn(n, n_in)
    x[:20] = x[:20].bfloat16()
    x[20:40] = x[20:40].bfloat16() * (1 + 2.0**-12)
    x[3, 5], x[30, 7], x[50, n_in - 1] = math.inf, math.nan, -math.inf
    x[4], x[5] = x[4] * 1e30, x[5] * 1e-30
    y = cpu.linear(x, w)
    finite = x.isfinite().all(-1)
    assert bool(y[finite].isfinite().all()) and not y[~finite].isfinite().any()
    for threads, rows in ((2, (0, 20)), (1, (20, 40)), (3, (40, n)), (2, (4, 5)), (1, (n - 3, n))):
        kernels.set_threads(threads)
        assert torch.equal(cpu.linear(x[slice(*rows)], w).nan_to_num(7), y[slice(*rows)].nan_to_num(7))
    for row in (0, 4, 5, 21, n - 1):
        assert relative_error(y[row], x[row].double() @ w.double().T) < FLOAT_SUMS


@pytest.mark.parametrize(("format", "group"), [(f, g) for f, fmt in FORMATS.items() for g in fmt.groups])
@pytest.mark.parametrize("shape", [(1, 1), (35, 300), (48, 256)])
def test_quantisation_has_the_bits_of_its_twin(shape: tuple[int, int], format: str, group: int) -> None:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    special = [0.0, 1.0, -1.0, 1e-40, -3e-42, 3e38, -3e38, math.nan, math.inf, 1e-20, 5e-39]
    for row, value in enumerate(special[: shape[0] - 1]):  # constant, and a few of them among others
        w[row, : shape[1] // 2] = value
        w[row, -3:] = value
    w[-1, ::2] *= 1e-39
    w[-1, ::3] = -w[-1, ::3].abs().max()
    wanted = _quantize_rows(w, FORMATS[format], group)
    for isa in ISAS:
        kernels.use_isa(isa)
        got = quantize(w, format, group)
        assert torch.equal(got.data, wanted.data), isa
        assert torch.equal(got.scales.view(torch.int16), wanted.scales.view(torch.int16)), isa


def expert(format: str, dim: int, hidden_dim: int, group: int, columns: bool, seed: int) -> Expert:
    shapes = ((hidden_dim, dim), (hidden_dim, dim), (dim, hidden_dim))
    parts = [weight(format, *shape, group, columns, seed * 3 + i) for i, shape in enumerate(shapes)]
    if columns:
        parts = [QuantTensor(p.format, p.shape, p.group, p.data, p.scales * 0.01, p.layout) for p in parts]
    return Expert(*parts)


def exact_moe(
    x: torch.Tensor, ids: torch.Tensor, gates: torch.Tensor, experts: list[Expert], activation: str
) -> torch.Tensor:
    """Gate, up and down by linear_in_float64, hidden values rounded to float32 between."""
    total = torch.zeros(x.shape, dtype=torch.float64)
    for n in range(len(x)):
        for a in range(ids.shape[1]):
            e = experts[int(ids[n, a])]
            gate, up = linear_in_float64(x[n : n + 1], e.gate), linear_in_float64(x[n : n + 1], e.up)
            act = (
                torch.nn.functional.gelu(gate, approximate="tanh")
                if activation == "gelu"
                else torch.nn.functional.silu(gate)
            )
            total[n] += float(gates[n, a]) * linear_in_float64((act * up).float(), e.down)[0]
    return total


# Hidden values are rounded to int8 after float32 sums: now and then one lands on the other side of a half.
MOE_AGAINST_FLOAT64 = 3e-3


@pytest.mark.parametrize(
    ("format", "group", "columns"),
    [("int8", 64, False), ("int4", 32, False), ("int3", 64, False), ("int8", 8192, True)],
)
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_moe(format: str, group: int, columns: bool, activation: str) -> None:
    dim, hidden_dim = 96, 200
    experts = [expert(format, dim, hidden_dim, group, columns, e) for e in range(4)]
    whole = [dict(enumerate(experts[:3]))]
    x = torch.randn(21, dim)
    ids = torch.stack([torch.randperm(3)[:2] for _ in range(21)])
    gates = torch.rand(21, 2)
    outputs: dict[bool, torch.Tensor] = {}
    for isa in ISAS:
        kernels.use_isa(isa)
        y = cpu.moe(x, ids, gates, whole, activation)
        assert torch.equal(y, outputs.setdefault(isa in FLOATS and format == "int8", y)), isa
        for waves in ([{2: experts[2]}, {0: experts[0], 1: experts[1]}], [{e: experts[e]} for e in (1, 0, 2)]):
            assert torch.equal(cpu.moe(x, ids, gates, waves, activation), y)
        for n in (1, 2, 9):
            chosen = [{e: experts[e] for e in ids[:n].unique().tolist()}]
            assert torch.equal(cpu.moe(x[:n], ids[:n], gates[:n], chosen, activation), y[:n])
    exact, twin = exact_moe(x, ids, gates, experts, activation), reference.moe(x, ids, gates, whole, activation)
    for y in outputs.values():
        assert relative_error(y, exact) < MOE_AGAINST_FLOAT64
        assert relative_error(y, twin) < INT8_ACTIVATIONS * 2  # two roundings
    dense = cpu.feed_forward(x, experts[0], activation)
    assert relative_error(dense, reference.feed_forward(x, experts[0], activation)) < INT8_ACTIVATIONS * 2


def test_moe_with_experts_of_different_layouts_and_formats() -> None:
    experts = [expert("int8", 64, 128, 64, True, 0), expert("int4", 64, 128, 32, False, 1)]
    x, ids, gates = torch.randn(3, 64), torch.tensor([[0, 1], [1, 0], [0, 1]]), torch.rand(3, 2)
    y = cpu.moe(x, ids, gates, [dict(enumerate(experts))], "gelu")
    assert relative_error(y, exact_moe(x, ids, gates, experts, "gelu")) < MOE_AGAINST_FLOAT64


def test_moe_with_plain_experts_sums_like_the_reference() -> None:
    experts = [Expert(torch.randn(50, 30), torch.randn(50, 30), torch.randn(30, 50)) for _ in range(3)]
    x, gates = torch.randn(7, 30), torch.rand(7, 2)
    ids = torch.stack([torch.randperm(3)[:2] for _ in range(7)])
    y = cpu.moe(x, ids, gates, [dict(enumerate(experts))], "silu")
    assert relative_error(y, reference.moe(x, ids, gates, [dict(enumerate(experts))], "silu")) < FLOAT_SUMS


def cache_of(k: torch.Tensor, v: torch.Tensor, dtype: torch.dtype) -> LayerCache:
    seen = torch.ones(k.shape[:2], dtype=torch.bool)
    if dtype != torch.int8:
        return LayerCache(k.to(dtype), v.to(dtype), seen)
    (k, k_scale), (v, v_scale) = reference.to_int8(k), reference.to_int8(v)
    return LayerCache(k, v, seen, k_scale, v_scale)


def copied(cache: LayerCache) -> LayerCache:
    return LayerCache(*(None if t is None else t.clone() for t in vars(cache).values()))


def equal_bits(a: LayerCache, b: LayerCache) -> bool:
    return all(x is y or torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def cached_case(
    lengths: list[int], cached: list[int], n_heads: int, n_kv: int, head_dim: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Batch, LayerCache]:
    """A batch of sequences of which `cached` tokens are already in a cache with shuffled blocks."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    contexts = [a + b for a, b in zip(lengths, cached, strict=True)]
    n_blocks = [-(-c // BLOCK_SIZE) for c in contexts]
    order = torch.randperm(sum(n_blocks) + 2).tolist()
    tables = [[order.pop() for _ in range(n)] for n in n_blocks]
    positions = torch.cat([torch.arange(c, c + n) for c, n in zip(cached, lengths, strict=True)])
    shape = (sum(n_blocks) + 2, BLOCK_SIZE, n_kv, head_dim)
    cache = cache_of(torch.randn(shape), torch.randn(shape), dtype)
    q, k, v = (torch.randn(starts[-1], heads, head_dim) for heads in (n_heads, n_kv, n_kv))
    return q, k, v, Batch(starts, positions, contexts, tables), cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(("softcap", "window"), [(None, None), (5.0, None), (None, 70), (30.0, 1100)])
@pytest.mark.parametrize(("n_heads", "n_kv", "head_dim"), [(6, 2, 16), (3, 1, 20), (6, 1, 144)])
def test_attention(
    dtype: torch.dtype, softcap: float | None, window: int | None, n_heads: int, n_kv: int, head_dim: int
) -> None:
    q, k, v, batch, cache = cached_case([1, 70, 3, 1], [0, 30, 2300, 1023], n_heads, n_kv, head_dim, dtype)
    twin = copied(cache)
    wanted = reference.attention(q, k, v, batch, twin, None, 0.3, softcap, window)
    outputs = []
    for isa in ISAS:
        kernels.use_isa(isa)
        outputs.append(cpu.attention(q, k, v, batch, cache, None, 0.3, softcap, window))
        assert equal_bits(cache, twin)
    assert all(torch.equal(y, outputs[0]) for y in outputs)
    assert relative_error(outputs[0], wanted) < 1e-5  # online softmax and another exp than torch's


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("window", [None, 100])
def test_attention_has_the_same_bits_in_one_chunk_or_many_and_alone_or_in_a_batch(
    window: int | None, dtype: torch.dtype
) -> None:
    q, k, v, batch, cache = cached_case([1200, 90], [0, 0], 4, 2, 16, dtype)
    whole = cpu.attention(q, k, v, batch, cache, None, 0.25, 30.0, window)
    nothing = torch.full(cache.k.shape, math.nan)
    empty = cache_of(nothing, nothing, dtype)
    pieces, at = [], 0
    for n in (1, 63, 200, 7, 900, 28, 1):
        part = slice(at, at + n)
        piece = Batch([0, n], batch.positions[part], [at + n], [batch.block_tables[0]])
        kernels.set_threads(1 + n % 3)
        pieces.append(cpu.attention(q[part], k[part], v[part], piece, empty, None, 0.25, 30.0, window))
        at += n
    assert torch.equal(torch.cat(pieces), whole[:1200])


@pytest.mark.parametrize("ops", [cpu, reference])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_keys_and_values_of_int8_stay_near_exact_ones(ops: ModuleType, softcap: float | None) -> None:
    q, k, v, batch, exact = cached_case([300, 1, 2], [0, 700, 65], 6, 2, 128, torch.float32)
    rounded = cache_of(exact.k, exact.v, torch.int8)
    how = (None, 128**-0.5, softcap, None)
    wanted = ops.attention(q, k, v, batch, exact, *how)
    assert 0 < relative_error(ops.attention(q, k, v, batch, rounded, *how), wanted) < INT8_KEYS_AND_VALUES


def test_rounding_to_int8_has_the_bits_of_its_twin() -> None:
    """Ties, zeros, numbers whose reciprocal overflows, and what is not finite."""
    x = torch.randn(3000, 2, 48)
    x[0, 0], x[1], x[2, 1, 3], x[3, 0, 5], x[4] = 0.0, 1e-36, math.inf, math.nan, -0.0
    x[5, 0] = torch.arange(48) * 2.5  # peak 117.5
    x[5, 1] = torch.arange(-24, 24) + 0.5
    x[5, 1, 0], x[6], x[7] = 127.0, x[6] * 1e38, x[7] * 1e-34
    peak = 1 + torch.rand(2991, 2, 1)
    x[9:] = (torch.arange(48) + 0.5) * peak / 127  # as good as ties: the last bit of 127 / peak decides
    x[9:, :, :1] = peak
    blocks = -(-len(x) // BLOCK_SIZE)
    cache = cache_of(torch.zeros(blocks, BLOCK_SIZE, 2, 48), torch.zeros(blocks, BLOCK_SIZE, 2, 48), torch.int8)
    starts = list(range(len(x) + 1))  # sequences of one token share the table, so that little is attended to
    tables = [[i // BLOCK_SIZE] for i in range(len(x))]
    batch = Batch(starts, torch.arange(len(x)) % BLOCK_SIZE, [i % BLOCK_SIZE + 1 for i in range(len(x))], tables)
    cpu.attention(torch.randn(len(x), 4, 48), x, -x, batch, cache, None, 0.1, None, None)
    for codes, scales, sign in ((cache.k, cache.k_scale, 1), (cache.v, cache.v_scale, -1)):
        wanted_codes, wanted_scales = reference.to_int8(sign * x)
        assert torch.equal(codes.flatten(0, 1)[: len(x)], wanted_codes)
        assert torch.equal(scales.flatten(0, 1)[: len(x)].nan_to_num(-1), wanted_scales.nan_to_num(-1))
    assert int(cache.k[0, :9].abs().max()) == 127 and int(cache.k_scale[0, :9].isnan().sum()) == 2
    exact = cache.k[0, [6, 7]].float() * cache.k_scale[0, [6, 7], :, None]
    assert bool(((exact - x[[6, 7]]).abs() <= 0.5001 * cache.k_scale[0, [6, 7], :, None]).all())


def test_attention_without_a_cache() -> None:
    batch = Batch.of_whole([5, 130, 1])
    q, k, v = torch.randn(136, 4, 24), torch.randn(136, 2, 24), torch.randn(136, 2, 24)
    y = cpu.attention(q, k, v, batch, None, None, 0.2, None, None)
    assert relative_error(y, reference.attention(q, k, v, batch, None, None, 0.2, None, None)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
@pytest.mark.parametrize("unseen", [[4], [0, 1, 2], [11, 13], list(range(14))])
def test_tokens_that_must_not_be_seen(unseen: list[int], dtype: torch.dtype) -> None:
    q, k, v, batch, cache = cached_case([9, 5], [0, 70], 4, 2, 16, dtype)
    seen = torch.ones(14, dtype=torch.bool)
    seen[unseen] = False
    y = cpu.attention(q, k, v, batch, cache, seen, 0.2, 30.0, None)
    expected = reference.attention(q, k, v, batch, cache, seen, 0.2, 30.0, None)
    means_something = torch.tensor([bool(seen[: n + 1].any()) for n in range(9)] + [True] * 5)  # it sees a key
    assert relative_error(y[means_something], expected[means_something]) < FLOAT_SUMS and bool(y.isfinite().all())


def test_norm_rotation_and_routing() -> None:
    x, w = torch.randn(9, 130), torch.randn(130)
    heads, positions = torch.randn(9, 3, 34), torch.randint(0, 5000, (9,))
    logits = torch.randn(9, 21)
    logits[0], logits[1, 5:] = 0.0, logits[1, 5]
    for isa in ISAS:
        kernels.use_isa(isa)
        assert relative_error(cpu.rms_norm(x, w, 1e-5), reference.rms_norm(x, w, 1e-5)) < FLOAT_SUMS
        assert (
            relative_error(cpu.rope(heads, positions, 1e4), reference.rope(heads, positions, 1e4))
            < FLOAT_SUMS
        )
        for renormalise in (False, True):
            ids, gates = cpu.route(logits, 4, renormalise)
            wanted_ids, wanted_gates = reference.route(logits, 4, renormalise)
            assert torch.equal(ids, wanted_ids) and relative_error(gates, wanted_gates) < FLOAT_SUMS


def test_gradients_go_through_the_reference() -> None:
    w = weight("int4", 20, 64, 32, False)
    x = torch.randn(3, 64, requires_grad=True)
    cpu.linear(x, w).sum().backward()
    assert torch.allclose(x.grad, w.dequantize().sum(0).expand(3, -1), atol=1e-5)


def test_bfloat16_activations_come_back_as_bfloat16() -> None:
    w = weight("int8", 20, 64, 64, False)
    x = torch.randn(3, 64).bfloat16()
    y = cpu.linear(x, w)
    assert y.dtype == torch.bfloat16 and torch.equal(y, cpu.linear(x.float(), w).bfloat16())


def test_groups_that_are_no_multiple_of_32_go_to_the_reference() -> None:
    w = weight("int8", 20, 86, 43, True)
    x = torch.randn(3, 86)
    assert torch.equal(cpu.linear(x, w), reference.linear(x, w))


GOLDENS = Path(__file__).parent / "golden"
GOLDEN = GOLDENS / "tiny-grok1"
LOGITS_ATOL = 2e-4  # golden/README: float32 against the release's numbers in float32


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("model", ["tiny-grok1", "tiny-grok1-12l", "tiny-grok1-tp8"])
def test_official_files_give_the_logits_and_greedy_tokens_of_the_release(model: str, isa: str) -> None:
    kernels.use_isa(isa)
    with np.load(GOLDENS / model / "golden.npz") as file:
        golden = {name: file[name] for name in file.files}
    lm = load(GOLDENS / model / "ckpt-0")
    prompts = [p for p in ("p1", "p7", "p33", "p5", "p20") if f"f32/{p}/logits" in golden]
    assert len(prompts) >= 2
    for prompt in prompts:
        ids, wanted = golden[f"f32/{prompt}/tokens"].tolist(), golden[f"f32/{prompt}/dec_tokens"].tolist()
        np.testing.assert_allclose(
            lm.logits(ids).numpy(), golden[f"f32/{prompt}/logits"], rtol=0, atol=LOGITS_ATOL
        )
        assert lm.generate(ids, temperature=0, max_tokens=len(wanted), ignore_eos=True).tokens == wanted


def golden_logits(ops: ModuleType, again: Callable[[Weight], Weight]) -> tuple[torch.Tensor, int]:
    """Logits of the golden prompt and its greedy continuation, and the prompt's length; weights go through `again`."""
    reader = open_checkpoint(GOLDEN / "ckpt-0")
    layers = []
    for layer in range(reader.config.n_layers):
        row = [reader.read_expert(layer, e) for e in range(reader.config.n_experts)]
        layers.append([Expert(again(e.gate), again(e.up), again(e.down)) for e in row])
    network = Transformer(reader.config, lambda name: again(reader.read(name)), ResidentExperts(layers), ops)
    with np.load(GOLDEN / "golden.npz") as golden:
        prompt, decoded = golden["f32/p33/tokens"], golden["f32/p33/dec_tokens"]
    tokens = torch.from_numpy(np.concatenate([prompt, decoded])).long()
    with torch.no_grad():
        return network(tokens, Batch.of_whole([len(tokens)])), len(prompt)


def test_greedy_tokens_of_the_golden_model() -> None:
    """As int8, from the checkpoint's own columns."""
    logits, n_prompt = golden_logits(cpu, lambda w: w)
    with np.load(GOLDEN / "golden.npz") as golden:
        wanted = golden["f32/p33/dec_tokens"]
    assert logits[n_prompt - 1 : -1].argmax(-1).tolist() == wanted.tolist()


def test_greedy_tokens_in_groups_of_64_are_those_of_the_reference() -> None:
    def again(w: Weight) -> Weight:
        return quantize(w.dequantize(), "int8", 64) if isinstance(w, QuantTensor) else w

    got, wanted = golden_logits(cpu, again)[0], golden_logits(reference, again)[0]
    assert torch.equal(got.argmax(-1), wanted.argmax(-1))


def raw(w: QuantTensor, **changes: object) -> object:
    arguments = {
        "format": 0,
        "n_out": w.shape[0],
        "n_in": w.shape[1],
        "group": w.group,
        "columns": False,
        "data": w.data,
        "scales": w.scales,
    }
    return kernels.Weight(**{**arguments, **changes})


W = quantize(torch.randn(20, 64), "int8", 64)


OF_INT8 = {
    "k_cache": torch.zeros(2, 64, 1, 16, dtype=torch.int8),
    "v_cache": torch.zeros(2, 64, 1, 16, dtype=torch.int8),
    "k_scale": torch.zeros(2, 64, 1),
    "v_scale": torch.zeros(2, 64, 1),
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("format", {"format": 4}),
        ("format", {"format": -1}),
        ("n_out", {"n_out": 0}),
        ("n_out", {"n_out": -16}),
        ("n_in", {"n_in": -1}),
        ("group", {"group": 0}),
        ("group", {"group": 48}),
        ("group", {"group": -64}),
        ("columns", {"columns": True, "format": 1}),
        ("data", {"n_out": 50}),
        ("data", {"n_in": 65}),
        ("data", {"data": W.data.to(torch.int32)}),
        ("data", {"data": W.data.transpose(1, 2)}),
        ("data", {"data": W.data[..., ::2]}),
        ("scales", {"scales": W.scales.double()}),
        ("scales", {"scales": W.scales[:1]}),
        ("scales", {"group": 32}),
        ("n_out", {"n_out": 2**62}),
        ("n_in", {"n_in": 2**62}),
    ],
)
def test_a_weight_that_does_not_fit_is_an_error_naming_the_argument(
    name: str, changes: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match=name):
        raw(W, **changes)


def test_calls_that_do_not_fit_are_errors_naming_the_argument() -> None:
    w = raw(W)
    x, out = torch.randn(2, 64), torch.empty(2, 20)
    for name, bad_x, bad_out in [
        ("x", torch.randn(2, 63), out),
        ("x", x.double(), out),
        ("x", torch.randn(64, 2).T, out),
        ("x", torch.randn(64), out),
        ("out", x, torch.empty(3, 20)),
        ("out", x, out.long()),
        ("out", x, torch.empty(2, 40)[:, ::2]),
    ]:
        with pytest.raises(ValueError, match=f"^{name} "):
            kernels.linear(w, bad_x, bad_out)
    for bad in (None, "x", 5, [1.0]):
        with pytest.raises(TypeError):
            kernels.linear(w, bad, out)
    readonly = np.zeros((2, 20), np.float32)
    readonly.flags.writeable = False
    with pytest.raises((TypeError, ValueError)):
        kernels.linear(w, x, readonly)


def test_expert_ids_that_do_not_exist_are_errors() -> None:
    e = expert("int8", 64, 64, 64, False, 0)
    x, gates, out = torch.randn(2, 64), torch.ones(2, 1), torch.empty(2, 64)
    known = cpu._expert(e)
    for ids in ([[0], [1]], [[-1], [0]], [[2], [0]], [[2**62], [0]]):
        with pytest.raises(ValueError, match="ids"):
            kernels.moe(x, torch.tensor(ids), gates, [known, None], True, out)
    with pytest.raises(ValueError, match="experts"):
        kernels.moe(
            torch.randn(2, 32), torch.zeros(2, 1, dtype=torch.int64), gates, [known], True, torch.empty(2, 32)
        )
    with pytest.raises(TypeError, match="experts"):
        kernels.moe(x, torch.zeros(2, 1, dtype=torch.int64), gates, ["expert"], True, out)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("block_tables", {"block_tables": [[5]]}),
        ("block_tables", {"block_tables": [[-1]]}),
        ("block_tables", {"block_tables": [[]]}),
        ("block_tables", {"block_tables": []}),
        ("starts", {"starts": [0, 3]}),
        ("starts", {"starts": []}),
        ("starts", {"starts": [0, 9, 2], "context_lens": [9, 9]}),
        ("context_lens", {"context_lens": [1, 1]}),
        ("context_lens", {"context_lens": [-1]}),
        ("positions", {"positions": torch.tensor([0, 64])}),
        ("positions", {"positions": torch.tensor([-1, 0])}),
        ("k_cache", {"k_cache": torch.zeros(2, 32, 1, 16)}),
        ("k_cache", {"k_cache": torch.zeros(2, 64, 1, 16).half()}),
        ("v_cache", {"v_cache": torch.zeros(1, 64, 1, 16)}),
        ("v_cache", {"v_cache": torch.zeros(2, 64, 1, 16).bfloat16()}),
        ("k_cache", {"k_cache": None}),
        ("k_scale", {**OF_INT8, "k_scale": None}),
        ("k_scale", {**OF_INT8, "k_scale": torch.zeros(2, 64, 2)}),
        ("v_scale", {**OF_INT8, "v_scale": torch.zeros(2, 64, 1).double()}),
        ("v_cache", {**OF_INT8, "v_cache": torch.zeros(2, 64, 1, 16)}),
        ("window", {"window": -1}),
        ("k", {"k": torch.zeros(2, 1, 8)}),
        (
            "q",
            {
                "q": torch.zeros(2, 3, 16),
                "k": torch.zeros(2, 2, 16),
                "v": torch.zeros(2, 2, 16),
                "out": torch.zeros(2, 48),
            },
        ),
        ("out", {"out": torch.zeros(2, 16)}),
    ],
)
def test_attention_that_does_not_fit_is_an_error_naming_the_argument(
    name: str, changes: dict[str, object]
) -> None:
    arguments = {
        "q": torch.zeros(2, 2, 16),
        "k": torch.zeros(2, 1, 16),
        "v": torch.zeros(2, 1, 16),
        "starts": [0, 2],
        "positions": torch.tensor([0, 1]),
        "context_lens": [2],
        "block_tables": [[1]],
        "k_cache": torch.zeros(2, 64, 1, 16),
        "v_cache": torch.zeros(2, 64, 1, 16),
        "k_scale": None,
        "v_scale": None,
        "scale": 1.0,
        "softcap": 0.0,
        "window": 0,
        "out": torch.zeros(2, 32),
    }
    kernels.attention(**arguments)
    kernels.attention(**{**arguments, **OF_INT8})
    with pytest.raises(ValueError, match=f"^{name} "):
        kernels.attention(**{**arguments, **changes})


def test_choices_that_do_not_exist_are_errors() -> None:
    with pytest.raises(ValueError, match="portable"):
        kernels.use_isa("mmx")
    for n in (0, -1, 1 << 20):
        with pytest.raises(ValueError, match="n_threads"):
            kernels.set_threads(n)
