"""The planner's forecast against what a run does, in three configurations: all in memory, and with a half and a quarter
of the memory that the weights need.

    python bench/forecast.py MODEL [--tokens 48] [--prompt 64] [--rounds 3] [--shares 0.5,0.25] [--json]

The machine is measured first, as `libremoe plan` does it, and --before runs with prompts of their own are recorded, as
a person's earlier runs would be. Then each round is a `libremoe run --stats` with a prompt and a seed that no other run
has, and its forecast knows of it only lengths and slots. The goal is a ratio (actual / forecast) between 0.8 and 1.2.
The last columns: the share of experts found in memory, forecast and seen, and the disk's rate, forecast and seen.
Run it when nothing else does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from libremoe import plan
from libremoe.language_model import RunStats
from libremoe.machine import FORMATS, Machine, from_file, installed_bytes, measure, to_toml
from libremoe.memory import available_bytes
from libremoe.streaming import StreamStats


def run(path: Path, number: int, memory: int | None, args: argparse.Namespace, home: Path) -> dict:
    """One run of the command, with a prompt and a seed of its own number. Raises SystemExit with what it said when it
    fails."""
    draw = random.Random(number)
    prompt = [draw.randrange(3, args.vocab_size) for _ in range(args.prompt)]
    command = [sys.executable, "-m", "libremoe.cli", "run", str(path), "--ids", ",".join(map(str, prompt)),
               "--temperature", str(args.temperature), "--seed", str(number), "--max-tokens", str(args.tokens),
               "--json", "--stats"]
    command += ["--memory", str(memory)] if memory else []
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "XDG_CACHE_HOME": str(home)})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def seen(result: dict) -> RunStats:
    fields = result["stats"]
    known = {name: fields[name] for name in ("prompt_tokens", "tokens", "first_token_s", "seconds")}
    experts = fields.get("experts")
    slots = {name: experts[name] for name in vars(StreamStats()) if name in experts} if experts else None
    return RunStats(**known, experts=StreamStats(**slots) if slots else None)


def compare(path: Path, memory: int | None, machine: Machine, numbers: range, args: argparse.Namespace,
            home: Path) -> dict:
    """Medians over rounds of one configuration."""
    results = [run(path, number, memory, args, home) for number in numbers]
    runs, made = [seen(result) for result in results], [result["forecast"] for result in results]

    def middle(values: list[float]) -> float:
        return statistics.median(values)

    pairs = list(zip(runs, made, strict=True))
    experts = [r.experts for r in runs if r.experts is not None]
    return {
        "memory": memory, "slots": made[0]["slots"], "experts": made[0]["n_experts"],
        "forecast": middle([one["tokens_per_s"] for one in made]), "actual": middle([r.tokens_per_s for r in runs]),
        "ratio": middle([r.tokens_per_s / one["tokens_per_s"] for r, one in pairs]),
        "ratios": [r.tokens_per_s / one["tokens_per_s"] for r, one in pairs],
        "first_forecast_s": middle([one["first_token_s"] for one in made]),
        "first_actual_s": middle([r.first_token_s for r in runs]),
        "first_ratio": middle([r.first_token_s / one["first_token_s"] for r, one in pairs]),
        "hit_rate_forecast": middle([one["hit_rate"] for one in made]),
        "reads_forecast": middle([1 - one["hit_rate"] for one in made]) * args.per_step,
        "reads": middle([_reads(e, args) for e in experts]) if experts else 0.0,
        "disk": machine.disk, "read_gb_per_s": middle([e.gb_per_s for e in experts]) if experts else 0.0,
        "terms": {term["name"]: term["seconds"] for term in made[0]["terms"]},
    }


def _reads(experts: StreamStats, args: argparse.Namespace) -> float:
    """Experts read a decoding step, wrong guesses included, if the prompt read each that it touched once."""
    n_steps = args.tokens - 1
    of_prompt = experts.hits + experts.misses - n_steps * args.per_step
    return (experts.bytes_read / experts.slot_bytes - of_prompt) / n_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=int, default=3, help="runs that are recorded first")
    parser.add_argument("--shares", default="0.5,0.25", help="of the weights' size, as --memory")
    parser.add_argument("--memory", default="", help="bytes, comma-separated, instead of --shares")
    parser.add_argument("--machine", type=Path, help="as measured before, instead of now")
    parser.add_argument("--resident", action=argparse.BooleanOptionalAction, default=True, help="with all in memory")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    _, config, entry_of, reader = plan.find_model(args.path)
    stored, sizes = next(iter(plan.offered_sizes(config, entry_of, reader).items()))
    args.vocab_size = config.vocab_size
    args.per_step = config.n_layers * max(config.n_experts_per_tok, 1)
    budgets = [int(float(text)) for text in args.memory.split(",") if text]
    budgets = budgets or [int(float(share) * sizes.weights) for share in args.shares.split(",") if share]
    fits = sizes.weights * 1.1 < available_bytes() or not budgets
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        saved = home / "libremoe" / "machine.toml"
        saved.parent.mkdir()
        if args.machine:
            saved.write_text(args.machine.read_text())
        else:
            needed = {sizes.format, *sizes.touched}
            machine = measure(plan.pieces_of(reader), tuple(name for name in FORMATS if name in needed),
                              lambda what: print(f"measuring {what} ...", file=sys.stderr, flush=True))
            saved.write_text(to_toml(machine, installed_bytes()))
        machine = from_file(saved)
        for number in range(args.before):
            print(f"recording run {number + 1} of {args.before} ...", file=sys.stderr, flush=True)
            run(args.path, 1000 + number, None if fits else budgets[0], args, home)
        rows = []
        for i, memory in enumerate((*([None] if args.resident else []), *budgets)):
            print(f"running with {shown(memory)} ...", file=sys.stderr, flush=True)
            rows.append(compare(args.path, memory, machine, range(i * args.rounds, (i + 1) * args.rounds), args, home))
    if args.json:
        print(json.dumps({"format": stored, "disk": machine.disk, "read": machine.read, "rows": rows}))
        return
    print(f"{args.path.name}, {stored}; read {machine.read / 1e9:.1f} GB/s, disk {machine.disk / 1e9:.2f} GB/s")
    print("    memory     slots  forecast    actual  ratio   first token: forecast, actual, ratio   goal    "
          "experts read a token: forecast, run   disk GB/s: forecast, run")
    for row in rows:
        print(f"{shown(row['memory']):>10s} {row['slots']:4d}/{row['experts']:4d} {row['forecast']:9.2f} "
              f"{row['actual']:9.2f} {row['ratio']:6.2f} {row['first_forecast_s']:18.2f} "
              f"{row['first_actual_s']:8.2f} s {row['first_ratio']:6.2f}   "
              f"{'met' if 0.8 <= row['ratio'] <= 1.2 else 'missed':6s} {row['reads_forecast']:16.2f} "
              f"{row['reads']:12.2f} {row['disk'] / 1e9:21.2f} {row['read_gb_per_s']:6.2f}")


def shown(memory: int | None) -> str:
    return "all" if memory is None else f"{memory / 1e9:.2f} GB"


if __name__ == "__main__":
    main()
