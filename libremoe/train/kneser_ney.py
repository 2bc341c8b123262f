"""`libremoe train baseline`: a 5-gram model with modified Kneser-Ney smoothing, the measure of classical text models.

Chen & Goodman 1998, section 3 and equations 26 and 27, interpolated, over token ids: each order has its own three
discounts, lower orders count how many different words stand before an n-gram, and the lowest falls back to a uniform
choice. N-grams are numbers: the number of the first n-1 words times V, plus the last word.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from libremoe.errors import LibremoeError
from libremoe.tokenizer import open_tokenizer
from libremoe.train.loop import characters
from libremoe.train.shards import Shard


@dataclass(frozen=True)
class _Order:
    """N-grams of one length. keys: sorted (U,). counts: (U,). Of each context, by its number among the shorter n-grams:
    total (C,) and weight (C,), the share left for the shorter context. discounts: for counts 1, 2, and 3 or more."""

    keys: np.ndarray
    counts: np.ndarray
    totals: np.ndarray
    weights: np.ndarray
    discounts: np.ndarray


class KneserNey:
    """Raises LibremoeError where the text is shorter than one n-gram."""

    def __init__(self, tokens: np.ndarray, vocab_size: int, order: int = 5):
        """tokens: (N,) ids, documents one after another."""
        if order < 1 or len(tokens) < order:
            raise LibremoeError(f"{len(tokens)} tokens are too few for {order}-grams")
        self.vocab_size = vocab_size
        tokens = tokens.astype(np.int64)
        raw: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # keys, counts, where each first stands (its end)
        numbers = np.zeros(len(tokens) + 1, dtype=np.int64)  # of the n-gram that ends before a place; the empty one: 0
        ids: list[np.ndarray] = []
        for n in range(1, order + 1):
            keys = numbers[n - 1 : len(tokens)] * vocab_size + tokens[n - 1 :]
            unique, first, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
            numbers = np.concatenate([np.full(n, -1), inverse])
            ids.append(numbers)
            raw.append((unique, counts, first + n - 1))
        self.orders = [self._order(raw, ids, n) for n in range(order)]

    def _order(self, raw: list[tuple[np.ndarray, np.ndarray, np.ndarray]], ids: list[np.ndarray], n: int) -> _Order:
        keys, counts, _ = raw[n]
        if n + 1 < len(raw):  # how many different words stand before it, but for the longest and the very first n-gram
            longer_ends = raw[n + 1][2]
            counts = np.maximum(np.bincount(ids[n][longer_ends + 1], minlength=len(keys)), 1)
        contexts = keys // self.vocab_size
        n_contexts = len(raw[n - 1][0]) if n else 1
        discounts = _discounts(counts)
        taken = discounts[np.minimum(counts, 3) - 1]
        totals = np.bincount(contexts, weights=counts, minlength=n_contexts)
        left = np.bincount(contexts, weights=taken, minlength=n_contexts)
        weights = np.divide(left, totals, out=np.ones(n_contexts), where=totals > 0)
        return _Order(keys, counts, totals, weights, discounts)

    def probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """(N,) float64: of each token after those before it."""
        tokens = tokens.astype(np.int64)
        result = np.full(len(tokens), 1.0 / self.vocab_size)
        context = np.zeros(len(tokens), dtype=np.int64)  # number of the n-gram before each token, or -1
        for order in self.orders:
            known = context >= 0
            at = np.where(known, context, 0)
            keys = at * self.vocab_size + tokens
            place = np.minimum(np.searchsorted(order.keys, keys), len(order.keys) - 1)
            found = known & (order.keys[place] == keys)
            counts = order.counts[place]
            kept = np.where(found, counts - order.discounts[np.minimum(counts, 3) - 1], 0.0)
            totals = np.maximum(order.totals[at], 1e-300)
            seen = known & (order.totals[at] > 0)
            result = np.where(seen, kept / totals + order.weights[at] * result, result)
            ends = np.where(found, place, -1)
            context = np.concatenate([[-1], ends[:-1]])  # the n-gram that ends one token earlier
        return result


def _discounts(counts: np.ndarray) -> np.ndarray:
    """D1, D2, D3+ from how many n-grams occur one to four times (Chen & Goodman 1998, equation 26)."""
    n1, n2, n3, n4 = (max(int((counts == i).sum()), 1) for i in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    found = np.array([1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return np.clip(found, 0.05, [0.95, 1.95, 2.95])  # tiny texts give numbers outside


def run(args: argparse.Namespace) -> int:
    """The command. args: data, stage, order, context, rows, json. Returns 0."""
    result = baseline(args.data, args.stage, args.order, args.context, args.rows)
    if args.json:
        print(json.dumps(result))
    else:
        print(f"{result['order']}-gram Kneser-Ney on {result['tokens']:,} tokens: {result['nats_per_token']:.3f} nats "
              f"a token, perplexity a character {result['perplexity_per_character']:.3f} on {result['shard']}")
    return 0


def baseline(data: Path, stage: str, order: int, context: int, rows: int) -> dict[str, object]:
    """Scored on the rows and tokens that loop.score takes, so that the numbers may stand side by side."""
    text, valid = Shard(data / stage), Shard(data / f"valid-{stage}")
    tokenizer = open_tokenizer(data / "tokenizer.model")
    lengths = characters(tokenizer)
    model = KneserNey(np.asarray(text.tokens), tokenizer.vocab_size, order)
    losses = -np.log(model.probabilities(np.asarray(valid.tokens)))
    starts = valid.row_starts(context, False)
    chosen = starts[np.unique(np.linspace(0, len(starts) - 1, min(rows, len(starts))).astype(int))]
    nats = chars = n = 0.0
    for start in chosen:
        weights = valid.rows(np.array([start]), context, False).weights.numpy()
        part = slice(int(start) + 1, int(start) + 1 + context)
        nats += float((losses[part] * weights).sum())
        chars += float((lengths[valid.tokens[part]] * weights).sum())
        n += float(weights.sum())
    return {"order": order, "tokens": len(text.tokens), "shard": f"valid-{stage}", "nats_per_token": nats / n,
            "nats_per_character": nats / chars, "perplexity_per_character": math.exp(nats / chars)}
