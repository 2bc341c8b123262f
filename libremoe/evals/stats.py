"""Intervals that say how much a score is worth.

Fixed number of items: Wilson's score interval (Wilson 1927), which keeps its coverage near 0 and 1 where p +- 1.96 s
does not. Running interval, looked at after every item and free to stop on: the confidence sequence of a uniform mixture
of binomials (Robbins 1970, Ann. Math. Stat. 41:1397), all p with (n + 1) * Binomial(k; n, p) >= 1 - level. By Ville's
inequality it holds the true score at all times at once with probability >= level, however one stops; Wilson's, looked
at repeatedly, does not. The price is a width about 1.8 times Wilson's. Values between 0 and 1 are as good as 0 and 1
for both: their variance is no larger, and the mixture stays a supermartingale.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

LEVEL = 0.95


class Interval(NamedTuple):
    low: float
    high: float


def wilson(total: float, n: int, level: float = LEVEL) -> Interval:
    """Of a proportion. total: sum of n values in [0, 1]. (0, 1) where n is 0."""
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + level) / 2)
    p, scale = total / n, 1 + z * z / n
    middle = (p + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if total == 0 else max(0.0, middle - half)  # exactly, where rounding would leave 1e-17
    return Interval(low, 1.0 if total == n else min(1.0, middle + half))


def running_interval(total: float, n: int, level: float = LEVEL) -> Interval:
    """A confidence sequence for the mean of values in [0, 1]; may be looked at after every item."""
    if n == 0:
        return Interval(0.0, 1.0)
    best = total / n
    # log of the integral over p of p^total (1-p)^(n-total), which is Beta(total + 1, n - total + 1)
    mixture = math.lgamma(total + 1) + math.lgamma(n - total + 1) - math.lgamma(n + 2)
    threshold = mixture + math.log(1 - level)

    def inside(p: float) -> bool:
        likelihood = (total * math.log(p) if total else 0.0) + ((n - total) * math.log1p(-p) if total < n else 0.0)
        return likelihood >= threshold

    low = 0.0 if total == 0 else _edge(inside, best, 0.0)
    return Interval(low, 1.0 if total == n else _edge(inside, best, 1.0))


def _edge(inside, good: float, bad: float) -> float:  # type: ignore[no-untyped-def]
    """Where a set that holds good ends on the way to bad, which it does not hold."""
    for _ in range(44):  # to 1e-13
        middle = (good + bad) / 2
        if inside(middle):
            good = middle
        else:
            bad = middle
    return bad


def ratio_interval(pairs: Sequence[tuple[float, float]], level: float = LEVEL) -> tuple[float, Interval]:
    """Sum of achieved over sum of "out of". Wilson's interval where each is out of 1; else the normal one of a ratio
    estimator whose units are the pairs, or (0, 1) where the pairs do not differ and it would have no width."""
    total = sum(of for _, of in pairs)
    if not total:
        return 0.0, Interval(0.0, 1.0)
    if all(of == 1 for _, of in pairs):
        return sum(got for got, _ in pairs) / total, wilson(sum(got for got, _ in pairs), len(pairs), level)
    ratio, n = sum(got for got, _ in pairs) / total, len(pairs)
    if n < 2:
        return ratio, Interval(0.0, 1.0)
    spread = sum((got - ratio * of) ** 2 for got, of in pairs) * n / (n - 1)
    if not spread:
        return ratio, Interval(0.0, 1.0)
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(spread) / total
    return ratio, Interval(max(0.0, ratio - half), min(1.0, ratio + half))


def decide(interval: Interval, published: float) -> str | None:
    """"above" or "below" the published score where the interval leaves no doubt, else None."""
    if interval.low > published:
        return "above"
    return "below" if interval.high < published else None


def stratified(groups: Sequence[str], seed: int) -> list[int]:
    """An order of the items, given their groups, of which every beginning has each group in proportion.

    Each group is shuffled, and its r-th of m items stands at (r + u) / m, u uniform for the group: before any mark t
    stand m t items of it on average. The same seed gives the same order.
    """
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    placed = []
    for group, items in members.items():
        draw = random.Random(f"{seed}/{group}")
        draw.shuffle(items)
        start = draw.random()
        placed += [((rank + start) / len(items), group, i) for rank, i in enumerate(items)]
    return [i for _, _, i in sorted(placed)]
