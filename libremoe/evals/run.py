"""`libremoe eval MODEL --tasks ...`: asks, scores, keeps every answer, and says how sure the score is.

Without --budget, items are asked subject by subject, so that they share the shots in the cache. With it, in waves: each
wave holds every subject in proportion, its subjects in an order of its own, so that one can stop after any wave.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libremoe.errors import LibremoeError
from libremoe.evals import results
from libremoe.evals.data import Data
from libremoe.evals.published import published
from libremoe.evals.stats import decide, running_interval, stratified
from libremoe.evals.store import Answers
from libremoe.evals.task import TASKS, Example, Prompt, Sampler, Task, open_task
from libremoe.progress import Progress

WAVE = 64  # at least; and two of each subject
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass
class Plan:
    """How much is asked. budget_s: of this task. against: whose score decides, and it. interrupted: from outside."""

    limit: int | None = None
    budget_s: float | None = None
    against: tuple[str, float] | None = None
    seed: int = 0
    price: tuple[float, float] | None = None
    shown: bool = True
    interrupted: threading.Event = field(default_factory=threading.Event)


def run(args: argparse.Namespace) -> int:
    """The command. Exit status 0; 130 where it was interrupted, after everything that was answered is kept."""
    names = _names(args.tasks)
    budget_s = None if args.budget is None else seconds(args.budget)
    price = _price(args.price)
    if args.limit is not None and args.limit < 1:
        raise LibremoeError(f"--limit {args.limit}: at least one item")
    if args.concurrency < 1 or args.max_running < 1:
        raise LibremoeError("--concurrency and --max-running must be at least 1")
    data = Data(args.data)
    tasks = [open_task(name, data) for name in names]
    for name in names:
        against(args.against, name)
    sampler, model = _sampler(args)
    out = args.out or Path("eval-runs") / _slug(str(model.get("model") or Path(args.path).resolve().name))
    found = []
    deadline = None if budget_s is None else time.monotonic() + budget_s
    with interrupts() as interrupted:
        for i, task in enumerate(tasks):
            share = None if deadline is None else max(0.0, deadline - time.monotonic()) / (len(tasks) - i)
            plan = Plan(args.limit, share, against(args.against, task.name), args.seed, price, not args.json,
                        interrupted)
            command = {"model": str(args.path), "limit": args.limit, "budget": args.budget, "libremoe": _version(),
                       "machine": f"{platform.machine()}, {platform.system()}", "python": platform.python_version()}
            found.append(run_task(task, data, sampler, model, out / task.name, plan, command))
            if interrupted.is_set():
                break
    if args.json:
        print(json.dumps({"out": str(out), "results": found}))
    else:
        print("\n".join(results.lines(found)))
        print(f"answers, prompts and settings: {out}")
    if interrupted.is_set():
        print("libremoe: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def run_task(task: Task, data: Data, sampler: Sampler, model: dict[str, Any], folder: Path, plan: Plan,
             command: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask what is not yet answered in folder, score it, and return the result, which is saved there as well."""
    examples = task.examples()
    order = stratified([example.group for example in examples], plan.seed)[: plan.limit]
    digests = {path: digest for path, digest in data.digests.items() if path.split("/")[0] in (task.name, path)}
    header = {"task": task.name, "title": task.title, "metric": task.metric, "settings": task.settings,
              "data": digests or data.digests, "model": model, "seed": plan.seed, "n_items": len(examples)}
    running = plan.budget_s is not None
    deadline = time.monotonic() + plan.budget_s if plan.budget_s is not None else None
    with Answers(folder, header, command or {}) as answers:
        chosen = [examples[i] for i in order]
        wanted = {example.id for example in chosen}
        by_id = {example.id: example for example in chosen}
        prompts: dict[str, Prompt] = {}
        stopped: list[str] = []

        def kept() -> list[dict[str, Any]]:
            return [item for id, item in answers.items.items() if id in wanted]

        def decided() -> bool:
            if plan.against is None:
                return False
            items = kept()
            total = sum(item["score"]["value"] for item in items)
            return decide(running_interval(total, len(items)), plan.against[1]) is not None

        def coming() -> Iterator[tuple[str, Prompt]]:
            for wave in _waves(chosen, plan.seed, running):
                if running and decided():
                    stopped.append("decided")
                    return
                for example in wave:
                    if plan.interrupted.is_set() or (deadline is not None and time.monotonic() >= deadline):
                        stopped.append("interrupted" if plan.interrupted.is_set() else "budget")
                        return
                    if example.id not in answers.items:
                        prompts[example.id] = task.prompt(example)
                        yield example.id, prompts[example.id]

        left = sum(example.id not in answers.items for example in chosen)
        total, n = sum(item["score"]["value"] for item in kept()), len(chosen) - left
        with Progress(task.title, len(chosen), plan.shown, "items") as bar:
            bar.advance(len(chosen) - left)
            for id, answer in sampler(coming()):
                score = task.score(by_id[id], answer)
                answers.add(by_id[id], prompts.pop(id), answer, score)
                total, n = total + score.value, n + 1
                bar.advance(1, f"{100 * total / n:.1f} %")
        end = stopped[0] if stopped else "all" if len(chosen) == len(examples) else "limit"
        result = results.summarise(answers.header, kept(), running, end, plan.against, plan.price)
        results.save(folder, result)
        return result


def _waves(chosen: list[Example], seed: int, running: bool) -> list[list[Example]]:
    """chosen in its order, cut up; in each part the items of a subject stand together, to share their shots."""
    n_groups = len({example.group for example in chosen})
    size = max(WAVE, 2 * n_groups) if running else max(1, len(chosen))
    waves = []
    for start in range(0, len(chosen), size):
        wave = chosen[start : start + size]
        groups = sorted({example.group for example in wave})
        if running:
            random.Random(f"{seed}/wave {start}").shuffle(groups)
        place = {group: i for i, group in enumerate(groups)}
        waves.append(sorted(wave, key=lambda example: place[example.group]))
    return waves


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets: nothing more is asked, what is under way is kept. A second
    Ctrl-C ends at once."""
    event = threading.Event()

    def stop(number: int, frame: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()
        print("\nlibremoe: finishing what is under way; Ctrl-C again to leave at once", file=sys.stderr, flush=True)

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before: list[tuple[int, Any]] = [(n, signal.signal(n, stop)) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield event
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def seconds(text: str) -> float:
    """"90", "90s", "15m", "2h", "1d" as seconds. Raises LibremoeError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip())
    if not found or not float(found[1]):
        raise LibremoeError(f"--budget {text}: wants a time such as 90s, 15m, 2h or 1d")
    return float(found[1]) * UNITS[found[2]]


def against(text: str | None, task: str) -> tuple[str, float] | None:
    """Whose published score decides, and it: by default Grok-1's. text: a model's name, or a score in per cent, which
    is nobody's ("")."""
    known = {one.model.lower().replace(" ", "-"): one for one in published(task)}
    if text is None:
        return next(((one.model, one.score) for one in known.values()), None)
    if text.lower() in known:
        return known[text.lower()].model, known[text.lower()].score
    if text.lower() in {one.replace(" ", "-") for one in ("grok-1", "gpt-3.5", "llama 2 70b")}:
        return None  # published for other tasks
    try:
        score = float(text.removesuffix("%"))
    except ValueError:
        score = -1.0
    if not 0 <= score <= 100:
        raise LibremoeError(f"--against {text}: wants grok-1, gpt-3.5, llama-2-70b, or a score in per cent")
    return "", score / 100


def _names(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        raise LibremoeError(f"--tasks {text}: {'no benchmark ' + ', '.join(unknown) if unknown else 'names none'}; "
                            f"there are: {', '.join(TASKS)}")
    return names


def _price(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        read, written = (float(part) for part in text.split(","))
        if not (0 <= read < 1e6 and 0 <= written < 1e6):
            raise ValueError
    except ValueError:
        raise LibremoeError(f"--price {text}: wants two prices of a million tokens in dollars, read and written, such "
                            f"as 0.5,1.5") from None
    return read, written


def _sampler(args: argparse.Namespace) -> tuple[Sampler, dict[str, Any]]:
    """The model's sampler, and what tells the model from another."""
    if re.match(r"https?://", str(args.path)):
        from libremoe.evals.endpoint import Endpoint

        endpoint = Endpoint(args.path, args.model_name, args.api, args.api_key_env, args.concurrency, seed=args.seed)
        return endpoint, endpoint.describe()
    from libremoe.evals.sampler import LocalSampler, fingerprint
    from libremoe.run import load_for
    from libremoe.weights import open_checkpoint

    lm = load_for(args, args.max_running)
    name = args.model_name or Path(args.path).resolve().name
    return LocalSampler(lm, args.max_running, args.seed), {
        "kind": "local", "model": name, "fingerprint": fingerprint(open_checkpoint(args.path)), "dtype": args.dtype,
        **({"kv": args.kv} if args.kv else {})}


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("libremoe")
    except PackageNotFoundError:
        return "not installed"


