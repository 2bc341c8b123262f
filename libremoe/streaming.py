"""Experts that do not fit into memory: a few in slots, the others read from the disk when a token chooses them.

    waves(layer, ids, x)   ->  what is there already is computed first, while the rest is read;
                               meanwhile the next layers' routers, applied to x, say what to read ahead

The bytes of an expert go from the disk into a slot in the layout that kernels multiply, so nothing is copied. Which
expert a slot gives up is eviction.Policy's choice. Tokens do not depend on what happened to be there: a wave changes
when an expert is computed, never the order in which a token's experts are added (ops.moe).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from libremoe.direct_read import GUESSED, NEEDED, DirectReader, Piece, Request, aligned_buffers
from libremoe.errors import CheckpointError, LibremoeError
from libremoe.eviction import Key, Policy
from libremoe.experts import Expert
from libremoe.routing import Trace

LOOKAHEAD = 2  # layers whose experts are guessed
# Slots given to guesses that nobody has used yet. For one token a guess is often wrong, and takes the slot of an expert
# that may be wanted again, so there is one, which keeps the disk at work while a layer computes, and one more for every
# FEW_GUESSED slots. What most of many tokens would choose is nearly always right: one slot in MANY_GUESSED.
FEW_GUESSED, MANY_GUESSED = 32, 8
COMING = 4  # one slot in so many is given to needed experts on their way; the others keep what will be wanted again
MANY_TOKENS = 8  # more than these are many
# Where all that comes again is in memory, what a guess would read is what the guess has got wrong: after some such,
# layers guess nothing for one token, and one in PROBED tells whether that has changed.
TRUSTED, PROBED, FORGETTING = 0.25, 16, 0.8


class Source(Protocol):
    """A reader whose experts can be read piece by piece: libremoe's own folder and the official checkpoint."""

    def expert_pieces(self, layer: int, e: int) -> list[Piece]: ...

    def expert_from(self, layer: int, e: int, pieces: Sequence[torch.Tensor]) -> Expert:
        """The expert as views into its pieces' bytes (uint8)."""
        ...


@dataclass
class StreamStats:
    """Since the store was made. An expert is looked up once for each layer of each step that chose it."""

    n_slots: int = 0
    slot_bytes: int = 0
    hits: int = 0  # found in a slot
    foreseen: int = 0  # of these, read or being read because they were guessed
    misses: int = 0
    guesses: int = 0  # reads that were begun on a guess
    wasted: int = 0  # of these, given up before they were used
    bytes_read: int = 0
    read_s: float = 0.0  # in which at least one read was under way
    stall_s: float = 0.0  # in which the computation waited for reads

    @property
    def hit_rate(self) -> float:
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 0.0

    @property
    def gb_per_s(self) -> float:
        """Of the disk, while it was reading."""
        return self.bytes_read / 1e9 / self.read_s if self.read_s else 0.0

    def counters(self) -> dict[str, float]:
        """What a server's metrics show."""
        return {"hits": self.hits, "misses": self.misses, "guesses": self.guesses, "wasted_guesses": self.wasted,
                "bytes_read": self.bytes_read, "stall_seconds": self.stall_s}

    def minus(self, before: StreamStats) -> StreamStats:
        """What was added since."""
        kept = {"n_slots", "slot_bytes"}
        return StreamStats(**{name: value if name in kept else value - getattr(before, name)
                              for name, value in vars(self).items()})

    def describe(self) -> str:
        """One line for a person."""
        return (f"experts: {self.n_slots} slots of {self.slot_bytes / 1e6:.0f} MB; {self.hits} hits "
                f"({100 * self.hit_rate:.0f} %, {self.foreseen} read ahead), {self.misses} misses, "
                f"{self.wasted} of {self.guesses} guesses wasted; {self.bytes_read / 1e9:.2f} GB read at "
                f"{self.gb_per_s:.2f} GB/s, {self.stall_s:.1f} s waited for the disk")


@dataclass
class _Slot:
    """One expert's place in memory, and what is in it or on its way into it."""

    buffer: torch.Tensor  # uint8
    key: Key | None = None
    request: Request | None = None  # until it is there
    ending: Request | None = None  # one that was cancelled, whose last reads may be under way
    expert: Expert | None = None  # views into the buffer, once it is there
    guessed: bool = False  # not used since it was read on a guess
    pins: int = 0  # computations that use it


class StreamedExperts:
    """All experts of a model in `budget` bytes. One computation at a time asks for waves."""

    def __init__(self, source: Source, n_layers: int, n_experts: int, n_active: int, budget: int,
                 reader: DirectReader | None = None):
        """Raises LibremoeError where the budget does not hold one expert."""
        self._source = source
        self._n_layers, self._n_experts, self._n_active = n_layers, n_experts, n_active
        self._keys = [(layer, e) for layer in range(n_layers) for e in range(n_experts)]
        self._pieces = {key: source.expert_pieces(*key) for key in self._keys}
        slot_bytes = slot_size(self._pieces.values())
        n_slots = min(budget // slot_bytes, len(self._keys))
        if n_slots < 1:
            raise LibremoeError(f"{budget / 1e9:.2f} GB are left for experts, and one needs {slot_bytes / 1e9:.2f} GB")
        self._policy = Policy(n_slots, n_layers)
        self._most_coming = max(1, n_slots // COMING)
        self._trust, self._doubted = 0.5, 0  # share of the last guesses that were right; times that it was too low
        self.trace: Trace | None = None
        self._predictors: list[torch.Tensor | None] = [None] * n_layers
        self._reader = reader or DirectReader()
        self._slots = [_Slot(buffer) for buffer in aligned_buffers(n_slots, slot_bytes)]
        self._where: dict[Key, _Slot] = {}
        self._lock = threading.Lock()
        self._stats = StreamStats(n_slots, slot_bytes)

    def foresee_with(self, routers: Sequence[torch.Tensor | None]) -> None:
        """routers[l] (E, D) float32: applied to what layer l - 1's experts work on, it guesses layer l's choice; the
        first one is applied to the hidden state before layer 0."""
        self._predictors = list(routers)

    def stats(self) -> StreamStats:
        with self._lock:
            return StreamStats(**{**vars(self._stats), "bytes_read": self._reader.bytes_read,
                                  "read_s": self._reader.busy_s()})

    def resident(self, layer: int) -> set[int]:
        """Experts of a layer that are in memory now."""
        with self._lock:
            return {e for (l, e), slot in self._where.items() if l == layer and slot.expert is not None}

    def close(self) -> None:
        """End the reading threads."""
        self._reader.close()

    def begin(self, h_ND: torch.Tensor) -> None:
        """See ResidentExperts.begin: the disk is at work while the first layer's attention is computed."""
        with self._lock:
            self._read_ahead(*self._guesses(-1, h_ND))

    def waves(self, layer: int, ids: Sequence[int], x_ND: torch.Tensor) -> Iterator[Mapping[int, Expert]]:
        """See ResidentExperts.waves. Raises CheckpointError, naming file and byte, where an expert cannot be read."""
        if self.trace is not None:
            self.trace.note(layer, len(x_ND), ids)
        waiting = list(ids)
        pinned: list[_Slot] = []
        with self._lock:
            self._count(layer, ids)
            guesses, most = self._guesses(layer, x_ND)
        try:
            while waiting:
                self._go_on(layer, waiting, pinned, guesses, most)
                wave = self._arrived(layer, waiting, pinned)
                waiting = [e for e in waiting if e not in wave]
                self._go_on(layer, waiting, pinned, guesses, most)  # the disk works while the wave is computed
                yield wave
                with self._lock:
                    self._unpin(pinned, [self._where[layer, e] for e in wave])
        finally:
            with self._lock:
                self._unpin(pinned, list(pinned))
                self._read_ahead(guesses, most)

    def _go_on(self, layer: int, waiting: list[int], pinned: list[_Slot], guesses: list[Key], most: int) -> None:
        """Begin reads that can begin: of guesses only once all that is needed is there or on its way."""
        with self._lock:
            if self._begin(layer, waiting, pinned):
                self._read_ahead(guesses, most)

    def _count(self, layer: int, ids: Sequence[int]) -> None:
        self._policy.turn(layer)
        for held in self._slots:
            if held.guessed and held.key is not None and held.key[0] == layer and held.key[1] not in ids:
                held.guessed = False  # a wrong guess is no more worth keeping than any other expert
                self._judge(False)
                if held.request is not None and not held.request.done.is_set():  # nor worth reading to its end
                    self._reader.cancel(held.request)
                    held.ending = held.request
                    self._forget(held)
        for e in ids:
            slot = self._where.get((layer, e))
            if slot is None:
                self._stats.misses += 1
                continue
            self._stats.hits += 1
            self._policy.hit((layer, e))
            if slot.guessed:
                self._judge(True)
            slot.guessed = False

    def _judge(self, right: bool) -> None:
        """Count a guess that was used or given up."""
        self._stats.foreseen += right
        self._stats.wasted += not right
        self._trust = FORGETTING * self._trust + (1 - FORGETTING) * right

    def _begin(self, layer: int, waiting: list[int], pinned: list[_Slot]) -> bool:
        """Pin what is there or coming, and begin to read what is not, as far as slots can be had: a few at a time, so
        that a layer of which all experts are wanted leaves to other layers what they will want again. Whether that was
        all of them."""
        known = {slot.key for slot in pinned}
        n_coming = sum(slot.expert is None for slot in pinned)
        there = [e for e in waiting if (layer, e) in self._where]
        for e in there + [e for e in waiting if e not in there]:
            if (layer, e) in known:
                continue
            slot = self._where.get((layer, e))
            if slot is not None and slot.request is not None:
                self._reader.hurry(slot.request)
            if slot is None:
                slot = self._slot_for_needed() if n_coming < self._most_coming else None
                if slot is None:
                    return False
                self._read_into(slot, (layer, e), NEEDED)
            n_coming += slot.expert is None
            slot.pins += 1
            pinned.append(slot)
        return True

    def _arrived(self, layer: int, waiting: list[int], pinned: list[_Slot]) -> dict[int, Expert]:
        """Those of `waiting` that are there: at least one, for which this waits."""
        slots = [slot for slot in pinned if slot.key in {(layer, e) for e in waiting}]
        if not slots:
            raise RuntimeError(f"all {len(self._slots)} slots are at work for another computation")
        if not any(_is_there(slot) for slot in slots):
            began = time.perf_counter()
            request = slots[0].request
            if request is not None:
                request.done.wait()
            with self._lock:
                self._stats.stall_s += time.perf_counter() - began
        found = {}
        with self._lock:
            for slot in slots:
                if _is_there(slot):
                    found[slot.key[1]] = self._expert(slot)  # type: ignore[index]
        return found

    def _expert(self, slot: _Slot) -> Expert:
        """Of a slot whose request is done. Raises what went wrong with it, and frees the slot."""
        if slot.expert is None and slot.request is not None and slot.key is not None:
            if slot.request.error is not None:
                error, key = slot.request.error, slot.key
                self._forget(slot)
                raise CheckpointError(error.path, f"{error.reason} (expert {key[1]} of layer {key[0]})")
            pieces = self._pieces[slot.key]
            slot.expert = self._source.expert_from(*slot.key, [
                buffer[piece.lead :][: piece.length]
                for piece, buffer in zip(pieces, _split(slot.buffer, pieces), strict=True)])
            slot.request = None
        if slot.expert is None:
            raise RuntimeError(f"slot of {slot.key} holds nothing")
        return slot.expert

    def _guesses(self, layer: int, x_ND: torch.Tensor) -> tuple[list[Key], int]:
        """What the next layers will probably choose, the most urgent first: the nearest layer, and in it what the most
        tokens choose; and how many slots guesses may have."""
        found: list[Key] = []
        if len(x_ND) > MANY_TOKENS:
            most = max(1, len(self._slots) // MANY_GUESSED)
        else:
            most = max(1, len(self._slots) // FEW_GUESSED)
            self._doubted += self._trust < TRUSTED
            if self._trust < TRUSTED and self._doubted % PROBED:
                return [], 0
        last = 0 if layer < 0 else min(layer + LOOKAHEAD, self._n_layers - 1)
        for ahead in range(layer + 1, last + 1):
            predictor = self._predictors[ahead]
            if self._n_active == self._n_experts:
                found += [(ahead, e) for e in range(self._n_experts)]
            elif predictor is not None:
                votes = (x_ND.float() @ predictor.T).topk(self._n_active, dim=1).indices.flatten()
                counts = votes.bincount(minlength=self._n_experts)
                found += [(ahead, e) for e in counts.argsort(descending=True, stable=True).tolist() if counts[e]]
        return found, most

    def _read_ahead(self, guesses: list[Key], most: int) -> None:
        """Begin to read what was guessed, in place of experts that are there and wait for nobody, until so many slots
        are taken by guesses."""
        n_guessed = sum(slot.guessed for slot in self._slots)
        for key in guesses:
            if key in self._where:
                continue
            if n_guessed >= most:
                return
            slot = self._free_slot() or self._give_up(_is_idle)
            if slot is None:
                return
            self._read_into(slot, key, GUESSED)
            slot.guessed = True
            n_guessed += 1
            self._stats.guesses += 1

    def _slot_for_needed(self) -> _Slot | None:
        """An empty slot, or one that is given up: guesses and reads that nobody waits for only where there is no other.
        None where all slots are at work."""
        return (self._free_slot() or self._give_up(_is_idle)
                or self._give_up(lambda slot: True))

    def _free_slot(self) -> _Slot | None:
        return next((slot for slot in self._slots if slot.key is None), None)

    def _give_up(self, may: Callable[[_Slot], bool]) -> _Slot | None:
        """A slot that no computation uses and that `may` be given up, emptied; the policy chooses among these."""
        kept = [slot.key for slot in self._slots if slot.key is not None and (slot.pins or not may(slot))]
        if len(kept) == len(self._where):
            return None
        slot = self._where[self._policy.evict(kept)]
        if slot.guessed:
            self._judge(False)
        if slot.request is not None:
            self._reader.cancel(slot.request)
            slot.ending = slot.request
        self._forget(slot)
        return slot

    def _read_into(self, slot: _Slot, key: Key, priority: int) -> None:
        if slot.ending is not None:
            slot.ending.done.wait()  # what is under way still writes to the slot
            slot.ending = None
        pieces = self._pieces[key]
        slot.key, self._where[key] = key, slot
        self._policy.admit(key, used=priority == NEEDED)
        slot.request = self._reader.read(pieces, _split(slot.buffer, pieces), priority)

    def _forget(self, slot: _Slot) -> None:
        if slot.key is not None:
            del self._where[slot.key]
            self._policy.forget(slot.key)
        slot.key = slot.request = slot.expert = None
        slot.guessed = False

    def _unpin(self, pinned: list[_Slot], slots: Iterable[_Slot]) -> None:
        for slot in slots:
            if any(slot is other for other in pinned):
                pinned[:] = [other for other in pinned if other is not slot]
                slot.pins -= 1


def slot_size(pieces: Iterable[list[Piece]]) -> int:
    """Bytes of a slot that holds any of these experts."""
    return max(sum(piece.room for piece in each) for each in pieces)


def router_for(norm_D: torch.Tensor, router_ED: torch.Tensor, seen_through_D: torch.Tensor) -> torch.Tensor:
    """A layer's router for inputs that another layer's norm has scaled: (E, D) float32.

    Both norms divide the same hidden state by its root mean square, so only their scales differ. Where the scale that
    the input has is zero, nothing can be known of that dimension.
    """
    scale = torch.where(seen_through_D == 0, 0.0, norm_D.float() / seen_through_D.float())
    return router_ED.float() * scale


def _is_idle(slot: _Slot) -> bool:
    return not slot.guessed and (slot.request is None or slot.request.done.is_set())


def _is_there(slot: _Slot) -> bool:
    return slot.expert is not None or (slot.request is not None and slot.request.done.is_set())


def _split(buffer: torch.Tensor, pieces: list[Piece]) -> list[torch.Tensor]:
    """The room of each piece, one after the other."""
    ends = [0]
    for piece in pieces:
        ends.append(ends[-1] + piece.room)
    return [buffer[start:stop] for start, stop in zip(ends, ends[1:], strict=False)]
