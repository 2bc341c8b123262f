"""Expert caches replayed: traces x policies x budgets, with Belady's optimum as the limit. Needs no weights.

    libremoe run MODEL "some text" --trace trace.jsonl     # a trace of real routing, or, of a model in memory:
    python bench/replay.py --record MODEL --text FILE --tokens 256 --out trace.jsonl
    python bench/replay.py trace.jsonl [more.jsonl ...] [--budgets 0.25,0.5,0.75] [--policies ours,lru,lfu] [--json]

A trace is JSON lines: first {"n_layers", "n_experts", "n_active"}, then one line per step of the engine,
{"n_tokens": n, "layers": [[expert ids], ...]}: for each layer in order the experts that its tokens chose. A budget is
the share of all experts that has slots. Every miss takes a slot, as computing needs one; an access is one expert of one
layer in one step, since a step reads each expert once, however many tokens chose it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libremoe.errors import LibremoeError
from libremoe.eviction import Key, Policy
from libremoe.routing import Routing, read_trace


@dataclass(frozen=True)
class Trace(Routing):
    """One recording with a name to show."""

    name: str = ""


def named_trace(path: Path) -> Trace:
    """Raises LibremoeError naming the line that does not fit the format."""
    return Trace(**vars(read_trace(path)), name=path.stem)


class Unaware:
    """A policy that knows nothing of layers and their turns."""

    def turn(self, layer: int) -> None:
        """What is known of a turn is in its accesses."""


class LRU(Unaware):
    """Evicts what was used the longest ago."""

    def __init__(self, n_slots: int, n_layers: int):
        self._order: OrderedDict[Key, None] = OrderedDict()

    def hit(self, key: Key) -> None:
        self._order.move_to_end(key)

    def admit(self, key: Key) -> None:
        self._order[key] = None

    def evict(self, pinned: Collection[Key] = ()) -> Key:
        key = next(key for key in self._order if key not in pinned)
        del self._order[key]
        return key


class FairLRU(LRU):
    """Evicts what was used the longest ago in the layer that holds the most, the present one first."""

    def __init__(self, n_slots: int, n_layers: int):
        super().__init__(n_slots, n_layers)
        self._counts = [0] * n_layers

    def admit(self, key: Key) -> None:
        super().admit(key)
        self._counts[key[0]] += 1

    def evict(self, pinned: Collection[Key] = ()) -> Key:
        free = [key for key in self._order if key not in pinned]
        most = max(self._counts[layer] for layer, _ in free)
        now = next(reversed(self._order))[0]
        layers = {layer for layer, _ in free if self._counts[layer] == most}
        layer = now if now in layers else max(layers, key=lambda i: (i - now - 1) % len(self._counts))
        key = next(key for key in free if key[0] == layer)
        del self._order[key]
        self._counts[layer] -= 1
        return key


class LFU(Unaware):
    """Evicts what was used the fewest times ever, the least recent of those; counts outlive a key's stay."""

    def __init__(self, n_slots: int, n_layers: int):
        self._uses: dict[Key, int] = {}
        self._held: OrderedDict[Key, None] = OrderedDict()

    def hit(self, key: Key) -> None:
        self._uses[key] = self._uses.get(key, 0) + 1
        self._held[key] = None
        self._held.move_to_end(key)

    admit = hit

    def evict(self, pinned: Collection[Key] = ()) -> Key:
        key = min((key for key in self._held if key not in pinned), key=self._uses.__getitem__)
        del self._held[key]
        return key


POLICIES = {"ours": Policy, "fair lru": FairLRU, "lru": LRU, "lfu": LFU}


def accesses(trace: Trace) -> Iterator[tuple[list[Key], Key]]:
    """Every access in order, with the keys that its layer needs in the same step."""
    for step in trace.steps:
        for layer, ids in enumerate(step):
            wanted = [(layer, e) for e in ids]
            for key in wanted:
                yield wanted, key


def replay(trace: Trace, policy: Any, n_slots: int) -> int:
    """Hits of a policy that begins with empty slots. A layer's experts are pinned where there are slots for all."""
    held: set[Key] = set()
    hits = 0
    for wanted, key in accesses(trace):
        if key == wanted[0]:
            policy.turn(key[0])
        if key in held:
            hits += 1
            policy.hit(key)
            continue
        if len(held) == n_slots:
            victim = policy.evict(wanted if len(wanted) <= n_slots else ())
            held.remove(victim)
        held.add(key)
        policy.admit(key)
    return hits


def belady(trace: Trace, n_slots: int) -> int:
    """Hits where the key evicted is always the one whose next use is the farthest: no policy has more."""
    order = list(accesses(trace))
    never = len(order)
    following = [never] * never
    seen: dict[Key, int] = {}
    for i in range(never - 1, -1, -1):
        following[i] = seen.get(order[i][1], never)
        seen[order[i][1]] = i
    held: dict[Key, int] = {}
    hits = 0
    for i, (_, key) in enumerate(order):
        if key in held:
            hits += 1
        elif len(held) == n_slots:
            del held[max(held, key=held.__getitem__)]
        held[key] = following[i]
    return hits


def compare(trace: Trace, policies: list[str], budgets: list[float]) -> list[dict[str, Any]]:
    """One row for each budget: slots, hit rates, and each policy's hits as a share of Belady's."""
    total = sum(1 for _ in accesses(trace))
    rows = []
    for budget in budgets:
        n_slots = max(trace.n_active, round(budget * trace.n_layers * trace.n_experts))
        best = belady(trace, n_slots)
        hits = {name: replay(trace, POLICIES[name](n_slots, trace.n_layers), n_slots) for name in policies}
        rows.append({"trace": trace.name, "budget": budget, "slots": n_slots, "accesses": total,
                     "belady": best / total, "hit_rate": {name: n / total for name, n in hits.items()},
                     "of_belady": {name: n / best if best else 1.0 for name, n in hits.items()}})
    return rows


def record(path: str, text: bytes, n_tokens: int, prompt_tokens: int, out: Path) -> None:
    """Run a model on pieces of text, each continued greedily, and write what its routers chose."""
    from libremoe.language_model import load

    lm = load(path)
    config = lm.config
    if not config.is_moe:
        raise LibremoeError(f"{path}: has no experts, so there is no routing to record")
    ids = lm.encode(text.decode(errors="replace")) if lm.tokenizer else [3 + b % (config.vocab_size - 3) for b in text]
    with out.open("w", encoding="utf-8") as file:
        write_header(file, config.n_layers, config.n_experts, config.n_experts_per_tok)
        record_steps(lm.model, file)
        done = 0
        n_new = min(64, config.context_len - prompt_tokens)
        for start in range(0, max(1, len(ids) - prompt_tokens), prompt_tokens):
            for piece in lm.pieces(ids[start : start + prompt_tokens], temperature=0.7, seed=start, max_tokens=n_new):
                done += len(piece.tokens)
            print(f"\r{done} of {n_tokens} tokens", end="", file=sys.stderr, flush=True)
            if done >= n_tokens:
                break
    print(file=sys.stderr)


def write_header(file: Any, n_layers: int, n_experts: int, n_active: int) -> None:
    file.write(json.dumps({"n_layers": n_layers, "n_experts": n_experts, "n_active": n_active}) + "\n")


def record_steps(model: Any, file: Any) -> None:
    """Write a line for every forward pass from now on."""
    layers: list[list[int]] = []

    def note(_module: Any, _inputs: Any, outputs: Any) -> None:
        ids_NA = outputs[0]
        layers.append(list(dict.fromkeys(ids_NA.flatten().tolist())))
        if len(layers) == model.config.n_layers:
            file.write(json.dumps({"n_tokens": len(ids_NA), "layers": layers}) + "\n")
            layers.clear()

    for block in model.blocks:
        block.moe.router.register_forward_hook(note)


def show(rows: list[dict[str, Any]], policies: list[str]) -> None:
    print(f"{'trace':24s} {'budget':>6s} {'slots':>6s} {'belady':>7s}" + "".join(f" {name:>16s}" for name in policies))
    for row in rows:
        cells = "".join(f" {row['hit_rate'][name]:7.1%} ({row['of_belady'][name]:5.1%})" for name in policies)
        print(f"{row['trace'][:24]:24s} {row['budget']:6.2f} {row['slots']:6d} {row['belady']:7.1%}{cells}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("traces", nargs="*", type=Path)
    parser.add_argument("--budgets", default="0.125,0.25,0.375,0.5,0.625,0.75,0.875")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--record", metavar="MODEL", help="write a trace of this model's routing")
    parser.add_argument("--text", type=Path, help="what it reads while it is recorded")
    parser.add_argument("--tokens", type=int, default=256, help="tokens to generate while recording")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="of each piece of the text")
    parser.add_argument("--out", type=Path, help="the trace to write")
    args = parser.parse_args()
    if args.record:
        if not (args.text and args.out):
            parser.error("--record needs --text FILE and --out FILE")
        record(args.record, args.text.read_bytes(), args.tokens, args.prompt_tokens, args.out)
        return
    if not args.traces:
        parser.error("give a trace, or --record MODEL")
    policies = args.policies.split(",")
    unknown = sorted(set(policies) - set(POLICIES))
    if unknown:
        parser.error(f"no policy {', '.join(unknown)}; there are: {', '.join(POLICIES)}")
    budgets = [float(part) for part in args.budgets.split(",")]
    rows = [row for path in args.traces for row in compare(named_trace(path), policies, budgets)]
    if args.json:
        print(json.dumps(rows))
    else:
        show(rows, policies)


if __name__ == "__main__":
    try:
        main()
    except LibremoeError as error:
        sys.exit(f"replay: {error}")
