"""Each kernel against this machine's own limits: GB/s of weights or keys against a four-stream read, TOPS against the
int8 multiply instruction with its operands in registers.

Run: python bench/kernels.py [--json] [--quick] [--isa NAME] [--only linear|moe|attention]

Both limits are measured in the same run, before and after, since a shared machine changes from minute to minute; the
share is against the better of the two. Weights are random codes: only their bytes matter here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from libremoe import _kernels
from libremoe.batch import BLOCK_SIZE, Batch, LayerCache
from libremoe.experts import Expert
from libremoe.ops import cpu, reference
from libremoe.quant import FORMATS, QuantTensor

DIM, HIDDEN_DIM, VOCAB = 6144, 32_768, 131_072  # Grok-1
N_HEADS, N_KV_HEADS, HEAD_DIM = 48, 8, 128


@dataclass
class Row:
    name: str
    milliseconds: float
    gb_per_s: float  # of weights, or of keys and values
    tops: float  # two operations a multiply-add
    share: float  # of the limit that binds: the larger of the two shares


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def random_weight(format: str, n_out: int, n_in: int, group: int, columns: bool = False) -> QuantTensor:
    fmt = FORMATS[format]
    if columns:
        data = torch.randint(-128, 128, (n_in, n_out), dtype=torch.int8)
        return QuantTensor(
            format, (n_out, n_in), group, data, torch.rand(-(-n_in // group), n_out), "columns"
        )
    data = torch.randint(0, 256, (-(-n_out // 16), -(-n_in // 64), fmt.tile_bytes), dtype=torch.uint8)
    scales = torch.rand(data.shape[0], -(-n_in // group), 16).bfloat16()
    return QuantTensor(format, (n_out, n_in), group, data, scales)


def read_limit(buffer: torch.Tensor) -> float:
    """GB/s."""
    return max(_kernels.measure_read(buffer) for _ in range(3)) / 1e9


def multiply_limit() -> float:
    """TOPS."""
    return max(_kernels.measure_peak(2_000_000) for _ in range(3)) / 1e12


WEIGHTS = [
    ("int8", 64, False),
    ("int8", 6144, True),
    ("int4", 32, False),
    ("int4", 64, False),
    ("int3", 32, False),
    ("int2", 32, False),
]


def linear_rows(tokens: list[int], repeats: int) -> list[tuple[str, float, float, float]]:
    """(name, seconds, bytes, operations) of x @ W.T at the size of an expert's gate."""
    rows = []
    for format, group, columns in WEIGHTS:
        weight = random_weight(format, HIDDEN_DIM, DIM, group, columns)
        for n in tokens:
            x = torch.randn(n, DIM)
            seconds = median_seconds(
                lambda x=x, weight=weight: cpu.linear(x, weight), repeats if n <= 8 else 1
            )
            name = f"linear {format} {'columns' if columns else f'group {group}'}, {n} tokens"
            rows.append((name, seconds, weight.nbytes, 2 * n * DIM * HIDDEN_DIM))
    return rows


def moe_rows(tokens: list[int], repeats: int) -> list[tuple[str, float, float, float]]:
    rows = []
    for format, group in (("int8", 64), ("int4", 64)):
        experts = [
            Expert(
                *(
                    random_weight(format, *shape, group)
                    for shape in ((HIDDEN_DIM, DIM), (HIDDEN_DIM, DIM), (DIM, HIDDEN_DIM))
                )
            )
            for _ in range(2)
        ]
        for n in tokens:
            x, gates = torch.randn(n, DIM), torch.rand(n, 2)
            ids = torch.tensor([[0, 1]]).repeat(n, 1)
            seconds = median_seconds(
                lambda x=x, i=ids, g=gates, e=experts: cpu.moe(x, i, g, [dict(enumerate(e))], "gelu"), repeats
            )
            rows.append(
                (
                    f"moe {format} group {group}, 2 experts, {n} tokens",
                    seconds,
                    sum(e.nbytes for e in experts),
                    2 * 2 * 3 * n * DIM * HIDDEN_DIM,
                )
            )
    return rows


def attention_rows(contexts: list[int], repeats: int) -> list[tuple[str, float, float, float]]:
    rows = []
    for context in contexts:
        blocks = context // BLOCK_SIZE
        shape = (blocks, BLOCK_SIZE, N_KV_HEADS, HEAD_DIM)
        exact, seen = torch.randn(shape), torch.ones(blocks, BLOCK_SIZE, dtype=torch.bool)
        codes, scales = reference.to_int8(exact)
        caches = {
            "f32": LayerCache(exact, exact.clone(), seen),
            "bf16": LayerCache(exact.bfloat16(), exact.bfloat16(), seen),
            "int8": LayerCache(codes, codes.clone(), seen, scales, scales.clone()),
        }
        for (kind, cache), n in itertools.product(caches.items(), (1, 64)):
            q = torch.randn(n, N_HEADS, HEAD_DIM)
            kv = torch.randn(n, N_KV_HEADS, HEAD_DIM)
            batch = Batch([0, n], torch.arange(context - n, context), [context], [list(range(blocks))])
            seconds = median_seconds(
                lambda q=q, kv=kv, batch=batch, cache=cache: cpu.attention(
                    q, kv, kv, batch, cache, None, 0.088, 30.0, None
                ),
                repeats,
            )
            rows.append(
                (
                    f"attention {kind}, {n} tokens at {context} of context",
                    seconds,
                    sum(t.nbytes for t in (cache.k, cache.v, cache.k_scale, cache.v_scale) if t is not None),
                    4 * n * N_HEADS * HEAD_DIM * context,
                )
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="fewer formats, tokens and repeats")
    parser.add_argument("--isa", default="", help=f"one of {', '.join(_kernels.available_isas())}")
    parser.add_argument("--only", default="", help="linear, moe or attention")
    args = parser.parse_args()
    _kernels.use_isa(args.isa)
    repeats = 3 if args.quick else 7
    buffer = torch.zeros(1 << 28 if args.quick else 1 << 30, dtype=torch.uint8).fill_(1)
    limits = [(read_limit(buffer), multiply_limit())]
    measured = []
    if args.only in ("", "linear"):
        measured += linear_rows([1, 4, 8, 64] if args.quick else [1, 2, 4, 8, 64, 512], repeats)
    if args.only in ("", "moe"):
        measured += moe_rows([1, 64] if args.quick else [1, 8, 64, 512], repeats)
    if args.only in ("", "attention"):
        measured += attention_rows([2048] if args.quick else [2048, 8192], repeats)
    limits.append((read_limit(buffer), multiply_limit()))
    read, multiply = (max(limit[i] for limit in limits) for i in (0, 1))
    rows = []
    for name, seconds, n_bytes, n_ops in measured:
        gb_per_s, tops = n_bytes / seconds / 1e9, n_ops / seconds / 1e12
        rows.append(Row(name, seconds * 1e3, gb_per_s, tops, max(gb_per_s / read, tops / multiply)))
    if args.json:
        machine = {
            "isa": _kernels.isa(),
            "threads": _kernels.threads(),
            "read_gb_per_s": read,
            "int8_tops": multiply,
        }
        print(json.dumps({**machine, "rows": [asdict(row) for row in rows]}))
        return
    print(
        f"{_kernels.isa()}, {_kernels.threads()} threads; read {read:.1f} GB/s "
        f"({', '.join(f'{limit[0]:.1f}' for limit in limits)}), int8 {multiply:.3f} TOPS"
    )
    for row in rows:
        numbers = f"{row.milliseconds:9.2f} ms  {row.gb_per_s:6.1f} GB/s  {row.tops:6.3f} TOPS  {row.share:5.0%}"
        print(f"{row.name:52s} {numbers}")


if __name__ == "__main__":
    main()
