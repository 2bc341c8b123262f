"""Where a training step's time goes on this device: tokens a second of a recipe, and the operations that take longest.

    python bench/train.py RECIPE --data SHARDS [--steps 20] [--device cuda]
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import torch

from libremoe.train.loop import Run, peak_flops, step_flops
from libremoe.train.recipe import dense, find_recipe, read_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, help="rows a step, all at once")
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--top", type=int, default=0, help="show so many operations")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    recipe = read_recipe(find_recipe(args.recipe))
    if args.rows:
        sizes = dataclasses.replace(recipe.train, rows=args.rows, micro_rows=args.rows)
        recipe = dataclasses.replace(recipe, train=sizes)
    recipe = dense(recipe) if args.dense else recipe
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(recipe, args.data, Path(folder) / "run", args.device)
        for _ in range(3):
            loss = run.step()
        m = recipe.model
        print(f"{args.recipe}: {m.n_params() / 1e6:.1f} M parameters, {m.n_active_params() / 1e6:.1f} M active; "
              f"{time.perf_counter() - began:.1f} s to the end of the third step, loss {loss:.3f}", flush=True)
        seconds = [_timed(run) for _ in range(args.steps)]
        mean, tokens = sum(seconds) / len(seconds), recipe.train.rows * recipe.train.context
        peak = peak_flops(args.device, run.dtype)
        print(f"{tokens / mean:,.0f} tokens/s, {1e3 * mean:.1f} ms a step (least {1e3 * min(seconds):.1f}), "
              f"{step_flops(recipe) / mean / 1e12:.1f} of {peak / 1e12:.1f} Tflop/s", flush=True)
        if args.top:
            _profile(run, args.top)


def _timed(run: Run) -> float:
    began = time.perf_counter()
    run.step()  # ends with the loss on this side
    return time.perf_counter() - began


def _profile(run: Run, top: int) -> None:
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.device(run.device).type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        run.step()
    rows = sorted(found.key_averages(), key=lambda r: -(r.self_device_time_total if cuda else r.self_cpu_time_total))
    total = sum(r.self_device_time_total if cuda else r.self_cpu_time_total for r in rows)
    print(f"{total / 1e3:.1f} ms in operations")
    for row in rows[:top]:
        spent = row.self_device_time_total if cuda else row.self_cpu_time_total
        print(f"{spent / 1e3:8.2f} ms {100 * spent / total:5.1f} % {row.count:5d}  {row.key[:90]}")


if __name__ == "__main__":
    main()
