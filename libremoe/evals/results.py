"""What the answers of a run amount to: RUN/<task>/result.json, and the table that is printed."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from libremoe.evals.published import published
from libremoe.evals.stats import LEVEL, decide, ratio_interval, running_interval, wilson

NAME = "result.json"
RUNNING, FIXED = "confidence sequence", "Wilson"


def summarise(header: dict[str, Any], items: Sequence[dict[str, Any]], running: bool, stopped: str,
              against: tuple[str, float] | None = None, price: tuple[float, float] | None = None) -> dict[str, Any]:
    """The result of a task. running: whether one could stop on the interval, which must then hold at every look.
    stopped: "all", "limit", "budget", "decided" or "interrupted". against: whose published score decides, and it.
    price: US dollars for a million tokens read, and written."""
    n, total = len(items), sum(item["score"]["value"] for item in items)
    interval = (running_interval if running else wilson)(total, n)
    answers = [item["answer"] for item in items]
    seconds = sum(_session_seconds(items).values())
    read, written = (sum(answer[f"{kind}_tokens"] for answer in answers) for kind in ("prompt", "completion"))
    result: dict[str, Any] = {
        "format": header["format"], "task": header["task"], "title": header["title"], "metric": header["metric"],
        "model": header["model"], "settings": header["settings"], "data": header["data"], "seed": header["seed"],
        "score": total / n if n else None, "n": n, "of": header["n_items"], "stopped": stopped,
        "interval": {"low": interval.low, "high": interval.high, "level": LEVEL,
                     "method": RUNNING if running else FIXED},
        "how": dict(Counter(answer["how"] for answer in answers)),
        "outcomes": dict(Counter(item["score"]["outcome"] for item in items)),
        "errors": sum(bool(answer["error"]) for answer in answers),
        "with_fewer_shots": sum(bool(answer["dropped_shots"]) for answer in answers),
        "groups": _groups(items), "also": _also(items),
        "seconds": round(seconds, 3), "seconds_per_item": round(seconds / n, 4) if n else None,
        "prompt_tokens": read, "shared_tokens": sum(answer["shared_tokens"] for answer in answers),
        "completion_tokens": written,
        "published": [{"model": one.model, "score": one.score, "margin": one.margin, "setting": one.setting,
                       "source": one.source} for one in published(header["task"])],
    }
    if price is not None:
        result["dollars"] = (read * price[0] + written * price[1]) / 1e6
        result["dollars_per_item"] = result["dollars"] / n if n else None
    if against is not None:
        result["against"] = {"name": against[0], "score": against[1], "decision": decide(interval, against[1])}
    return result


def _session_seconds(items: Sequence[dict[str, Any]]) -> dict[int, float]:
    """Time at work: of each session, from its begin to its last answer."""
    found: dict[int, float] = {}
    for item in items:
        found[item["session"]] = max(found.get(item["session"], 0.0), item["at"])
    return found


def _groups(items: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    by_group: dict[str, list[float]] = {}
    for item in items:
        by_group.setdefault(item["group"], []).append(item["score"]["value"])
    if set(by_group) <= {""}:
        return {}
    return {group: {"n": len(values), "score": sum(values) / len(values),
                    **wilson(sum(values), len(values))._asdict()} for group, values in sorted(by_group.items())}


def _also(items: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Further metrics."""
    found: dict[str, list[tuple[float, float]]] = {}
    for item in items:
        for name, (got, of) in item["score"]["also"].items():
            found.setdefault(name, []).append((got, of))
    made = {}
    for name, pairs in found.items():
        score, interval = ratio_interval(pairs)
        made[name] = {"score": score, "n": len(pairs), **interval._asdict()}
    return made


def save(folder: Path, result: dict[str, Any]) -> None:
    """Written whole or not at all."""
    new = folder / f".{NAME}.new"
    with new.open("w", encoding="utf-8") as file:
        file.write(json.dumps(result, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / NAME)


def lines(results: Sequence[dict[str, Any]]) -> list[str]:
    """The table for a terminal."""
    shown = [f"{'':22s} {'score':>7s} {'95 % interval':>15s} {'n':>13s}  {'published, of Grok-1':20s}  how"]
    for result in results:
        low, high = 100 * result["interval"]["low"], 100 * result["interval"]["high"]
        score = "-" if result["score"] is None else f"{100 * result['score']:.1f} %"
        known = result["published"][:1]
        theirs = f"{100 * known[0]['score']:.1f} +- {100 * known[0]['margin']:.1f} %" if known else "-"
        how = ", ".join(result["how"])
        count = f"{result['n']} of {result['of']}"
        shown.append(f"{result['title'][:22]:22s} {score:>7s} {f'{low:.1f} to {high:.1f}':>15s} {count:>13s}"
                     f"  {theirs:20s}  {how}")
        shown += [f"    {name}: {100 * one['score']:.1f} %, {100 * one['low']:.1f} to {100 * one['high']:.1f}"
                  for name, one in result["also"].items()]
        if "against" in result:
            verdict = result["against"]["decision"]
            said = f"{verdict}" if verdict else "not decided whether above or below"
            whose = f"{result['against']['name']}'s " if result["against"]["name"] else ""
            shown.append(f"    {said} {whose}{100 * result['against']['score']:.1f} % "
                         f"({result['interval']['method']}, stopped: {result['stopped']})")
        if result["errors"]:
            shown.append(f"    {result['errors']} items could not be asked and count as wrong; answers.jsonl says why")
        if result["with_fewer_shots"]:
            shown.append(f"    {result['with_fewer_shots']} items had fewer shots, to fit the context")
    return shown
