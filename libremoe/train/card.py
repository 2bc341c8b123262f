"""`libremoe train card`: the model card in Markdown, from the records alone. What was not measured is said to be so."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from libremoe.errors import CheckpointError
from libremoe.train.report import duration
from libremoe.weights.native_writer import write_small

_CANNOT = """\
A very small model. It knows almost nothing about the world, makes things up when it is asked beyond what it was taught,
and should not be relied on for anything that matters. It has no safety training beyond a few kinds of refusal."""


def run(args: argparse.Namespace) -> int:
    """The command. args: path, dense, baseline, behaviours, scores, out. Returns 0.

    Raises CheckpointError for a bad record.
    """
    dense = None if args.dense is None else read_record(args.dense)
    others = (None if path is None else _json(path) for path in (args.baseline, args.behaviours, args.scores))
    text = card(read_record(args.path), dense, *others)
    if args.out is None:
        print(text, end="")
    else:
        write_small(args.out, text.encode())
    return 0


def read_record(folder: Path) -> dict[str, Any]:
    return _json(folder / "train.json")


def card(record: dict[str, Any], dense: dict[str, Any] | None = None, baseline: dict[str, Any] | None = None,
         behaviours: dict[str, Any] | None = None, scores: dict[str, Any] | None = None) -> str:
    """The whole card. baseline, behaviours, scores: what these actions of `libremoe train` print with --json."""
    parts = [_head(record), _data(record), _perplexity(record, dense, baseline, scores), _behaviours(behaviours),
             _experts(record), _rounding(record), "## What it cannot do\n\n" + _CANNOT]
    return "\n\n".join(parts) + "\n"


def _runs(r: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """A name and the record of each training that the model went through, the first one first."""
    records = [r]
    while records[-1].get("before"):
        records.append(records[-1]["before"])
    tunings = len(records) - 1
    names = ["training", *(f"tuning {n}" if tunings > 1 else "tuning" for n in range(1, tunings + 1))]
    return list(zip(names, reversed(records), strict=True))


def _head(r: dict[str, Any]) -> str:
    m = r["recipe"]["model"]
    tables = [_training(name, one) for name, one in _runs(r)]
    return "\n".join([
        f"# {r['recipe']['title']}", "",
        f"{r['parameters'] / 1e6:.1f} M parameters, {r['active_parameters'] / 1e6:.1f} M active for a token: "
        f"{m['n_layers']} layers of width {m['dim']}, {m['n_experts']} experts of which {m['n_experts_per_tok']} work, "
        f"vocabulary {m['vocab_size']:,}, context {m['context_len']:,}. The architecture is Grok-1's.", "",
        "\n\n".join(tables), "", f"Licence of the weights: {r['recipe']['export']['licence']}."])


def _training(title: str, r: dict[str, Any]) -> str:
    joules = r["energy"]["joules"]
    title += "" if r["recipe"]["train"].get("learn_experts", True) else ", of all but the experts"
    energy = f"{joules / 3600:.0f} Wh, by {r['energy']['how']}" if joules is not None else r["energy"]["how"]
    return "\n".join([
        f"| {title} | |", "| --- | --- |", f"| tokens seen | {r['tokens_seen']:,} in {r['steps']:,} steps |",
        f"| on | {r['device']}, {r['threads']} threads, torch {r['torch']} |",
        f"| time | {duration(r['seconds'])}, of the processor {duration(r['cpu_seconds'])} |",
        f"| operations | {r['operations']:.2e} |", f"| energy | {energy} |",
        f"| seed, commit | {r['seed']}, {r['commit'] or 'not known'} |"])


def _data(r: dict[str, Any]) -> str:
    lines = ["## Trained on", "", "| stage | tokens | documents |", "| --- | ---: | ---: |"]
    licences: dict[str, list[str]] = {}
    runs = _runs(r)
    for run, one in runs:
        said = "" if run == "training" else f" of {run}"
        lines += [f"| {name}{said} | {shard['tokens']:,} | {shard['documents']:,} |"
                  for name, shard in one["data"].items()]
        for part, licence in sorted(((one.get("report") or {}).get("licences") or {}).items()):
            if part not in licences.setdefault(licence, []):
                licences[licence].append(part)
    lines += ["", *(["| licence | parts of the mix |", "| --- | --- |"] if licences
                    else ["The mix left no report of licences."])]
    lines += [f"| {licence} | {', '.join(parts)} |" for licence, parts in licences.items()]
    items = [(one.get("report") or {}).get("evaluation_items") for _, one in runs]
    lines += ["", f"Texts of evaluations kept out: {sum(items[0].values()):,} of {len(items[0])} sets."
              if items[0] and all(items) else "Not all was compared with evaluation sets."]
    return "\n".join(lines)


def _perplexity(r: dict[str, Any], dense: dict[str, Any] | None, baseline: dict[str, Any] | None,
                scores: dict[str, Any] | None) -> str:
    base = _runs(r)[0][1]
    shards = (scores or {}).get("shards", {})
    own = [(name, one["nats_per_token"], one["nats_per_character"]) for name, one in shards.items()] or _last(r)
    rows = [("this model", own), *([("before all tuning", _last(base))] if base is not r else [])]
    if dense is not None:
        step = min(_steps(base)[-1], _steps(dense)[-1])
        at = "" if step == base["steps"] else f" after {step * base['tokens_seen'] // base['steps'] / 1e6:.0f} M tokens"
        rows += [(f"this model{at}", _last(base, step))] if at else []
        rows += [(f"dense, same active size{at or ' and tokens'}", _last(dense, step))]
    lines = ["## Held-out text", "", "| model | shard | nats a token | perplexity a character |",
             "| --- | --- | ---: | ---: |"]
    lines += [f"| {name} | {shard} | {nats:.3f} | {math.exp(per_char):.3f} |"
              for name, found in rows for shard, nats, per_char in found]
    if baseline is not None:
        lines.append(f"| {baseline['order']}-gram, modified Kneser-Ney | {baseline['shard']} | "
                     f"{baseline['nats_per_token']:.3f} | {baseline['perplexity_per_character']:.3f} |")
    missing = [name for name, one in (("the dense model", dense), ("the 5-gram model", baseline)) if one is None]
    return "\n".join([*lines, *(["", f"Not measured: {' and '.join(missing)}."] if missing else [])])


def _steps(record: dict[str, Any]) -> list[int]:
    return sorted({entry[0] for entry in record["history"]["evaluations"]})


def _last(record: dict[str, Any], step: int | None = None) -> list[tuple[str, float, float]]:
    """The last evaluation of each shard, or that at a step."""
    found = {e[1]: (e[1], e[2], e[3]) for e in record["history"]["evaluations"] if step is None or e[0] == step}
    return list(found.values())


def _behaviours(scores: dict[str, Any] | None) -> str:
    if scores is None:
        return "## Behaviours\n\nNot measured."
    lines = ["## Behaviours", "", "| behaviour | right | 95 % interval | items | goal |",
             "| --- | ---: | --- | ---: | --- |"]
    for name, sides in scores["behaviours"].items():
        one, goal = sides["all"], sides.get("goal")
        said = "" if goal is None else f"{100 * goal:.0f} %, {'met' if sides['met'] else 'not met'}"
        lines.append(f"| {name} | {100 * one['score']:.1f} % | {100 * one['low']:.1f} to {100 * one['high']:.1f} % | "
                     f"{one['n']} | {said} |")
    return "\n".join(lines)


def _experts(r: dict[str, Any]) -> str:
    if not r["final_loads"]:
        return "## Experts\n\nNone: a dense model."
    flat = [share for layer in r["final_loads"] for share in layer]
    said = "as it should be" if r["balanced"] else "outside of 5 to 25 %: not balanced"
    return (f"## Experts\n\nAt the end an expert has between {100 * min(flat):.1f} and {100 * max(flat):.1f} % of the "
            f"choices, {said}.")


def _rounding(r: dict[str, Any]) -> str:
    costs = r.get("rounding")
    if not costs or not any(costs.values()):
        return "## What rounding costs\n\nNot measured."
    shards = list(costs["f32"])
    lines = ["## What rounding costs", "", f"| format | {' | '.join(shards)} |", f"| --- |{' ---: |' * len(shards)}"]
    lines += [f"| {format} | {' | '.join(f'{by[s]:.4f}' for s in shards)} |" for format, by in costs.items()]
    return "\n".join([*lines, "", "Nats a token."])


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"is no record of a training run: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(path, "is no record of a training run")
    return found
