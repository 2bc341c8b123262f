"""Which expert gives up its slot: the one whose next use is expected to be the farthest away.

Layers are computed in turn, so an expert of layer l cannot be needed before the turn comes round to l, and is needed
then with a probability p that its past tells. That makes the expected wait, in passes through the network:

    wait = (layers until its turn) / n_layers + (1 - p) / p

p is counted, not assumed: experts are sorted by recency (turns since the last use) and frequency (a decayed rate of
use), and for each such pair of classes the policy counts how often an expert in it was used at the next turn. So text
that returns to the same experts teaches it to trust recency, and text that jumps teaches it to trust frequency. The
probabilities of a layer's experts add up to about the number that is active, whichever layer it is, so every layer is
given a fair share without a quota. Plain LRU lets the layers computed last drive out those that come next: with fewer
slots than one pass touches it never hits at all.

The best possible choice, with the future known, is Belady's: L. A. Belady, "A study of replacement algorithms for a
virtual-storage computer", IBM Systems Journal 5(2), 1966. bench/replay.py compares; docs/LOG.md says what was tried.

Pure Python, no torch: a decision costs some microseconds a layer, where reading an expert costs milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Collection

Key = tuple[int, int]  # (layer, expert)

SLOW = 0.95  # share of a rate of use that is left one turn later
COUNTS_KEPT = 0.999  # share of a class's counts that is left when one more is counted, so that they follow the text
PRIOR = 4.0  # counts that the rate of use stands for, while a class has few of its own
RATE_SHARE = 0.1  # of p that is the expert's own rate, which orders the experts of one class
LEAST_P = 1e-3  # an expert never seen again waits a thousand passes, not for ever
SETTLING = 4  # turns of a layer before its rates mean anything
_LONG_AGO = 64  # turns, for an expert that was never used


class Policy:
    """Keeps account of which keys are held, at most n_slots of them, and names the one to evict.

    The computation says when a layer's turn begins. A key that enters a slot is admitted, as used in that turn or as
    only expected to be used in a later one; a key that is used while it is held is hit. Admission and hits of one turn
    count as one use. Equal histories give equal decisions.
    Raises ValueError where a caller breaks this: admitting a held key or into full slots, hitting a key that is not
    held, evicting where every held key is pinned.
    """

    def __init__(self, n_slots: int, n_layers: int):
        if n_slots < 1 or n_layers < 1:
            raise ValueError(f"n_slots {n_slots} and n_layers {n_layers} must be at least 1")
        self.n_slots, self.n_layers = n_slots, n_layers
        self._layers = [_Layer() for _ in range(n_layers)]
        self._n_held = 0
        self._layer = 0  # whose turn it is
        self._counts: dict[tuple[int, int], tuple[float, float]] = {}  # class -> turns seen in it, uses in these

    def __len__(self) -> int:
        return self._n_held

    def __contains__(self, key: Key) -> bool:
        return key[1] in self._layers[key[0]].held

    def turn(self, layer: int) -> None:
        """The computation has come to a layer."""
        self._layer = layer
        self._end_turn(self._layers[layer])

    def hit(self, key: Key) -> None:
        """A held key is used."""
        if key not in self:
            raise ValueError(f"{key} is not held")
        self._use(key)

    def admit(self, key: Key, used: bool = True) -> None:
        """A key enters a free slot. used: in the present turn, not on a guess."""
        if key in self:
            raise ValueError(f"{key} is held already")
        if self._n_held >= self.n_slots:
            raise ValueError(f"all {self.n_slots} slots are taken: evict first")
        layer = self._layers[key[0]]
        layer.held[key[1]] = None
        layer.past.setdefault(key[1], (_LONG_AGO, 0.0))
        layer.least = None
        self._n_held += 1
        if used:
            self._use(key)

    def evict(self, pinned: Collection[Key] = ()) -> Key:
        """Name the key to give up, never a pinned one; its slot is free from now on."""
        kept: dict[int, set[int]] = {}
        for layer, expert in pinned:
            kept.setdefault(layer, set()).add(expert)
        found: Key | None = None
        longest = -1.0
        for ahead in range(self.n_layers):  # from the layer after this one; the present layer's turn is farthest
            layer = (self._layer + 1 + ahead) % self.n_layers
            likely = self._least_likely(self._layers[layer], kept.get(layer, set()))
            if likely is None:
                continue
            expert, p = likely
            wait = (ahead + 1) / self.n_layers + (1 - p) / p
            if wait >= longest:
                longest, found = wait, (layer, expert)
        if found is None:
            raise ValueError(f"each of the {self._n_held} held keys is pinned")
        self.forget(found)
        return found

    def forget(self, key: Key) -> None:
        """The key is held no longer, for a reason of the caller's; nothing where it is not held."""
        layer = self._layers[key[0]]
        if key[1] in layer.held:
            del layer.held[key[1]]
            self._n_held -= 1
            layer.least = None

    def _use(self, key: Key) -> None:
        layer = self._layers[key[0]]
        layer.used.add(key[1])
        layer.least = None

    def _end_turn(self, layer: _Layer) -> None:
        """Count what the layer's last turn used, by the class in which each expert had come to it."""
        for expert, (age, rate) in layer.past.items():
            used = expert in layer.used
            if layer.turns > SETTLING:
                of_class = _class(age, rate / layer.warmth())
                seen, uses = self._counts.get(of_class, (0.0, 0.0))
                self._counts[of_class] = (seen * COUNTS_KEPT + 1, uses * COUNTS_KEPT + used)
            layer.past[expert] = (1 if used else age + 1, rate * SLOW + (1 - SLOW) * used)
        layer.used.clear()
        layer.turns += 1
        layer.least = None

    def _least_likely(self, layer: _Layer, kept: set[int]) -> tuple[int, float] | None:
        """The held expert of a layer that is least likely to be used at its next turn, and its probability."""
        if not kept and layer.least is not None:
            return layer.least
        chosen: tuple[int, float] | None = None
        for expert in layer.held:
            if expert not in kept and ((p := self._probability(layer, expert)) < (chosen or (0, 2.0))[1]):
                chosen = (expert, p)
        if not kept:
            layer.least = chosen
        return chosen

    def _probability(self, layer: _Layer, expert: int) -> float:
        """That the next turn of the layer uses the expert; the present turn counts as past."""
        age, rate = layer.past[expert]
        used = expert in layer.used
        rate = (rate * SLOW + (1 - SLOW) * used) / (1 - SLOW ** (layer.turns + 1))
        seen, uses = self._counts.get(_class(1 if used else age + 1, rate), (0.0, 0.0))
        counted = (uses + PRIOR * rate) / (seen + PRIOR)
        return min(max((1 - RATE_SHARE) * counted + RATE_SHARE * rate, LEAST_P), 1.0)


class _Layer:
    """What is held and known of one layer's experts."""

    def __init__(self) -> None:
        self.held: dict[int, None] = {}  # a dict keeps its order, so that ties are broken alike everywhere
        self.past: dict[int, tuple[int, float]] = {}  # expert -> turns since its last use, rate; before this turn
        self.used: set[int] = set()  # in the present turn
        self.turns = 0  # that are over
        self.least: tuple[int, float] | None = None  # what _least_likely last said; None once it may be wrong

    def warmth(self) -> float:
        """The rate that an expert used at every turn has reached."""
        return 1 - SLOW ** max(1, self.turns)


def _class(age: int, rate: float) -> tuple[int, int]:
    """Recency in single turns and then in half octaves; frequency in half octaves."""
    recency = age if age <= 6 else min(15, 6 + int(2 * math.log2(age / 6)) + 1)
    frequency = max(-8, math.floor(2 * math.log2(rate))) if rate > 0 else -8
    return recency, frequency
