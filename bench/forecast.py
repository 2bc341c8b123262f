"""The planner's forecast against what a run does, in three configurations: all in memory, and with a half and a quarter
of the memory that the weights need.

    python bench/forecast.py MODEL [--tokens 48] [--prompt 64] [--rounds 3] [--shares 0.5,0.25] [--json]

The machine is measured first, as `libremoe plan` does it; then each run is a process of its own. Run it when nothing
else does. The goal is a ratio (actual / forecast) between 0.8 and 1.2. The forecast takes every expert for equally
likely; the last columns say what the run hit, and the ratio had the forecast known it, which parts what routing does
from all else.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

from libremoe import plan
from libremoe.forecast import Sizes
from libremoe.language_model import RunStats
from libremoe.machine import FORMATS, Machine, measure
from libremoe.streaming import StreamStats


def run(path: Path, prompt: list[int], n_tokens: int, memory: int | None) -> RunStats:
    """One run of the command. Raises SystemExit with what it said when it fails."""
    command = [sys.executable, "-m", "libremoe.cli", "run", str(path), "--ids", ",".join(map(str, prompt)),
               "--temperature", "0.7", "--seed", "1", "--max-tokens", str(n_tokens), "--json"]
    command += ["--memory", str(memory)] if memory else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    fields = json.loads(done.stdout.splitlines()[-1])["stats"]
    experts = fields.get("experts")
    known = {name: fields[name] for name in ("prompt_tokens", "tokens", "first_token_s", "seconds")}
    slots = {name: experts[name] for name in vars(StreamStats()) if name in experts} if experts else None
    return RunStats(**known, experts=StreamStats(**slots) if slots else None)


def compare(path: Path, sizes: Sizes, machine: Machine, memory: int | None, args: argparse.Namespace) -> dict:
    """Medians over rounds of one configuration."""
    draw = random.Random(0)
    prompt = [draw.randrange(3, sizes.config.vocab_size) for _ in range(args.prompt)]
    runs = [run(path, prompt, args.tokens, memory) for _ in range(args.rounds)]
    one, seen = plan.of_run(sizes, machine, runs[0]), runs[0].experts
    kept = (seen.hits - seen.foreseen) / (seen.hits + seen.misses) if seen else 1.0  # found without being read for it
    informed = plan.of_run(sizes, machine, runs[0], kept)
    actual = statistics.median(r.tokens_per_s for r in runs)
    first = statistics.median(r.first_token_s for r in runs)
    return {"memory": memory, "slots": one.slots, "experts": one.n_experts, "forecast": one.tokens_per_s,
            "actual": actual, "ratio": actual / one.tokens_per_s, "hits_known_ratio": actual / informed.tokens_per_s,
            "first_forecast_s": one.first_token_s,
            "first_actual_s": first, "first_ratio": first / one.first_token_s, "hit_rate_forecast": one.hit_rate,
            "hit_rate": kept, "read_gb_per_s": seen.gb_per_s if seen else 0.0,
            "terms": {term.name: term.seconds for term in one.terms}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shares", default="0.5,0.25", help="of the weights' size, as --memory")
    parser.add_argument("--memory", default="", help="bytes, comma-separated, instead of --shares")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    _, config, entry_of, reader = plan.find_model(args.path)
    stored, sizes = next(iter(plan.offered_sizes(config, entry_of, reader).items()))
    needed = {sizes.format, *sizes.touched}
    machine = measure(plan.files_of(reader), tuple(name for name in FORMATS if name in needed),
                      lambda what: print(f"measuring {what} ...", file=sys.stderr, flush=True))
    budgets = [int(float(text)) for text in args.memory.split(",") if text]
    budgets = budgets or [int(float(share) * sizes.weights) for share in args.shares.split(",") if share]
    rows = []
    for memory in (None, *budgets):
        print(f"running with {shown(memory)} ...", file=sys.stderr, flush=True)
        rows.append(compare(args.path, sizes, machine, memory, args))
    if args.json:
        print(json.dumps({"format": stored, "disk": machine.disk, "read": machine.read, "rows": rows}))
        return
    print(f"{args.path.name}, {stored}; read {machine.read / 1e9:.1f} GB/s, disk {machine.disk / 1e9:.2f} GB/s")
    print("    memory     slots  forecast    actual  ratio   first token: forecast, actual, ratio   goal    "
          "hits: forecast, run; ratio")
    for row in rows:
        print(f"{shown(row['memory']):>10s} {row['slots']:4d}/{row['experts']:4d} {row['forecast']:9.2f} "
              f"{row['actual']:9.2f} {row['ratio']:6.2f} {row['first_forecast_s']:18.2f} "
              f"{row['first_actual_s']:8.2f} s {row['first_ratio']:6.2f}   "
              f"{'met' if 0.8 <= row['ratio'] <= 1.2 else 'missed':6s} {row['hit_rate_forecast']:6.0%} "
              f"{row['hit_rate']:6.0%} {row['hits_known_ratio']:6.2f}")


def shown(memory: int | None) -> str:
    return "all" if memory is None else f"{memory / 1e9:.2f} GB"


if __name__ == "__main__":
    main()
