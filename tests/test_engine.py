"""The engine over tiny networks: whatever the company, the pieces, the sharing and the interruptions, a request gives
the tokens that it gives alone. Scheduling itself is tested in test_scheduler.py.
"""

from __future__ import annotations

import dataclasses
import os
import random
from types import ModuleType

import pytest
import tiny
import torch
from tiny import assert_empty, finish, generate, prompts

from libremoe.batch import Batch
from libremoe.engine.engine import Engine
from libremoe.errors import LibremoeError
from libremoe.ops import choose, reference
from libremoe.sampling import SamplingParams

# Plain torch rounds a product of matrices differently for another number of rows, by about 1e-6 of its size; keys and
# values carry that into later logits. Compiled kernels give equal bits. Log-probabilities may differ by this much:
LOGPROB_ATOL = 1e-4
HIDDEN_ATOL = 1e-5  # the same, in hidden states that a norm has brought to the size of 1

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def backends() -> list[ModuleType]:
    """Plain torch, and the compiled kernels where they are built."""
    return [reference] if choose() is reference else [reference, choose()]


@pytest.fixture(params=backends(), ids=lambda ops: ops.__name__.rsplit(".", 1)[-1])
def ops(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


@pytest.fixture(params=[None, torch.int8], ids=["exact", "int8"])
def kv(request: pytest.FixtureRequest) -> torch.dtype | None:
    """What keys and values are kept in: the type of activations, or int8."""
    return request.param


def mixed_params(n: int, max_tokens: int = 12) -> list[SamplingParams]:
    """Greedy, sampled, and sampled with penalties, in turn."""
    kinds = [
        {"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 0.8, "top_k": 20, "repetition_penalty": 1.2, "frequency_penalty": 0.5},
    ]
    return [SamplingParams(seed=i, max_tokens=max_tokens, ignore_eos=True, **kinds[i % 3]) for i in range(n)]


# Tokens do not depend on company.


@pytest.mark.parametrize("config", [tiny.GROK, tiny.LLAMA, tiny.MIXTRAL], ids=lambda config: config.family)
def test_cached_decoding_equals_whole_forward_passes(config, ops):
    model = tiny.model(config, ops=ops)
    prompt = prompts(1, 150, seed=3)[0]
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(GREEDY.max_tokens):
            tokens.append(int(model(torch.tensor(tokens), Batch.of_whole([len(tokens)]))[-1].argmax()))
    assert generate(Engine(model, n_blocks=8), prompt, GREEDY) == tokens[len(prompt) :]


@pytest.mark.parametrize("config", [tiny.GROK, tiny.MIXTRAL], ids=lambda config: config.family)
def test_a_batch_of_sixteen_gives_the_tokens_of_each_alone_and_after_a_restart(config, ops, kv):
    model = tiny.model(config, ops=ops)
    requests = list(zip(prompts(16, 140), mixed_params(16), strict=True))
    alone = [generate(Engine(model, kv_dtype=kv, n_blocks=8, max_running=1), *request) for request in requests]
    engine = Engine(model, kv_dtype=kv, n_blocks=64, max_running=16, step_tokens=200)
    together = [engine.add(*request) for request in requests]
    finish(engine)
    assert [seq.output_ids for seq in together] == alone
    assert_empty(engine)


def batches_give_the_tokens_of_each_alone(n_prompts: int) -> None:
    """With the backend of this machine: n_prompts alone, then in batches of 1, 2, ... 16 in random company, each batch
    in an engine of its own as after a restart, pieces of prompts of random sizes, blocks shared and preempted."""
    model, rng = tiny.model(tiny.GROK), random.Random(n_prompts)
    requests = list(zip(prompts(n_prompts, 140), mixed_params(n_prompts), strict=True))
    engine = Engine(model, n_blocks=8, max_running=1)
    alone = [generate(engine, *request) for request in requests]
    for size in range(1, 17):
        order = rng.sample(range(n_prompts), n_prompts)
        for start in range(0, n_prompts, size):
            engine = Engine(model, n_blocks=rng.choice([8, 16, 64]), max_running=size,
                            step_tokens=max(size, rng.choice([16, 64, 200, 512])), max_waiting=size,
                            max_waiting_tokens=1 << 20)
            together = {i: engine.add(*requests[i]) for i in order[start : start + size]}
            finish(engine)
            assert {i: seq.output_ids for i, seq in together.items()} == {i: alone[i] for i in together}, size
            assert_empty(engine)


def test_tokens_do_not_depend_on_the_batch_or_a_restart():
    batches_give_the_tokens_of_each_alone(5)


@pytest.mark.soak
def test_tokens_do_not_depend_on_the_batch_or_a_restart_at_length():
    batches_give_the_tokens_of_each_alone(int(os.environ.get("LIBREMOE_SOAK_PROMPTS", "1000")))


def test_chunked_prefill_equals_whole(ops, kv):
    model = tiny.model(ops=ops)
    prompt = prompts(1, 300, seed=5)[0]
    whole = generate(Engine(model, kv_dtype=kv, n_blocks=8, step_tokens=512), prompt, GREEDY)
    for step_tokens in (1, 7, 64, 100):
        engine = Engine(model, kv_dtype=kv, n_blocks=8, max_running=1, step_tokens=step_tokens)
        assert generate(engine, prompt, GREEDY) == whole


def test_shared_prefix_gives_the_tokens_of_unshared(ops, kv):
    model = tiny.model(ops=ops)
    common = prompts(1, 1, seed=1)[0] * 3 + [random.Random(9).randrange(3, 256) for _ in range(200)]
    requests = [common + tail for tail in prompts(5, 40, seed=2)] + [common[:192], common[:128], common[:130]]
    unshared = [generate(Engine(model, kv_dtype=kv, n_blocks=8, share_prefixes=False), p, GREEDY) for p in requests]
    engine = Engine(model, kv_dtype=kv, n_blocks=64)
    assert [generate(engine, p, GREEDY) for p in requests] == unshared
    stats = engine.stats()
    assert stats.prefix_hit_tokens == 5 * 192 - 192 + 128 + 64 + 128  # a full last block leaves a token to compute
    assert stats.prefix_lookup_tokens == sum(map(len, requests))
    assert_empty(engine)


def test_preemption_changes_no_token(ops, kv):
    model = tiny.model(ops=ops)
    requests = list(zip(prompts(6, 60, seed=4), mixed_params(6, max_tokens=90), strict=True))
    calm = [generate(Engine(model, kv_dtype=kv, n_blocks=8), *request) for request in requests]
    engine = Engine(model, kv_dtype=kv, n_blocks=6)
    hurried = [engine.add(*request) for request in requests]
    finish(engine)
    assert engine.stats().preemptions > 0
    assert [seq.output_ids for seq in hurried] == calm
    assert_empty(engine)


def test_pads_change_no_bit_of_other_sequences_nor_of_their_own_in_pieces(kv):
    """With the kernels, which give equal bits: once an engine has seen a pad, it must look at which keys count."""
    if choose() is reference:
        pytest.skip("plain torch rounds a product differently for another number of rows")
    model, params = tiny.model(tiny.GROK), dataclasses.replace(GREEDY, logprobs=0)
    clean, padded = prompts(3, 150, seed=6), [[*range(20, 120), 0, 9, 0, 5], [0, 0, 0, 5, 6, *range(20, 60)]]

    def bits(engine: Engine, texts: list[list[int]]) -> list[list[float]]:
        together = [engine.add(text, params) for text in texts]
        finish(engine)
        return [[entry.logprob for entry in seq.logprobs] for seq in together]

    alone = [bits(Engine(model, kv_dtype=kv, n_blocks=8), [text])[0] for text in [*clean, *padded]]
    for step_tokens in (512, 64, 7):
        engine = Engine(model, kv_dtype=kv, n_blocks=64, max_running=5, step_tokens=step_tokens)
        assert bits(engine, [*clean, *padded]) == alone
        assert bits(engine, clean) == alone[:3]  # and afterwards


def test_pads_in_one_prompt_change_no_other_sequence(ops, kv):
    model = tiny.model(tiny.GROK, ops=ops)
    clean, padded = prompts(1, 80, seed=6)[0], [0, 0, 9, 0, 17, 30]
    alone = [generate(Engine(model, kv_dtype=kv, n_blocks=8), p, GREEDY) for p in (clean, padded)]
    engine = Engine(model, kv_dtype=kv, n_blocks=8)
    together = [engine.add(p, GREEDY) for p in (clean, padded)]
    finish(engine)
    assert [seq.output_ids for seq in together] == alone


@pytest.mark.parametrize("step_tokens", [512, 5])
def test_log_probabilities_of_prompt_and_answer_are_those_of_the_whole_text(ops, step_tokens):
    model = tiny.model(ops=ops)
    prompt = random.Random(8).choices(range(3, 256), k=150)
    engine = Engine(model, n_blocks=8, max_running=2, step_tokens=step_tokens)
    generate(engine, prompt, GREEDY)  # so that two blocks could be shared, which must not be: their rows are wanted
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=3, ignore_eos=True)
    seq = engine.add(prompt, params, prompt_logprobs=2)
    outputs = finish(engine)[seq.id]
    tokens = prompt + seq.output_ids
    with torch.inference_mode():
        logprobs = model(torch.tensor(tokens), Batch.of_whole([len(tokens)])).log_softmax(-1)
    got = outputs[0].prompt_logprobs
    assert got[0] is None
    assert [entry.token for entry in got[1:]] == prompt[1:]
    assert all(output.prompt_logprobs is None for output in outputs[1:])
    for position, entry in enumerate([*got[1:], *seq.logprobs], start=1):
        row = logprobs[position - 1]
        assert entry.logprob == pytest.approx(float(row[tokens[position]]), abs=LOGPROB_ATOL)
        n_top = 2 if position < len(prompt) else 3
        assert [value for _, value in entry.top] == pytest.approx(row.topk(n_top).values.tolist(), abs=LOGPROB_ATOL)
    assert [(o.token, o.logprob, o.top) for o in outputs] == seq.logprobs


def test_embeddings_are_the_mean_of_the_last_hidden_states(ops):
    model = tiny.model(ops=ops)
    tokens = prompts(1, 300, seed=5)[0]
    with torch.inference_mode():
        expected = model.hidden(torch.tensor(tokens), Batch.of_whole([len(tokens)])).mean(0)
    for step_tokens in (512, 64, 7):
        engine = Engine(model, n_blocks=4, max_running=1, step_tokens=step_tokens)
        torch.testing.assert_close(engine.embed(tokens), expected, rtol=0, atol=HIDDEN_ATOL)
    with pytest.raises(LibremoeError, match="context holds 512"):
        engine.embed([5] * 513)
    with pytest.raises(LibremoeError, match="empty"):
        engine.embed([])
