"""Experts from the disk: against the disk's own rate, and beside llama.cpp with the same memory (as root, for the cap).

    libremoe make-tiny big-int4 --dims grok-1 --layers 2 --format int4
    python bench/make_gguf.py big-int4 big-q4_0.gguf --type q4_0
    python bench/stream.py decode big-int4 --memory 4G --llama-python PYTHON --gguf big-q4_0.gguf
    python bench/stream.py prefill big-int4 --memory 4G --tokens 512

Each round is a process of its own in a memory control group, with the disk measured before and after (bench/disk.py).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from disk import disk_rate, drop_pages, weight_files
from memory_cap import run_capped
from side_by_side import HERE, median, report

from libremoe.language_model import LanguageModel
from libremoe.memory import available_bytes, parse_bytes
from libremoe.sampling import SamplingParams
from libremoe.streaming import StreamStats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("decode", "prefill", "side"))
    parser.add_argument("path", help="libremoe's own folder, or the official checkpoint")
    parser.add_argument("--memory", default="4G", help="the budget, and the cap of the control group")
    parser.add_argument("--tokens", type=int, help="to generate (default 16), or of the prompt (default 512)")
    parser.add_argument("--context", type=int, default=16, help="decode: tokens of the prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement of the disk")
    parser.add_argument("--gguf", action="append", default=[], help="the same weights for llama.cpp; repeatable")
    parser.add_argument("--llama-python", help="an interpreter that has llama-cpp-python")
    parser.add_argument("--prefill", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--resident", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = {"decode": decode, "prefill": prefill, "side": side}[args.work](args)
    if args.json or args.work == "side":
        print(json.dumps(found))


def decode(args: argparse.Namespace) -> dict:
    tokens, limit = args.tokens or 16, parse_bytes(args.memory)
    flags = ["--work", "decode", "--tokens", str(tokens), "--context", str(args.context)]
    commands = {"libremoe": side_command(args, "--tokens", str(tokens))}
    for gguf in args.gguf:  # repacking would copy the weights into memory that is not there
        commands[f"llama.cpp {Path(gguf).name}, mapped"] = [
            args.llama_python, str(HERE / "llama_side.py"), gguf, *flags, "--repack", "0"]
    results: dict[str, list[dict]] = {label: [] for label in commands}
    rates = []
    for n in range(args.rounds):
        for label, command in commands.items():
            print(f"round {n + 1}/{args.rounds}: {label} ...", file=sys.stderr, flush=True)
            drop_pages([*weight_files(args.path), *map(Path, args.gguf)])
            before = disk_rate(args.path, args.seconds)
            result = run_capped(command, limit)
            rates.append((before + disk_rate(args.path, args.seconds)) / 2)
            # Of all steps: one that reads takes many times one that does not, and a median would be either.
            results[label].append({**result, "disk_gb_per_s": rates[-1], "tokens_per_s": result["mean_tokens_per_s"]})
    rows = report(f"decode with {args.memory}, {tokens} tokens, cold", results)
    ours = results["libremoe"]
    rows["reading"] = share_of_disk(ours)
    rows["budget"] = budget_kept(ours, limit)
    return {"rows": rows, "results": results}


def prefill(args: argparse.Namespace) -> dict:
    tokens, limit = args.tokens or 512, parse_bytes(args.memory)
    compute_s = resident_seconds(args, tokens)
    ours = []
    for n in range(args.rounds):
        print(f"round {n + 1}/{args.rounds} ...", file=sys.stderr, flush=True)
        drop_pages(weight_files(args.path))
        before = disk_rate(args.path, args.seconds)
        result = run_capped(side_command(args, "--tokens", str(tokens), "--prefill"), limit)
        result["disk_gb_per_s"] = (before + disk_rate(args.path, args.seconds)) / 2
        ours.append(result)
        for_bytes = result["bytes_read"] / 1e9 / result["disk_gb_per_s"]
        for_compute = compute_s or result["seconds"] - result["stall_s"]
        bound = max(for_bytes, for_compute)
        result |= {"bytes_s": for_bytes, "compute_s": for_compute, "over_bound": result["seconds"] / bound}
        print(f"prompt of {tokens} tokens in {result['seconds']:.2f} s; {result['bytes_read'] / 1e9:.2f} GB take "
              f"{for_bytes:.2f} s, computing {for_compute:.2f} s{'' if compute_s else ' (without the waiting)'}: "
              f"{100 * (result['over_bound'] - 1):+.0f} % over the larger; each of {result['n_experts']} experts read "
              f"{result['bytes_read'] / (result['n_experts'] * result['expert_bytes']):.2f} times")
    rows = {"over_bound": statistics.median(r["over_bound"] for r in ours), "reading": share_of_disk(ours),
            "budget": budget_kept(ours, limit)}
    return {"rows": rows, "results": ours}


def resident_seconds(args: argparse.Namespace, tokens: int) -> float | None:
    """The same prompt with everything in memory; None where it does not fit, with a word about it."""
    size = sum(file.stat().st_size for file in weight_files(args.path))
    if size * 1.3 > available_bytes():
        print("the model does not fit: computing is what was not waiting", file=sys.stderr)
        return None
    command = side_command(args, "--tokens", str(tokens), "--prefill", "--resident")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def share_of_disk(ours: list[dict]) -> dict:
    shares = [r["gb_per_s"] / r["disk_gb_per_s"] for r in ours]
    rate, each = median(ours, "gb_per_s"), ", ".join(f"{100 * share:.0f}" for share in shares)
    print(f"ours read {median(ours, 'bytes_read') / 1e9:.2f} GB at {rate:.2f} GB/s while reading, "
          f"{100 * statistics.median(shares):.0f} % ({each}) of the {median(ours, 'disk_gb_per_s'):.2f} GB/s measured "
          f"before and after; {100 * median(ours, 'hit_rate'):.0f} % hits, {median(ours, 'stall_s'):.2f} s waited")
    return {"gb_per_s": rate, "share": statistics.median(shares), "shares": shares}


def budget_kept(ours: list[dict], limit: int) -> dict:
    peak = max(r["watched"]["peak"] or 0 for r in ours)
    cache = max(r["watched"]["page_cache"] for r in ours)
    hits = max(r["watched"]["cap_hit"] for r in ours)
    kept = peak <= limit and not hits  # what hits the cap would have grown beyond it
    print(f"memory from outside: at most {peak / 1e9:.3f} of {limit / 1e9:.3f} GB, page cache {cache / 1e9:.3f} GB; "
          f"the cap was hit {hits} times: {'kept' if kept else 'NOT KEPT'}")
    return {"peak": peak, "page_cache": cache, "cap_hit": hits, "kept": kept}


def side_command(args: argparse.Namespace, *more: str) -> list[str]:
    return [sys.executable, str(Path(__file__)), "side", args.path, "--memory", args.memory,
            "--context", str(args.context), *more]


class Dictated:
    """A constraint that allows one token at a time: the very tokens that the rival is given."""

    def __init__(self, tokens: list[int], vocab_size: int):
        self.tokens, self.vocab_size = list(tokens), vocab_size

    def mask(self) -> torch.Tensor:
        allowed = torch.zeros(self.vocab_size, dtype=torch.bool)
        allowed[self.tokens[0]] = True
        return allowed

    def accept(self, token: int) -> None:
        self.tokens.pop(0)


def side(args: argparse.Namespace) -> dict:
    """One process: random ids through the engine, the same that the rival gets (llama_side.py): a prompt, then one
    token a step, dictated, since what each side would draw differs and so would the experts that it needs."""
    from libremoe.language_model import load

    n_tokens = args.tokens + (1 if args.prefill else args.context + 1)
    lm = load(args.path, **({} if args.resident else {"memory": args.memory, "tokens": n_tokens}))
    if lm.streamed is None and not args.resident:
        raise SystemExit(f"{args.path} fits into {args.memory}: nothing is streamed")
    rng, vocab_size = random.Random(0), lm.config.vocab_size
    ids = [rng.randrange(3, vocab_size) for _ in range(args.tokens if args.prefill else args.context)]
    said = [rng.randrange(3, vocab_size) for _ in range(1 if args.prefill else args.tokens + 1)]
    if len(ids) + len(said) > lm.engine.max_tokens:  # the engine and its cache are made now, not in what is timed
        raise SystemExit(f"{args.memory} have room for {lm.engine.max_tokens} tokens, {len(ids) + len(said)} are asked "
                         "for")
    if args.resident:  # once before, or the weights' first touch would count as computing
        times_of(lm, [rng.randrange(3, vocab_size) for _ in ids], said[:1])
    began = time.perf_counter()
    times, before = times_of(lm, ids, said)
    each = sorted(b - a for a, b in zip(times, times[1:], strict=False)) or [times[0] - began]
    found = {"seconds": times[-1] - (began if args.prefill else times[0]), "tokens_per_s": 1 / each[len(each) // 2]}
    if not args.prefill:
        found["mean_tokens_per_s"] = (len(times) - 1) / found["seconds"]
    if lm.streamed is None or before is None:
        return found
    # What the prompt did is not decoding.
    stats = lm.streamed.stats() if args.prefill else lm.streamed.stats().minus(before)
    n_experts = lm.config.n_layers * max(lm.config.n_experts, 1)  # a prompt of hundreds of tokens touches all of them
    return {**found, **vars(stats), "hit_rate": stats.hit_rate, "gb_per_s": stats.gb_per_s, "n_experts": n_experts,
            "expert_bytes": stats.slot_bytes}


def times_of(lm: LanguageModel, ids: list[int], said: list[int]) -> tuple[list[float], StreamStats | None]:
    """When each token came, and the counters when the first one did."""
    params = SamplingParams(temperature=0, max_tokens=len(said), ignore_eos=True)
    lm.engine.add(ids, params, constraint=Dictated(said, lm.config.vocab_size))
    times: list[float] = []
    before = None
    while len(times) < len(said):
        times += [time.perf_counter() for output in lm.engine.step() if output.token is not None]
        if times and before is None and lm.streamed is not None:
            before = lm.streamed.stats()
    return times, before


if __name__ == "__main__":
    main()
