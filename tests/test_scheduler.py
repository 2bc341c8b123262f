"""Whose turn it is, on a stub that computes nothing, so that thousands of steps are cheap: order, blocks, bounds, ends
and errors. The stub reads all tokens back from the cache, so that a block shared or overwritten wrongly shows.
"""

from __future__ import annotations

import random

import pytest
import tiny
import torch
from tiny import assert_empty, finish, generate

from libremoe.batch import BLOCK_SIZE
from libremoe.engine.engine import Engine
from libremoe.engine.scheduler import Pace
from libremoe.engine.sequence import QueueFull, Sequence
from libremoe.errors import LibremoeError
from libremoe.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.mark.parametrize("share_prefixes", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_random_lives_leak_nothing_and_change_nothing(seed, share_prefixes):
    """Requests come, are cancelled and step in random order through a cache that is too small for all."""
    draw = random.Random(seed)
    model = tiny.CountingModel()
    engine = Engine(model, n_blocks=draw.randint(6, 12), max_running=draw.randint(1, 6), max_waiting=1000,
                    step_tokens=draw.choice([6, 50, 130, 512]), share_prefixes=share_prefixes)
    stems = [[draw.randrange(3, 256) for _ in range(draw.choice([64, 128, 150]))] for _ in range(3)]
    sequences: list[Sequence] = []
    cancelled: set[int] = set()
    for _ in range(150):
        choice = draw.random()
        if choice < 0.25:
            prompt = draw.choice([[], *stems]) + [draw.randrange(3, 256) for _ in range(draw.randint(1, 80))]
            params = SamplingParams(temperature=0, max_tokens=draw.randint(1, 100), ignore_eos=True)
            sequences.append(engine.add(prompt, params))
        elif choice < 0.32 and sequences:
            victim = draw.choice(sequences)
            engine.cancel(victim)
            cancelled.add(victim.id)
        else:
            engine.step()
    outputs = finish(engine)
    assert_empty(engine)
    assert sum(engine.stats().finished.values()) == len(sequences)
    for seq in sequences:
        expected = model.continuation(seq.prompt_ids, seq.max_tokens)
        if seq.finish_reason == "length":
            assert seq.output_ids == expected
        else:
            assert seq.finish_reason == "cancelled"
            assert seq.id in cancelled
            assert seq.output_ids == expected[: len(seq.output_ids)]
        ends = [output for output in outputs.get(seq.id, []) if output.finish_reason is not None]
        assert len(ends) <= 1


def test_requests_that_arrive_together_compute_their_common_prefix_once():
    model = tiny.CountingModel()
    engine = Engine(model, n_blocks=64, step_tokens=2000)
    prompt = [5] * 200
    sequences = [engine.add([*prompt, 10 + i], GREEDY) for i in range(6)]
    finish(engine)
    assert [seq.output_ids for seq in sequences] == [model.continuation([*prompt, 10 + i], 12) for i in range(6)]
    assert [seq.num_shared for seq in sequences] == [0] + [192] * 5


def test_the_newest_is_put_back_and_comes_before_those_who_never_ran():
    model = tiny.CountingModel()
    engine = Engine(model, n_blocks=4)
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    old, new, waiting = (engine.add([token] * 100, params) for token in (5, 6, 7))
    while engine.stats().preemptions == 0:
        engine.step()
    assert engine.scheduler.running == [old]
    assert list(engine.scheduler.waiting) == [new, waiting]
    finish(engine)
    assert [seq.num_preempted for seq in (old, new, waiting)][:2] == [0, 1]
    assert new.output_ids == model.continuation([6] * 100, 60)


# Ends, errors and bounds.


def test_an_end_of_text_id_ends_the_sequence_and_is_reported():
    model = tiny.CountingModel()
    expected = model.continuation([5, 6], 12)
    engine = Engine(model, n_blocks=8, eos_ids=frozenset([expected[4]]))
    seq = engine.add([5, 6], SamplingParams(temperature=0, max_tokens=12))
    outputs = finish(engine)[seq.id]
    assert [output.token for output in outputs] == expected[:5]
    assert [output.finish_reason for output in outputs] == [None] * 4 + ["stop"]
    assert generate(engine, [5, 6], GREEDY) == expected  # ignore_eos


class Grammar:
    """Allows only the given ids, and raises at the n-th token where asked to."""

    def __init__(self, allowed: list[int], raises_at: int | None = None):
        self.allowed, self.raises_at, self.accepted = allowed, raises_at, []

    def mask(self) -> torch.Tensor:
        mask = torch.zeros(256, dtype=torch.bool)
        mask[self.allowed] = True
        return mask

    def accept(self, token: int) -> None:
        if len(self.accepted) == self.raises_at:
            raise ValueError("the grammar broke")
        self.accepted.append(token)


def test_a_constraint_steers_its_own_sequence_and_its_failure_ends_no_other():
    model = tiny.CountingModel()
    engine = Engine(model, n_blocks=16)
    grammar = Grammar([40, 41, 42])
    steered = engine.add([5, 6], GREEDY, constraint=grammar)
    broken = engine.add([5, 7], GREEDY, constraint=Grammar([50], raises_at=3))
    barred = engine.add([5, 9], GREEDY, constraint=Grammar([]))
    free = engine.add([5, 8], GREEDY)
    outputs = finish(engine)
    assert set(steered.output_ids) <= {40, 41, 42}
    assert grammar.accepted == steered.output_ids
    assert (broken.finish_reason, broken.output_ids) == ("error", [50] * 3)
    assert "the grammar broke" in outputs[broken.id][-1].error
    assert barred.finish_reason == "error"
    assert (free.finish_reason, free.output_ids) == ("length", model.continuation([5, 8], 12))
    assert_empty(engine)


def test_penalties_count_the_tokens_of_prompt_and_answer():
    engine = Engine(tiny.CountingModel(), n_blocks=16)
    params = SamplingParams(temperature=0, max_tokens=5, frequency_penalty=1.0, ignore_eos=True)
    turns = engine.add([5, 6], params, constraint=Grammar([40, 41]))  # equal logits, each draw makes one less likely
    params = SamplingParams(temperature=0, max_tokens=1, repetition_penalty=100.0, logit_bias={40: 1.0})
    other = engine.add(list(range(3, 256)), params)  # the likely token is in the prompt: 10 / 100 < 0 + 1
    finish(engine)
    assert turns.output_ids == [40, 41, 40, 41, 40]
    assert other.output_ids == [40]


def test_a_failing_forward_pass_ends_only_the_sequences_that_fail_alone():
    model = tiny.CountingModel(fails_on=13)
    engine = Engine(model, n_blocks=16)
    good = [engine.add([5 + i] * (60 + i), SamplingParams(temperature=0, max_tokens=3)) for i in range(4)]
    bad = engine.add([7, 13, 9], GREEDY)
    finish(engine)
    assert bad.finish_reason == "error"
    assert "token 13 was fed" in bad.error
    for seq in good:
        expected = model.continuation(seq.prompt_ids, 3)
        assert 13 not in expected
        assert (seq.finish_reason, seq.output_ids) == ("length", expected)
    assert_empty(engine)


def test_what_can_never_fit_is_refused_with_the_numbers():
    engine = Engine(tiny.CountingModel(), n_blocks=4)
    with pytest.raises(LibremoeError, match=r"200 tokens and max_tokens is 57.*257.*KV cache holds 256"):
        engine.add([5] * 200, SamplingParams(max_tokens=57))
    with pytest.raises(LibremoeError, match="context of the model holds 512"):
        Engine(tiny.CountingModel(), n_blocks=64).add([5] * 600)
    with pytest.raises(LibremoeError, match="empty"):
        engine.add([])
    for bad in (-1, 256):
        with pytest.raises(LibremoeError, match=f"token id {bad} is outside the vocabulary of 256"):
            engine.add([5, bad])
    with pytest.raises(LibremoeError, match="logit_bias"):
        engine.add([5], SamplingParams(logit_bias={256: 1.0}))
    assert not engine.has_work()
    exact = engine.add([5] * 200, SamplingParams(temperature=0, max_tokens=56, ignore_eos=True))
    unbounded = engine.add([6] * 250, SamplingParams(temperature=0, ignore_eos=True))
    finish(engine)
    assert (len(exact.output_ids), len(unbounded.output_ids)) == (56, 6)


def test_the_queue_is_bounded_in_requests_and_tokens():
    engine = Engine(tiny.CountingModel(), n_blocks=8, max_running=1, max_waiting=3, max_waiting_tokens=300)
    for _ in range(3):
        engine.add([5] * 10, GREEDY)
    with pytest.raises(QueueFull, match="3 requests wait, 3 may") as refusal:
        engine.add([5] * 10, GREEDY)
    assert 1 <= refusal.value.retry_after_s <= 600
    engine.step()  # one of them runs now
    with pytest.raises(QueueFull, match="44 tokens wait, this request has 312, 300 may"):
        engine.add([5] * 300, GREEDY)
    finish(engine)
    engine.add([5] * 300, GREEDY)  # an empty queue takes whatever fits the cache
    assert engine.stats().waiting_tokens == 312
    finish(engine)
    assert_empty(engine)


def test_a_deadline_ends_those_who_never_ran_and_no_others():
    model = tiny.CountingModel()
    engine = Engine(model, n_blocks=8, max_running=1)
    first = engine.add([5], GREEDY, deadline_s=0.0)
    late = engine.add([6], GREEDY, deadline_s=0.0)
    patient = engine.add([7], GREEDY, deadline_s=3600)
    first.deadline = None
    engine.step()
    first.deadline = 0.0  # long past, but it runs
    outputs = finish(engine)
    assert (late.finish_reason, late.output_ids) == ("deadline", [])
    assert "waited" in late.error
    assert [first.finish_reason, patient.finish_reason] == ["length", "length"]
    assert outputs[patient.id][-1].token == model.continuation([7], 12)[-1]
    assert_empty(engine)


def test_cancel_ends_a_sequence_with_the_next_step_wherever_it_is():
    engine = Engine(tiny.CountingModel(), n_blocks=8, max_running=1)
    running, waiting = engine.add([5], GREEDY), engine.add([6], GREEDY)
    engine.step()
    engine.cancel(running, "stop")
    engine.cancel(waiting)
    ended = {output.seq_id: output.finish_reason for output in engine.step()}
    assert ended == {running.id: "stop", waiting.id: "cancelled"}
    assert_empty(engine)
    engine.cancel(running)  # no effect on what has ended
    assert running.finish_reason == "stop"
    assert engine.step() == []


def test_a_request_for_the_prompt_alone_generates_nothing():
    engine = Engine(tiny.CountingModel(), n_blocks=8)
    seq = engine.add([5, 6, 7], SamplingParams(max_tokens=0), prompt_logprobs=0)
    (output,) = finish(engine)[seq.id]
    assert (output.token, output.finish_reason, len(output.prompt_logprobs)) == (None, "length", 3)


# Blocks.


def test_idle_blocks_are_evicted_least_recently_used_first_and_only_when_needed():
    engine = Engine(tiny.CountingModel(), n_blocks=4)
    one = SamplingParams(temperature=0, max_tokens=1)
    a, b, c = ([token] * (BLOCK_SIZE + 1) for token in (5, 6, 7))
    generate(engine, a, one)
    generate(engine, b, one)
    assert engine.stats().blocks_cached == 2
    assert engine.add(a, one).num_shared == 0  # not yet known
    finish(engine)
    assert engine.stats().prefix_hit_tokens == BLOCK_SIZE  # a is now the more recent one
    generate(engine, c, one)
    generate(engine, [8] * (3 * BLOCK_SIZE), one)  # needs three: the free one, then b's and a's; c's stays
    hits = engine.stats().prefix_hit_tokens
    generate(engine, c, one)
    assert engine.stats().prefix_hit_tokens == hits + BLOCK_SIZE
    assert_empty(engine)


def test_a_block_whose_hash_matches_but_whose_tokens_differ_is_not_shared():
    model = tiny.CountingModel()
    engine = Engine(model, n_blocks=8)
    generate(engine, [5] * 70, GREEDY)
    seq = engine.add([6] * 70, GREEDY)
    seq.block_hashes = list(next(iter(engine.scheduler.blocks._published.values())).hash for _ in range(1))
    finish(engine)
    assert seq.num_shared == 0
    assert seq.output_ids == model.continuation([6] * 70, 12)


def test_the_same_block_after_another_beginning_is_another_block():
    model = tiny.CountingModel()
    engine = Engine(model, n_blocks=16)
    tail = [9] * 64 + [4]
    for head in ([5] * 64, [6] * 64, [5] * 64):
        assert generate(engine, head + tail, GREEDY) == model.continuation(head + tail, 12)
    assert engine.stats().prefix_hit_tokens == 128


def test_decoding_goes_on_while_a_long_prompt_is_read_in_pieces():
    model = tiny.CountingModel()
    engine = Engine(model, n_blocks=16, step_tokens=32)
    talker = engine.add([5], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    engine.step()
    reader = engine.add([6] * 300, GREEDY)
    for expected in range(2, 11):
        engine.step()
        assert len(talker.output_ids) == expected
        assert reader.num_cached == 31 * (expected - 1)
    finish(engine)
    assert reader.output_ids == model.continuation([6] * 300, 12)


def test_a_pace_follows_the_speed_that_was_seen():
    pace = Pace(step_tokens=512, step_s=0.25)
    assert pace.prompt_tokens(0) == Pace.FIRST_TOKENS
    pace.note(4, 1.0)  # decoding only: says nothing
    assert pace.prompt_tokens(4) == Pace.FIRST_TOKENS
    pace.note(128, 0.16)  # 800 tokens a second
    assert pace.prompt_tokens(10) == 800 // 4 - 10
    assert pace.prompt_tokens(0) == 512
    pace.note(128, 128.0)
    assert pace.prompt_tokens(0) == int(0.5 * (800 + 1) * 0.25 * Pace.LONGER_ALONE)
    for _ in range(20):
        pace.note(64, 64.0)
    assert pace.prompt_tokens(1) == Pace.LEAST_TOKENS
    assert pace.prompt_tokens(500) == 12


def test_a_slow_machine_reads_prompts_in_pieces_that_its_readers_do_not_feel(monkeypatch):
    """A clock on which a token takes 10 ms: no step that decodes may take the 3 s of a whole prompt."""
    model, clock = tiny.CountingModel(), [0.0]
    forward = model.__call__

    def slow(tokens_N, batch, kv=None):
        clock[0] += 0.01 * len(tokens_N)
        return forward(tokens_N, batch, kv)

    monkeypatch.setattr("libremoe.engine.engine.time.monotonic", lambda: clock[0])
    engine = Engine(model, n_blocks=32, step_s=0.8)
    engine.runner.model = slow
    talker = engine.add([5], SamplingParams(temperature=0, max_tokens=60, ignore_eos=True))
    engine.step()
    engine.add([6] * 300, GREEDY)
    while engine.has_work() and talker.finish_reason is None:
        began = clock[0]
        engine.step()
        assert clock[0] - began <= 0.01 * (1 + Pace.FIRST_TOKENS)
    assert talker.output_ids == model.continuation([5], 60)


def test_abort_ends_everything_and_the_engine_goes_on():
    model = tiny.CountingModel()
    engine = Engine(model, n_blocks=8, max_running=1)
    sequences = [engine.add([5 + i], GREEDY) for i in range(3)]
    engine.step()
    assert {output.error for output in engine.abort("it broke")} == {"it broke"}
    assert [seq.finish_reason for seq in sequences] == ["error"] * 3
    assert_empty(engine)
    assert generate(engine, [9], GREEDY) == model.continuation([9], 12)


def test_a_cache_without_room_for_a_block_is_refused():
    with pytest.raises(LibremoeError, match="no room for a KV cache"):
        Engine(tiny.CountingModel(), kv_bytes=1000)
    assert Engine(tiny.CountingModel(), kv_bytes=1 << 20).stats().blocks == (1 << 20) // (64 * 512)
