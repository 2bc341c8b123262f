"""Quantised formats: pack and unpack are each other's reverse, scales are well chosen, layouts hold the same values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from libremoe.errors import LibremoeError
from libremoe.ops import reference
from libremoe.quant import FORMATS, QuantTensor, pack, quantize

ROUNDED_ONCE = 2**-7  # a bfloat16 scale is off by at most 2^-9 of itself, and codes are chosen after rounding it

# Relative root-mean-square error on normal weights at group 32, measured 2026-11-22 and rounded up: a format that
# loses more than this is broken.
GAUSSIAN_RMS = {"int8": 0.007, "int4": 0.09, "int3": 0.19, "int2": 0.37}

shapes = st.tuples(st.integers(1, 50), st.integers(1, 150))


def random_weight(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), shapes, st.sampled_from([32, 43, 64]), st.integers(0, 99))
def test_unpack_reverses_pack(format: str, shape: tuple[int, int], group: int, seed: int) -> None:
    fmt = FORMATS[format]
    codes = torch.randint(0, 1 << fmt.bits, shape, generator=torch.Generator().manual_seed(seed))
    whole = fmt.offset == int(fmt.offset)
    values = codes - int(fmt.offset) if whole else 2 * codes - int(2 * fmt.offset)
    scales = torch.rand(shape[0], -(-shape[1] // group)).bfloat16()
    packed = pack(format, values, scales, group)
    assert torch.equal(packed.codes(), values.to(torch.int16))
    assert torch.equal(packed.group_scales(), scales.float() * (1 if whole else 0.5))
    assert packed.data.nbytes == -(-shape[0] // 16) * -(-shape[1] // 64) * 128 * fmt.bits


@settings(max_examples=25, deadline=None)
@given(shapes, st.sampled_from(sorted(FORMATS)))
def test_rows_and_take_are_slices(shape: tuple[int, int], format: str) -> None:
    packed = quantize(random_weight(shape), format)
    dense = packed.dequantize()
    ids = torch.arange(shape[0]).flip(0)
    assert torch.equal(packed.take(ids), dense[ids])
    for start in range(0, shape[0], 16):
        assert torch.equal(packed.rows(start, shape[0]).dequantize(), dense[start:])


@settings(max_examples=25, deadline=None)
@given(shapes, st.integers(1, 4))
def test_official_columns_hold_the_same_values_as_tiles(shape: tuple[int, int], n_groups: int) -> None:
    n_out, group = shape
    n_in = group * n_groups
    generator = torch.Generator().manual_seed(3)
    data = torch.randint(-128, 128, (n_in, n_out), generator=generator, dtype=torch.int8)
    scales = torch.rand(n_groups, n_out, generator=generator).bfloat16()
    columns = QuantTensor("int8", (n_out, n_in), group, data, scales, "columns")
    # the official rule, spelled out: row r of the input axis uses scale row r // (in / G)
    want = data.float() * scales.float()[torch.arange(n_in) // group]
    assert torch.equal(columns.dequantize(), want.t())
    assert torch.equal(columns.to_tiles().dequantize(), want.t())
    assert columns.to_tiles().scales.dtype == torch.bfloat16


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_error_on_normal_weights(format: str) -> None:
    weight = random_weight((256, 512))
    error = (quantize(weight, format, 32).dequantize() - weight).square().mean().sqrt() / weight.square().mean().sqrt()
    assert error < GAUSSIAN_RMS[format]


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_no_simple_scale_does_better(format: str) -> None:
    """The search beats the scale that puts the largest magnitude of each group on the end of the range."""
    fmt, weight = FORMATS[format], random_weight((64, 256), 1)
    groups = weight.view(64, -1, 32)
    low, high = -fmt.offset, (1 << fmt.bits) - 1 - fmt.offset
    peak = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    scale = (peak / low).bfloat16().float()
    shift = fmt.offset - int(fmt.offset)
    plain = (((groups / scale + shift).round() - shift).clamp(low, high) * scale - groups).square().sum()
    found = (quantize(weight, format, 32).dequantize() - weight).square().sum()
    assert found <= plain * (1 + ROUNDED_ONCE)


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_zero_groups_and_wild_groups(format: str) -> None:
    weight = random_weight((16, 128))
    weight[3] = 0
    weight[4, :32] = 1e30
    weight[5, :32] = 1e-30
    dense = quantize(weight, format, 32).dequantize()
    assert torch.isfinite(dense).all()
    assert torch.equal(dense[3], torch.zeros(128))


def test_half_offset_formats_have_no_zero_but_zero_groups_stay_zero() -> None:
    assert FORMATS["int2"].offset == 1.5
    assert torch.equal(quantize(torch.zeros(2, 64), "int2").dequantize(), torch.zeros(2, 64))


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_reference_linear_multiplies_the_dequantised_weight(format: str) -> None:
    weight = quantize(random_weight((70, 96)), format)
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(reference.linear(x, weight), x @ weight.dequantize().t(), atol=1e-5, rtol=1e-5)


def test_a_group_that_a_format_lacks_is_refused() -> None:
    with pytest.raises(LibremoeError, match="int4 has groups of"):
        quantize(random_weight((16, 64)), "int4", 48)
    with pytest.raises(LibremoeError, match="no quantised format 'int5'"):
        quantize(random_weight((16, 64)), "int5")


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit int4"):
        pack("int4", torch.full((16, 64), 8), torch.ones(16, 2), 32)
    with pytest.raises(ValueError, match="needs data"):
        QuantTensor("int8", (16, 64), 64, torch.zeros(1, 1, 1023, dtype=torch.uint8), torch.ones(1, 1, 16))
