"""Intervals do what they promise: counted over simulated runs, at a fixed number of items and while one looks."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libremoe.evals.published import PUBLISHED
from libremoe.evals.stats import decide, ratio_interval, running_interval, stratified, wilson

RUNS = 1000
PROMISED = 0.93  # of 1,000 runs; the intervals claim 0.95


@pytest.mark.parametrize("truth", [0.02, 0.24, 0.5, 0.73, 0.97])
@pytest.mark.parametrize("n", [30, 164, 400])
def test_wilson_holds_the_true_score(truth: float, n: int) -> None:
    draw = random.Random(f"{truth}/{n}")
    held = 0
    for _ in range(RUNS):
        low, high = wilson(sum(draw.random() < truth for _ in range(n)), n)
        held += low <= truth <= high
    assert held >= PROMISED * RUNS or n * min(truth, 1 - truth) < 5  # a handful of outcomes: 0.91 is the best there is


@pytest.mark.parametrize("truth,published", [(0.62, 0.629), (0.73, 0.70), (0.25, 0.239), (0.05, 0.135), (0.629, 0.629)])
def test_the_running_interval_holds_the_true_score_however_one_stops(truth: float, published: float) -> None:
    """The rule of --budget: stop when it is decided, or at the last item. A wrong interval would show most here."""
    draw = random.Random(f"{truth}/{published}")
    held = wrong = wilson_held = 0
    for _ in range(RUNS):
        total, stopped = 0, False  # Wilson's would have stopped
        for n in range(1, 401):
            total += draw.random() < truth
            if n % 20 == 0 and not stopped and (n == 400 or decide(wilson(total, n), published)):
                stopped = True
                low, high = wilson(total, n)
                wilson_held += low <= truth <= high
            if n % 20 == 0 and decide(running_interval(total, n), published):
                break
        interval = running_interval(total, n)
        held += interval.low <= truth <= interval.high
        said = decide(interval, published)
        wrong += said is not None and said != ("above" if truth > published else "below")
    assert held >= PROMISED * RUNS
    assert wrong <= 0.05 * RUNS
    if truth == published:  # it runs to the end here, so Wilson's has had every look
        assert wilson_held < PROMISED * RUNS  # why the other one is there


def test_the_running_interval_holds_on_a_stratified_sample_without_replacement() -> None:
    groups = ["easy"] * 300 + ["hard"] * 200
    draw = random.Random(5)
    right = [draw.random() < (0.9 if group == "easy" else 0.2) for group in groups]
    truth, held = sum(right) / len(right), 0
    for seed in range(RUNS):
        total = n = 0
        for n, i in enumerate(stratified(groups, seed), 1):
            total += right[i]
            if n % 20 == 0 and (decide(running_interval(total, n), 0.6) or n == 300):
                break
        low, high = running_interval(total, n)
        held += low <= truth <= high
    assert held >= PROMISED * RUNS


@given(st.integers(0, 2000), st.data())
def test_intervals_are_intervals(n: int, data: st.DataObject) -> None:
    total = data.draw(st.integers(0, n)) if n else 0
    for interval in (wilson(total, n), running_interval(total, n)):
        assert 0 <= interval.low <= (total / n if n else 0.5) <= interval.high <= 1
        other = (wilson if interval == wilson(total, n) else running_interval)(n - total, n)
        assert interval.low == pytest.approx(1 - other.high, abs=1e-9)
    assert running_interval(total, n).low <= wilson(total, n).low + 1e-12 or n < 3


def test_the_order_is_in_proportion_at_every_length() -> None:
    groups = ["a"] * 100 + ["b"] * 50 + ["c"] * 10
    order = stratified(groups, 3)
    assert sorted(order) == list(range(160)) and order == stratified(groups, 3) != stratified(groups, 4)
    for n in range(1, 161):
        counts = Counter(groups[i] for i in order[:n])
        assert all(abs(counts[g] - n * groups.count(g) / 160) <= 1.5 for g in "abc")


def test_every_item_is_about_as_likely_to_be_early() -> None:
    first = Counter(i for seed in range(2000) for i in stratified(["a"] * 40 + ["b"] * 20, seed)[:30])
    assert all(abs(first[i] - 1000) < 100 for i in range(60))


def test_ratio_interval() -> None:
    ratio, (low, high) = ratio_interval([(1, 2), (2, 2), (0, 1), (3, 3)])
    assert ratio == 6 / 8 and 0 < low < ratio < high <= 1
    assert ratio_interval([(0, 1)] * 3) == (0, wilson(0, 3))  # no zero width
    assert ratio_interval([(0, 2), (0, 3)]) == (0, (0, 1))


def test_published_margins_are_those_announced() -> None:
    margins = {one.task: round(100 * one.margin, 1) for one in PUBLISHED if one.model == "Grok-1"}
    assert margins == {"mmlu": 0.7, "gsm8k": 2.6, "humaneval": 7.4, "math": 1.2}
