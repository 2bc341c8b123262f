"""Which expert gives up its slot: the one whose next use is expected to be the farthest away.

Layers are computed in turn, so an expert of layer l cannot be needed before the turn comes round to l, and is needed
then with a probability that its past tells. That makes the expected wait, in passes through the network:

    wait = (layers until its turn) / n_layers + (1 - p) / p

p mixes two exponentially decayed rates of use: a fast one (recency: the text's present subject) and a slow one
(frequency: the expert's popularity). The probabilities of a layer's experts add up to about the number that is active,
whichever layer it is, so every layer is given a fair share without a quota. Plain LRU lets the layers computed last
drive out those that come next: with fewer slots than one pass touches it never hits at all.

The best possible choice, with the future known, is Belady's: L. A. Belady, "A study of replacement algorithms for a
virtual-storage computer", IBM Systems Journal 5(2), 1966. bench/replay.py compares.

Pure Python, no torch: a decision costs a few microseconds a layer, where reading an expert costs milliseconds.
"""

from __future__ import annotations

from collections.abc import Collection

Key = tuple[int, int]  # (layer, expert)

FAST, SLOW = 0.75, 0.985  # share of a rate that is left one pass later; chosen by replay, docs/LOG.md
FAST_WEIGHT = 0.15  # of the fast rate in p
LEAST_P = 1e-3  # an expert never seen again waits a thousand passes, not for ever


class Policy:
    """Keeps account of which keys are held, at most n_slots of them, and names the one to evict.

    A key that enters a slot, because it is used now or is expected to be used soon, is admitted; a key that is used
    while it is held is hit. Admission and hits of one pass count as one use. Equal histories give equal decisions.
    Raises ValueError where a caller breaks this: admitting a held key or into full slots, hitting a key that is not
    held, evicting where every held key is pinned.
    """

    def __init__(self, n_slots: int, n_layers: int):
        if n_slots < 1 or n_layers < 1:
            raise ValueError(f"n_slots {n_slots} and n_layers {n_layers} must be at least 1")
        self.n_slots, self.n_layers = n_slots, n_layers
        self._held: list[dict[int, None]] = [{} for _ in range(n_layers)]  # by layer; dicts keep their order
        self._n_held = 0
        self._rates: dict[Key, tuple[float, float, int]] = {}  # fast, slow, pass of the last use; evicted keys' too
        self._pass, self._layer = 0, 0  # where the computation is
        self._least: dict[int, tuple[int, int, float]] = {}  # layer -> pass, its least likely held expert, that one's p

    def __len__(self) -> int:
        return self._n_held

    def __contains__(self, key: Key) -> bool:
        return key[1] in self._held[key[0]]

    def hit(self, key: Key) -> None:
        """A held key is used."""
        if key not in self:
            raise ValueError(f"{key} is not held")
        self._use(key)

    def admit(self, key: Key) -> None:
        """A key enters a free slot."""
        if key in self:
            raise ValueError(f"{key} is held already")
        if self._n_held >= self.n_slots:
            raise ValueError(f"all {self.n_slots} slots are taken: evict first")
        self._held[key[0]][key[1]] = None
        self._n_held += 1
        self._use(key)

    def evict(self, pinned: Collection[Key] = ()) -> Key:
        """Name the key to give up, never a pinned one; its slot is free from now on."""
        kept = frozenset(pinned)
        pinned_layers = {layer for layer, _ in kept}
        found: Key | None = None
        longest = -1.0
        for ahead in range(self.n_layers):  # from the layer after this one; the present layer's turn is farthest
            layer = (self._layer + 1 + ahead) % self.n_layers
            likely = self._least_likely(layer, kept if layer in pinned_layers else frozenset())
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
        layer, expert = key
        if expert in self._held[layer]:
            del self._held[layer][expert]
            self._n_held -= 1
            self._least.pop(layer, None)

    def _use(self, key: Key) -> None:
        layer = key[0]
        # Reading ahead announces a later layer before this one is done, so only a long way back is a new pass.
        if layer != self._layer and (layer == 0 or self._layer - layer > self.n_layers // 2):
            self._pass += 1
        self._layer = layer
        self._least.pop(layer, None)
        fast, slow, last = self._rates.get(key, (0.0, 0.0, -1))
        if last == self._pass:
            return
        age = self._pass - last
        if last < 0:
            fast = slow = 0.0
        self._rates[key] = (fast * FAST**age + (1 - FAST), slow * SLOW**age + (1 - SLOW), self._pass)

    def _least_likely(self, layer: int, kept: frozenset[Key]) -> tuple[int, float] | None:
        """The held expert of a layer that is least likely to be used at its next turn, and its probability."""
        if not kept and (known := self._least.get(layer)) is not None and known[0] == self._pass:
            return known[1], known[2]
        least: tuple[int, float] | None = None
        for expert in self._held[layer]:
            if (layer, expert) in kept:
                continue
            p = self._probability((layer, expert))
            if least is None or p < least[1]:
                least = (expert, p)
        if not kept and least is not None:
            self._least[layer] = (self._pass, *least)
        return least

    def _probability(self, key: Key) -> float:
        fast, slow, last = self._rates[key]
        age = self._pass - last
        warm = 1 - SLOW ** (self._pass + 1)  # what the slow rate of an expert that is always used has reached by now
        p = FAST_WEIGHT * fast * FAST**age + (1 - FAST_WEIGHT) * slow * SLOW**age / warm
        return min(max(p, LEAST_P), 1.0)
