"""The eviction policy: its account is exact whatever comes, equal histories give equal choices, and it hits where plain
LRU cannot. The replay: Belady's optimum is one, checked against every possible choice on small cases."""

import json
import random
import sys
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libremoe.errors import LibremoeError
from libremoe.eviction import Key, Policy
from libremoe.routing import Routing, reads_per_step

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import replay  # noqa: E402

N_LAYERS, N_EXPERTS = 5, 4
KEYS = st.tuples(st.integers(0, N_LAYERS - 1), st.integers(0, N_EXPERTS - 1))
# An access: the key, other keys pinned meanwhile, and whether the caller forgets it at once (a failed read).
ACCESSES = st.lists(st.tuples(KEYS, st.frozensets(KEYS, max_size=6), st.booleans()), max_size=80)


def drive(n_slots: int, made: list[tuple[Key, frozenset[Key], bool]]) -> list[Key]:
    """Use a policy as a store does, checking its account at each turn; returns the victims."""
    policy = Policy(n_slots, N_LAYERS)
    held: set[Key] = set()
    victims = []
    for key, pinned, fails in made:
        policy.turn(key[0])
        if key in held:
            policy.hit(key)
        else:
            if len(held) == n_slots:
                if held <= pinned:
                    with pytest.raises(ValueError, match="pinned"):
                        policy.evict(pinned)
                    continue
                victim = policy.evict(pinned)
                assert victim in held and victim not in pinned
                held.remove(victim)
                victims.append(victim)
            policy.admit(key)
            held.add(key)
        if fails:
            policy.forget(key)
            held.remove(key)
        assert len(policy) == len(held) <= n_slots
        assert {key for key in product(range(N_LAYERS), range(N_EXPERTS)) if key in policy} == held
    return victims


@given(st.integers(1, 12), ACCESSES)
@settings(max_examples=150, deadline=None)
def test_never_a_pinned_key_never_too_many_and_always_the_same(n_slots, made) -> None:
    assert drive(n_slots, made) == drive(n_slots, made)


def test_broken_promises_are_refused() -> None:
    policy = Policy(1, 2)
    with pytest.raises(ValueError, match="not held"):
        policy.hit((0, 0))
    with pytest.raises(ValueError, match="pinned"):
        policy.evict()
    policy.admit((0, 0))
    with pytest.raises(ValueError, match="already"):
        policy.admit((0, 0))
    with pytest.raises(ValueError, match="evict first"):
        policy.admit((1, 0))
    policy.forget((1, 1))  # not held: nothing
    assert policy.evict() == (0, 0) and len(policy) == 0
    with pytest.raises(ValueError, match="at least 1"):
        Policy(0, 1)


def test_the_expert_used_more_often_stays() -> None:
    policy = Policy(3, 1)
    for e in (0, 1, 2):
        policy.admit((0, e))
    policy.hit((0, 1))
    two_layers = Policy(3, 2)
    for turn in range(6):
        for key in ((0, 0), (0, 1), (1, 0)):
            if key != (0, 1):
                two_layers.turn(key[0])
            if turn == 0:
                two_layers.admit(key)
            elif key != (0, 1):
                two_layers.hit(key)
    assert two_layers.evict() == (0, 1)


def test_between_equals_the_one_whose_turn_is_the_farthest_goes() -> None:
    policy = Policy(4, 4)
    for layer in range(4):
        policy.turn(layer)
        policy.admit((layer, 0))
    assert policy.evict() == (3, 0)  # layer 3 has just been computed; 0, 1 and 2 come before it again


def test_a_guess_moves_neither_the_place_nor_the_account() -> None:
    """Experts of the next layer that are read while this one computes: the next layer is still the one that comes."""
    policy = Policy(6, 2)
    for turn in range(20):
        for layer in range(2):
            policy.turn(layer)
            for e in range(3):
                key, guess = (layer, e), (1 - layer, e)
                if key in policy:
                    policy.hit(key)
                    continue
                if len(policy) == 6:
                    policy.evict([key])
                policy.admit(key)
                if turn == 3 and guess not in policy:
                    policy.admit(guess, used=False)
    policy.turn(0)
    policy.forget((1, 2))
    policy.admit((1, 2), used=False)
    assert policy.evict()[0] == 0  # whose experts wait for a whole pass, though the last that came was of layer 1


def test_a_round_keeps_what_it_can() -> None:
    """Every expert of every layer in every step: all but one slot keep what they hold from step to step."""
    for n_slots in (2, 5, 7):
        reads = reads_per_step(Routing(2, 8, 2, [[list(range(8))] * 2] * 50), n_slots)
        assert 16 - n_slots <= reads <= 16 - 0.9 * (n_slots - 1)


def _trace(steps: list[list[list[int]]], n_experts: int) -> replay.Trace:
    return replay.Trace(len(steps[0]), n_experts, 1, steps, "made")


def skewed(n_steps: int, n_layers: int = 8, n_experts: int = 8, seed: int = 0) -> replay.Trace:
    """Two of eight experts a layer, some more popular than others, differently in each layer."""
    draw = random.Random(seed)
    weights = [[draw.random() ** 3 + 0.02 for _ in range(n_experts)] for _ in range(n_layers)]
    steps = []
    for _ in range(n_steps):
        layers = []
        for layer in range(n_layers):
            ids: list[int] = []
            while len(ids) < 2:
                e = draw.choices(range(n_experts), weights[layer])[0]
                if e not in ids:
                    ids.append(e)
            layers.append(ids)
        steps.append(layers)
    return _trace(steps, n_experts)


def best_by_trying(trace: replay.Trace, n_slots: int) -> int:
    """The most hits that any choice of victims gives: every choice is tried."""
    order = [key for _, key in replay.accesses(trace)]
    states: dict[frozenset[Key], int] = {frozenset(): 0}
    for key in order:
        after: dict[frozenset[Key], int] = {}
        for held, hits in states.items():
            if key in held:
                options = [(held, hits + 1)]
            elif len(held) < n_slots:
                options = [(held | {key}, hits)]
            else:
                options = [(held - {victim} | {key}, hits) for victim in held]
            for state, n in options:
                after[state] = max(after.get(state, -1), n)
        states = after
    return max(states.values())


@given(st.integers(1, 4), st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=2), min_size=1, max_size=7))
@settings(max_examples=100, deadline=None)
def test_belady_is_the_optimum(n_slots, chosen) -> None:
    trace = _trace([[[e] for e in step] for step in chosen], 3)
    best = replay.belady(trace, n_slots)
    assert best == best_by_trying(trace, n_slots)
    for make in replay.POLICIES.values():
        assert replay.replay(trace, make(n_slots, 2), n_slots) <= best


def test_where_lru_never_hits_ours_does() -> None:
    trace = skewed(300)
    n_slots = 12  # one pass touches 16
    hits = {name: replay.replay(trace, make(n_slots, 8), n_slots) for name, make in replay.POLICIES.items()}
    assert hits["lru"] < 0.02 * 300 * 16
    assert hits["ours"] > 0.65 * replay.belady(trace, n_slots)  # draws are independent: none knows the next one


def test_every_layer_has_its_share() -> None:
    """Layers alike in their routing are held alike, the first ones no more than the last."""
    draw = random.Random(1)
    weights = [0.3, 0.3, 0.2, 0.1, 0.05, 0.05]
    policy, held = Policy(18, 6), set()
    for _ in range(400):
        for layer in range(6):
            policy.turn(layer)
            key = (layer, draw.choices(range(6), weights)[0])
            if key in held:
                policy.hit(key)
                continue
            if len(held) == 18:
                held.remove(policy.evict([key]))
            policy.admit(key)
            held.add(key)
    counts = [sum(layer == i for layer, _ in held) for i in range(6)]
    assert min(counts) >= 2 and max(counts) <= 4


def test_a_popular_expert_outlasts_a_scan() -> None:
    """A prompt touches every expert once; what decoding used before is still preferred after it."""
    policy = Policy(4, 2)
    for turn, layer in product(range(50), range(2)):
        key = (layer, 0)
        policy.turn(layer)
        if turn:
            policy.hit(key)
        else:
            policy.admit(key)
    for layer, e in product(range(2), range(1, 6)):
        if e == 1:
            policy.turn(layer)
        if len(policy) == 4:
            policy.evict([(layer, e)])
        policy.admit((layer, e))
    assert (0, 0) in policy and (1, 0) in policy


def test_a_trace_is_read_back_and_replayed(tmp_path, capsys, monkeypatch) -> None:
    path = tmp_path / "t.jsonl"
    lines = [{"n_layers": 2, "n_experts": 4, "n_active": 2}, {"n_tokens": 2, "layers": [[0, 1, 1, 2], [3, 0, 3, 0]]},
             {"n_tokens": 1, "layers": [[0, 1], [3, 1]]}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    trace = replay.read_trace(path)
    assert trace.steps == [[[0, 1, 2], [3, 0]], [[0, 1], [3, 1]]]
    monkeypatch.setattr(sys, "argv", ["replay.py", str(path), "--budgets", "1", "--json"])
    replay.main()
    row = json.loads(capsys.readouterr().out)[0]
    assert row["slots"] == 8 and row["belady"] == 3 / 9 and set(row["of_belady"].values()) == {1.0}


@pytest.mark.parametrize(("text", "complaint"), [
    ("", "at least one step"),
    ("[]\n", "line 1 is no JSON object"),
    ('{"n_layers": 0, "n_experts": 4, "n_active": 2}\n', "line 1 must have"),
    ('{"n_layers": 1, "n_experts": 4, "n_active": 2}\n{"layers": [[0], [1]]}\n', "line 2 must have"),
    ('{"n_layers": 1, "n_experts": 4, "n_active": 2}\n{"layers": [[4]]}\n', "not one of 4"),
])
def test_a_broken_trace_is_named(tmp_path, text, complaint) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(LibremoeError, match=complaint):
        replay.read_trace(path)


def test_recorded_routing_is_the_routers(tmp_path) -> None:
    golden = Path(__file__).parent / "golden" / "tiny-grok1" / "ckpt-0"
    text, out = tmp_path / "text", tmp_path / "t.jsonl"
    text.write_bytes(bytes(range(32, 127)))
    replay.record(str(golden), text.read_bytes(), 8, 16, out)
    trace = replay.read_trace(out)
    assert all(len(ids) == trace.n_active for step in trace.steps[1:6] for ids in step)
    assert len(trace.steps[0][0]) >= trace.n_active  # the prompt's step
