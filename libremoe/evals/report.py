"""`libremoe eval report RUN...`: the scores of runs next to the published ones, in the terminal and as one HTML page.

A run is a folder that `libremoe eval` wrote: RUN/<task>/answers.jsonl, one JSON object a line (kinds: run, session,
prefix, item), and RUN/<task>/result.json, made when a session ended. What an unfinished run has is shown as well.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libremoe.errors import LibremoeError
from libremoe.evals.published import Published, published
from libremoe.evals.stats import wilson
from libremoe.evals.store import read_answers

MAX_BYTES = 1 << 30  # of one answers file


@dataclass(frozen=True)
class TaskRun:
    """What one run has of one task. result: as in result.json. prefixes: number -> what prompts begin with."""

    run: str  # a name for people, unique among the runs of a report
    task: str
    result: dict[str, Any]
    items: list[dict[str, Any]]
    prefixes: dict[int, str]


def command(args: argparse.Namespace) -> int:
    """args: runs (paths), html (a path or None), json, markdown."""
    runs = read_runs(args.runs)
    if args.html is not None:
        from libremoe.evals.report_page import page

        write_whole(args.html, page(runs))
    if args.json:
        print(json.dumps([{"run": one.run, **one.result} for one in runs]))
        return 0
    if args.markdown:
        print(markdown(runs))
        return 0
    _print_table(runs)
    if args.html is not None:
        print(f"the page with every answer: {args.html}")
    return 0


def read_runs(paths: Sequence[Path]) -> list[TaskRun]:
    """Everything that these folders hold, in order. Raises LibremoeError for a folder without answers or a bad file."""
    found: list[TaskRun] = []
    names = Counter(Path(path).resolve().name for path in paths)
    for path in paths:
        own = Path(path).resolve()
        name = own.name if names[own.name] == 1 else f"{own.parent.name}/{own.name}"
        files = sorted(own.glob("*/answers.jsonl"))
        if not files:
            raise LibremoeError(f"{path}: no run of `libremoe eval`: it holds no <task>/answers.jsonl")
        found += [_read_task(name, file) for file in files]
    return found


def _read_task(run: str, path: Path) -> TaskRun:
    if path.stat().st_size > MAX_BYTES:
        raise LibremoeError(f"{path}: longer than {MAX_BYTES} bytes: too long for a page")
    head, records, prefixes = read_answers(path.parent)
    items: list[dict[str, Any]] = []
    try:
        header: dict[str, Any] = {name: head.get(name) for name in ("model", "settings", "data", "seed", "metric")}
        header |= {"task": str(head["task"]), "title": str(head["title"]), "n_items": int(head["n_items"])}
        items += map(_checked, records)
        prefixes = {int(number): str(text) for number, text in prefixes.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise LibremoeError(f"{path}: answer {len(items) + 1} is none of `libremoe eval`: the file was changed or is "
                            "damaged") from error
    latest = list({item["id"]: item for item in items}.values())
    return TaskRun(run, header["task"], _result(path.with_name("result.json"), header, latest), latest, prefixes)


def _checked(item: dict[str, Any]) -> dict[str, Any]:
    """The parts that the report relies on, with their types; raises TypeError and the like where they differ."""
    answer, score = item["answer"], item["score"]
    probabilities = [None if p is None else float(p) for p in answer.get("logprobs", [])]
    return {
        "id": str(item["id"]), "group": str(item["group"]), "prefix": int(item.get("prefix", -1)),
        "question": str(item.get("question", "")), "options": [str(o) for o in item.get("options", [])],
        "how": str(answer["how"]), "text": str(answer["text"]), "logprobs": probabilities,
        "seconds": float(answer.get("seconds", 0.0)), "error": str(answer.get("error", "")),
        "tokens": int(answer.get("prompt_tokens", 0)) + int(answer.get("completion_tokens", 0)),
        "value": float(score["value"]), "said": str(score.get("said", "")), "wanted": str(score.get("wanted", "")),
        "outcome": str(score.get("outcome", "")),
    }


def _result(path: Path, header: dict[str, Any], items: list[dict[str, Any]]) -> dict[str, Any]:
    """result.json where it speaks of these very items; else what they say, with a Wilson interval."""
    total, n = sum(item["value"] for item in items), len(items)
    interval = wilson(total, n)
    result: dict[str, Any] = {
        **header, "score": total / n if n else None, "n": n, "of": header["n_items"],
        "interval": {"low": interval.low, "high": interval.high, "method": "Wilson"}, "stopped": "unfinished",
        "seconds_per_item": sum(item["seconds"] for item in items) / n if n else None, "dollars_per_item": None,
        "how": dict(Counter(item["how"] for item in items)),
        "outcomes": dict(Counter(item["outcome"] for item in items)), "groups": _groups(items),
    }
    try:
        saved = json.loads(path.read_bytes())
        low, high = float(saved["interval"]["low"]), float(saved["interval"]["high"])
        if saved["n"] == n and 0 <= low <= high <= 1:
            method = str(saved["interval"].get("method", "Wilson"))
            result["interval"] = {"low": low, "high": high, "method": method}
            result["stopped"] = str(saved["stopped"])
            dollars = saved.get("dollars_per_item")
            result["dollars_per_item"] = None if dollars is None else float(dollars)
    except FileNotFoundError:
        pass
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise LibremoeError(f"{path}: no result of `libremoe eval`; remove it: the answers are enough") from error
    return result


def _groups(items: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    values: dict[str, list[float]] = {}
    for item in items:
        if item["group"]:
            values.setdefault(item["group"], []).append(item["value"])
    return {group: {"n": len(them), "score": sum(them) / len(them), **wilson(sum(them), len(them))._asdict()}
            for group, them in sorted(values.items())}


def tasks_of(runs: Sequence[TaskRun]) -> list[str]:
    """Each task once, in the order of appearance."""
    return list(dict.fromkeys(one.task for one in runs))


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _print_table(runs: Sequence[TaskRun]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="scores, with 95 % intervals")
    table.add_column("benchmark")
    table.add_column("model")
    for name in ("score", "interval", "n", "s an item"):
        table.add_column(name, justify="right")
    for task in tasks_of(runs):
        ours = [one for one in runs if one.task == task]
        for i, one in enumerate(ours):
            result = one.result
            interval, seconds = result["interval"], result["seconds_per_item"]
            cells = [ours[0].result["title"] if i == 0 else "", one.run, percent(result["score"]),
                     f"{100 * interval['low']:.1f} to {100 * interval['high']:.1f}", f"{result['n']} of {result['of']}",
                     "-" if seconds is None else f"{seconds:.2f}"]
            table.add_row(*(Text(visible(cell)) for cell in cells))
        for known in published(task):
            table.add_row("", Text(f"{known.model}, published", style="dim"), percent(known.score),
                          _margins(known), str(known.n_items), "-", style="dim")
        table.add_section()
    width = None if sys.stdout.isatty() else 120
    Console(width=width).print(table)


def markdown(runs: Sequence[TaskRun]) -> str:
    """A line for each benchmark, a column for each run and for each model with published scores; scores in per cent
    with their interval, and how many items of how many were asked."""
    names = list(dict.fromkeys(one.run for one in runs))
    models = list(dict.fromkeys(known.model for task in tasks_of(runs) for known in published(task)))
    lines = [["benchmark", *names, *(f"{model}, published" for model in models)]]
    lines.append(["---"] * len(lines[0]))
    for task in tasks_of(runs):
        ours = {one.run: one.result for one in runs if one.task == task}
        known = {one.model: one for one in published(task)}
        cells = [next(iter(ours.values()))["title"]]
        for name in names:
            cells.append(f"{_scored(ours[name])}, {ours[name]['n']} of {ours[name]['of']}" if name in ours else "")
        for model in models:
            cells.append(f"{percent(known[model].score)} ({_margins(known[model])})" if model in known else "")
        lines.append(cells)
    return "\n".join("| " + " | ".join(visible(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _scored(result: dict[str, Any]) -> str:
    interval = result["interval"]
    return f"{percent(result['score'])} ({100 * interval['low']:.1f} to {100 * interval['high']:.1f})"


def _margins(known: Published) -> str:
    return f"{100 * (known.score - known.margin):.1f} to {100 * (known.score + known.margin):.1f}"


def visible(text: str) -> str:
    """text with what cannot be seen written out as <U+202E>: controls, zero-width and direction marks, tags."""
    return "".join(f"<U+{ord(c):04X}>" if _unseen(ord(c)) else c for c in text)


def _unseen(code: int) -> bool:
    return (code < 0x20 and code not in (9, 10)) or 0x7F <= code < 0xA0 or code == 0xAD or 0x200B <= code <= 0x200F \
        or 0x2028 <= code <= 0x202E or 0x2060 <= code <= 0x206F or code == 0xFEFF or 0xD800 <= code <= 0xDFFF \
        or 0xE0000 <= code <= 0xE0FFF


def write_whole(path: Path, text: str) -> None:
    """Whole or not at all. Raises LibremoeError where the folder cannot be written to."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False,
                                         encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except OSError as error:
        raise LibremoeError(f"--html {path}: cannot be written: {error.strerror}") from error
