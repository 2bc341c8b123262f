"""Run several programs in turn, A B C A B C ..., and print medians and ratios: on a shared machine only ratios hold.

Each program is a process of its own that prints one JSON object with "tokens_per_s" as its last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def arguments(doc: str | None, tokens: int) -> argparse.ArgumentParser:
    """The flags that decode.py and prefill.py share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="libremoe's own folder")
    parser.add_argument("--gguf", action="append", default=[], help="the same weights for llama.cpp; repeatable")
    parser.add_argument("--llama-python", help="an interpreter that has llama-cpp-python")
    parser.add_argument("--repack", action="append", type=int, choices=(0, 1), help="llama.cpp settings; default both")
    parser.add_argument("--tokens", type=int, default=tokens)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    return parser


def sides(args: argparse.Namespace, *flags: object) -> dict[str, list[str]]:
    """label -> command: libremoe first, then llama.cpp on each file with each setting."""
    words = [str(flag) for flag in flags]
    found = {f"libremoe {Path(args.path).name}": [sys.executable, str(HERE / "libremoe_side.py"), args.path, *words]}
    for gguf in args.gguf:
        for repack in args.repack or (1, 0):
            command = [args.llama_python, str(HERE / "llama_side.py"), gguf, *words, "--repack", str(repack)]
            found[f"llama.cpp {Path(gguf).name} repack {repack}"] = command
    return found


def compare(commands: dict[str, list[str]], rounds: int) -> dict[str, list[dict]]:
    """label -> one result per round. Raises SystemExit with a side's stderr when it fails."""
    results: dict[str, list[dict]] = {label: [] for label in commands}
    for n in range(rounds):
        for label, command in commands.items():
            print(f"round {n + 1}/{rounds}: {label} ...", file=sys.stderr, flush=True)
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{label} failed:\n{done.stderr[-2000:]}")
            results[label].append(json.loads(done.stdout.splitlines()[-1]))
    return results


def read_limit() -> float:
    """GB/s of reading 2 GB once with all threads, four streams each, as the kernels do; the best of five."""
    import torch

    from libremoe import _kernels

    data = torch.ones(2 << 30, dtype=torch.uint8)
    return max(_kernels.measure_read(data) for _ in range(5)) / 1e9


def median(results: list[dict], key: str = "tokens_per_s") -> float:
    return statistics.median(r[key] for r in results)


def report(title: str, results: dict[str, list[dict]], read_gbps: float | None = None) -> dict:
    """Print a table, ours first; ratios are of medians against each rival. Returns the same as a dict."""
    labels = list(results)
    first = median(results[labels[0]])
    print(f"\n{title}\n{'':44s} {'tokens/s':>9s} {'min':>8s} {'max':>8s} {'ours / it':>9s}")
    rows = {}
    for label in labels:
        rates = [r["tokens_per_s"] for r in results[label]]
        value = median(results[label])
        rows[label] = {"tokens_per_s": value, "min": min(rates), "max": max(rates), "ours_over_it": first / value}
        print(f"{label:44s} {value:9.2f} {min(rates):8.2f} {max(rates):8.2f} {first / value:9.2f}")
    if read_gbps and "bytes_per_token" in results[labels[0]][0]:
        touched = results[labels[0]][0]["bytes_per_token"]
        rate = touched * first / 1e9
        rows["limit"] = {"bytes_per_token": touched, "gb_per_s": rate, "read_gb_per_s": read_gbps,
                         "share": rate / read_gbps}
        print(f"ours reads {touched / 1e9:.2f} GB a token: {rate:.1f} GB/s, {rate / read_gbps:.0%} of the "
              f"{read_gbps:.1f} GB/s measured before and after")
    return rows
