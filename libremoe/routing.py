"""Which experts a model's tokens chose, kept from run to run: what says how often a cache of them will hit.

`libremoe run PATH --stats` adds its decoding steps to a file beside the machine that `plan` measured; forecasts replay
them through the very policy that streaming uses (eviction.py). The file is a trace as bench/replay.py reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from libremoe.errors import LibremoeError
from libremoe.eviction import Key, Policy

STEPS_KEPT = 512  # of the newest runs: some seconds of reading for a person, well under a second to replay
STARTS = 4  # places of the record from which a run is replayed, since none is like the next

Step = list[list[int]]  # for each layer the distinct experts that it chose


@dataclass(frozen=True)
class Routing:
    """One recording. steps: of one token each where it was made by record()."""

    n_layers: int
    n_experts: int
    n_active: int
    steps: list[Step]


def cache_folder() -> Path:
    """Where libremoe keeps what it measured."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(folder) / "libremoe"


def routing_path(model: Path) -> Path:
    """The file of a model, by where it lies."""
    name = hashlib.sha256(os.path.realpath(model).encode()).hexdigest()[:16]
    return cache_folder() / "routing" / f"{name}.jsonl"


def recorded(model: Path, sizes: tuple[int, int, int]) -> Routing | None:
    """What earlier runs chose; None where there is nothing, or nothing of a model of these sizes (layers, experts,
    active): another one lay there then."""
    try:
        found = read_trace(routing_path(model))
    except LibremoeError:
        return None
    return found if (found.n_layers, found.n_experts, found.n_active) == sizes else None


def record(model: Path, sizes: tuple[int, int, int], steps: Sequence[Sequence[Sequence[int]]]) -> None:
    """Add steps to what is kept of a model. Where the file cannot be written, nothing is."""
    before = recorded(model, sizes)
    kept = [*(before.steps if before else []), *([sorted(set(ids)) for ids in step] for step in steps)][-STEPS_KEPT:]
    lines = [dict(zip(("n_layers", "n_experts", "n_active"), sizes, strict=True)),
             *({"n_tokens": 1, "layers": step} for step in kept)]
    path = routing_path(model)
    part = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("".join(json.dumps(line) + "\n" for line in lines))
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()


def reads_per_step(routing: Routing, n_slots: int, n_steps: int | None = None) -> float:
    """Experts that a step of one token reads on average with so many slots, by replay through the policy.

    n_steps: of a run that begins with a prompt, which touches every expert, and goes on for so many tokens; on average
    over runs from STARTS places of the record. None: of a cache that has long been in use.
    """
    n = len(routing.steps)
    if n_steps is None:
        policy, held = Policy(n_slots, routing.n_layers), set[Key]()
        _replay(routing.steps, policy, held, n_slots)
        return _replay(routing.steps, policy, held, n_slots) / n
    prompt = [list(range(routing.n_experts))] * routing.n_layers
    reads = 0
    for start in range(STARTS):
        policy, held = Policy(n_slots, routing.n_layers), set()
        _replay([prompt], policy, held, n_slots)
        first = start * n // STARTS
        reads += _replay([routing.steps[(first + i) % n] for i in range(n_steps)], policy, held, n_slots)
    return reads / (STARTS * n_steps)


def _replay(steps: list[Step], policy: Policy, held: set[Key], n_slots: int) -> int:
    """Misses. A layer's experts are pinned where there are slots for all."""
    misses = 0
    for step in steps:
        for layer, ids in enumerate(step):
            policy.turn(layer)
            wanted = [(layer, e) for e in ids]
            for key in sorted(wanted, key=lambda key: key not in held):  # what is there is taken first
                if key in held:
                    policy.hit(key)
                    continue
                misses += 1
                if len(held) == n_slots:
                    held.remove(policy.evict([k for k in wanted if k in held] if len(wanted) <= n_slots else ()))
                held.add(key)
                policy.admit(key)
    return misses


def read_trace(path: Path) -> Routing:
    """Raises LibremoeError naming the line that does not fit the format."""
    steps: list[Step] = []
    sizes: tuple[int, int, int] | None = None
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                record = _object(path, number, line)
                if sizes is None:
                    sizes = _sizes(path, record)
                else:
                    steps.append(_step(path, number, record, sizes))
    except (OSError, UnicodeDecodeError) as error:
        raise LibremoeError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    if sizes is None or not steps:
        raise LibremoeError(f"{path}: a trace needs a first line with sizes and at least one step; record it again")
    return Routing(*sizes, steps)


def _object(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise LibremoeError(f"{path}: line {number} is no JSON object; record the trace again")
    return record


def _sizes(path: Path, record: dict[str, object]) -> tuple[int, int, int]:
    found = [record.get(name) for name in ("n_layers", "n_experts", "n_active")]
    n_layers, n_experts, n_active = (n if isinstance(n, int) else 0 for n in found)
    if not (0 < n_layers <= 10_000 and 0 < n_active <= n_experts <= 10_000):
        raise LibremoeError(f"{path}: line 1 must have n_layers, n_experts and n_active, not {found}")
    return n_layers, n_experts, n_active


def _step(path: Path, number: int, record: dict[str, object], sizes: tuple[int, int, int]) -> Step:
    layers = record.get("layers")
    if not isinstance(layers, list) or len(layers) != sizes[0]:
        raise LibremoeError(f"{path}: line {number} must have a list of experts for each of {sizes[0]} layers")
    for ids in layers:
        if not isinstance(ids, list) or not all(isinstance(e, int) and 0 <= e < sizes[1] for e in ids):
            raise LibremoeError(f"{path}: line {number} names an expert that is not one of {sizes[1]}")
    return [list(dict.fromkeys(ids)) for ids in layers]


class Trace:
    """What each step's layers chose, as JSON lines: first the sizes, then a line a step (bench/replay.py reads it).

        {"n_layers": 64, "n_experts": 8, "n_active": 2}
        {"n_tokens": 1, "layers": [[0, 5], [2, 3], ...]}
    """

    def __init__(self, file: Path, n_layers: int, n_experts: int, n_active: int):
        """Raises LibremoeError where the file cannot be written."""
        self._n_layers = n_layers
        self._layers: list[list[int]] = []
        self._n_tokens = 0
        try:
            self._file: TextIO = file.open("w")
        except OSError as error:
            raise LibremoeError(f"--trace {file}: cannot be written: {error.strerror}") from None
        self._write({"n_layers": n_layers, "n_experts": n_experts, "n_active": n_active})

    def note(self, layer: int, n_tokens: int, ids: Sequence[int]) -> None:
        if layer == 0:
            self._layers, self._n_tokens = [], n_tokens
        self._layers.append(list(ids))
        if layer == self._n_layers - 1:
            self._write({"n_tokens": self._n_tokens, "layers": self._layers})

    def _write(self, line: dict[str, object]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
