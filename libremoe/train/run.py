"""`libremoe train RECIPE`: read a recipe, train, draw the curves, write the record and export the model."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from libremoe.convert import convert_reader
from libremoe.errors import LibremoeError
from libremoe.progress import size_text
from libremoe.train.export import TrainedReader, prepare, rounding_costs
from libremoe.train.loop import CHECKPOINT, LEAST_LOAD, MOST_LOAD, Run, set_threads, train
from libremoe.train.recipe import Recipe, dense, find_recipe, read_recipe
from libremoe.train.record import commit, energy_counter, joules_since, record_of
from libremoe.train.report import chart, draw, duration, loads_table

MODEL = "model"
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


def run(args: argparse.Namespace) -> int:
    """The command. args: recipe, data, out, start or None, resume, device, dtype, threads, tokens, seed, dense,
    checkpoint_every, json.

    Exit status 0; 130 where it was stopped and can be continued.
    """
    recipe = chosen_recipe(args)
    threads, device = set_threads(args.threads), _device(args.device)
    before = energy_counter(device)
    work = Run(recipe, args.data, args.out, device, args.resume, dtype=DTYPES[args.dtype],
               start=args.start)
    if not work.history.step:  # a tree can change while a run of hours is going on
        work.history.commit = commit()
    if not args.json:
        m = recipe.model
        print(f"{recipe.title}: {m.n_params() / 1e6:.1f} M parameters, {m.n_active_params() / 1e6:.1f} M active; "
              f"{recipe.steps} steps of {recipe.train.rows * recipe.train.context:,} tokens on {device}, "
              f"{threads} threads, {str(work.dtype).removeprefix('torch.')}", file=sys.stderr)
    if not train(work, shown=not args.json, checkpoint_every_s=args.checkpoint_every):
        print(f"stopped at step {work.history.step}; the same command with --resume continues", file=sys.stderr)
        return 130
    record = finish(work, threads, joules_since(before, device), shown=not args.json)
    if args.json:
        print(json.dumps({k: v for k, v in record.items() if k not in ("history", "data", "report")}))
    else:
        _say(record, args.out)
    return 0


def chosen_recipe(args: argparse.Namespace) -> Recipe:
    """The recipe with what the flags replace."""
    recipe = read_recipe(find_recipe(args.recipe))
    if args.tokens is not None:
        if args.tokens <= 0:
            raise LibremoeError(f"--tokens must be positive, not {args.tokens}")
        recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, tokens=args.tokens))
    if args.seed is not None:
        recipe = dataclasses.replace(recipe, seed=args.seed)
    return dense(recipe) if args.dense else recipe


def finish(work: Run, threads: int, joules: float | None, shown: bool) -> dict[str, Any]:
    """Record, curves and the exported model in the run's folder; the record."""
    recipe, out = work.recipe, work.out
    record = record_of(work, threads, joules)
    tokenizer = prepare(out, work.data, record)
    reader = TrainedReader(out / CHECKPOINT, recipe.model, recipe.export.licence, tokenizer)
    record["rounding"] = rounding_costs(work, reader)
    prepare(out, work.data, record)
    draw(out, record)
    if (out / MODEL / "manifest.json").exists():  # of an earlier end of the same run
        return record
    summary = convert_reader(reader, out / MODEL, recipe.export.format, recipe.export.head, shown=shown,
                             title="exporting")
    return {**record, "model": str(out / MODEL), "bytes": summary["bytes"]}


def _say(record: dict[str, Any], out: Path) -> None:
    print(chart(record["history"]["losses"], "loss (nats a token)"))
    if record["final_loads"]:
        print("\nshare of each expert at the end\n" + loads_table(record["final_loads"]))
        if not record["balanced"]:
            print(f"not balanced: an expert has less than {100 * LEAST_LOAD:.0f} % or more than {100 * MOST_LOAD:.0f} %"
                  "; raise balance in the recipe")
    for format, costs in record["rounding"].items():
        print(f"{format}: " + ", ".join(f"{name} {nats:.4f} nats a token" for name, nats in costs.items()))
    size = f", {size_text(record['bytes'])}" if "bytes" in record else ""
    print(f"{record['tokens_seen']:,} tokens in {duration(record['seconds'])}; the model is {out / MODEL}{size}")


def _device(name: str | None) -> str:
    if name in (None, "auto"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise LibremoeError(f"--device {name}: cannot be used here: {str(error).splitlines()[0]}") from None
    return str(name)
