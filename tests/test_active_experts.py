"""experts=k: another number of experts for one request, chosen and weighted by the family's own rule, whoever else is
in the batch; and keys and values of one number never serve another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import ModuleType

import pytest
import tiny
import torch
from serving import Running, post, served, tiny_engine
from test_engine import backends
from tiny import assert_empty, finish, generate, prompts

from libremoe import cli
from libremoe.batch import Batch
from libremoe.engine.engine import Engine
from libremoe.errors import LibremoeError
from libremoe.ops import choose, reference
from libremoe.quant import quantize
from libremoe.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
FAMILIES = [tiny.GROK, tiny.MIXTRAL]


@pytest.fixture(params=backends(), ids=lambda ops: ops.__name__.rsplit(".", 1)[-1])
def ops(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


def with_experts(k: int | None, **fields) -> SamplingParams:
    return dataclasses.replace(GREEDY, experts=k, **fields)


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config.family)
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_k_experts_give_what_a_model_of_k_experts_gives(config, k, ops):
    """The same weights in a model whose own number is k: the rule for gates is then the family's."""
    prompt = prompts(1, 100, seed=k)[0]
    own = tiny.model(dataclasses.replace(config, n_experts_per_tok=k), ops=ops)
    asked = tiny.model(config, ops=ops)
    expected = generate(Engine(own, n_blocks=8), prompt, GREEDY)
    assert generate(Engine(asked, n_blocks=8), prompt, with_experts(k)) == expected


def mixed_batch(lengths: list[int], counts: list[int]) -> tuple[Batch, torch.Tensor]:
    batch = Batch.of_whole(lengths)
    batch.n_active = counts
    return batch, torch.randint(3, 256, (sum(lengths),), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config.family)
@pytest.mark.parametrize("format", ["f32", "int8", "int4"])
def test_bits_of_a_sequence_do_not_depend_on_what_others_want(config, format):
    if choose() is reference:
        pytest.skip("plain torch rounds a product differently for another number of rows")
    model = tiny.model(config)
    if format != "f32":
        for row in model.blocks[0].moe.experts._experts:
            row[:] = [type(e)(*(quantize(w, format) for w in (e.gate, e.up, e.down))) for e in row]
    lengths, counts = [5, 1, 30, 7, 2], [2, 1, 4, 3, 2]
    batch, tokens = mixed_batch(lengths, counts)
    with torch.inference_mode():
        together = model(tokens, batch)
        for i, (start, stop) in enumerate(zip(batch.starts, batch.starts[1:], strict=False)):
            alone = Batch.of_whole([lengths[i]])
            alone.n_active = [counts[i]]
            assert torch.equal(model(tokens[start:stop], alone), together[start:stop]), (i, counts[i])


def test_mixed_numbers_in_one_engine_give_the_tokens_of_each_alone(ops):
    model = tiny.model(tiny.GROK, ops=ops)
    requests = [(p, with_experts([None, 1, 2, 3, 4][i % 5])) for i, p in enumerate(prompts(10, 80))]
    alone = [generate(Engine(model, n_blocks=8), *request) for request in requests]
    engine = Engine(model, n_blocks=7, max_running=10)
    together = [engine.add(*request) for request in requests]
    finish(engine)
    assert [seq.output_ids for seq in together] == alone
    assert_empty(engine)


def test_a_prefix_is_shared_among_requests_of_one_number_only(ops):
    model = tiny.model(tiny.GROK, ops=ops)
    prompt = prompts(1, 400, seed=3)[0] * 3
    prompt = prompt[:150]
    engine = Engine(model, n_blocks=64)
    for k, hits in [(None, 0), (1, 0), (None, 128), (2, 256), (1, 384), (4, 384)]:  # 2 is the model's own number
        fresh = generate(Engine(model, n_blocks=8), prompt, with_experts(k))
        assert generate(engine, prompt, with_experts(k)) == fresh
        assert engine.stats().prefix_hit_tokens == hits, k


def test_what_cannot_be_is_refused_in_a_sentence(capsys):
    engine = Engine(tiny.model(tiny.GROK), n_blocks=8)
    with pytest.raises(LibremoeError, match="experts is 5; this model has 4 experts, 2 of which work on a token"):
        engine.add([5], with_experts(5))
    with pytest.raises(LibremoeError, match="no experts to choose among"):
        Engine(tiny.model(tiny.LLAMA), n_blocks=8).add([5], with_experts(2))
    for bad in (0, -1, 1.5, True):
        with pytest.raises(LibremoeError, match="experts is"):
            with_experts(bad)
    assert not engine.has_work()


def test_the_flag_changes_what_is_said(capsys):
    said = []
    for k in ("1", "2", "4"):
        path = str(tiny_checkpoint())
        assert cli.main(["run", path, "--ids", "5,6,7", "--temperature", "0", "--max-tokens", "8", "--experts", k]) == 0
        said.append(capsys.readouterr().out)
    assert len(set(said)) == 3
    assert cli.main(["run", path, "--ids", "5", "--max-tokens", "3", "--experts", "99"]) == 2
    assert "experts is 99" in capsys.readouterr().err


def tiny_checkpoint():
    from test_cli import CKPT

    return CKPT


# Over HTTP

SAID = "Say something."
CHAT = {"messages": [{"role": "user", "content": SAID}], "max_tokens": 12, "temperature": 0}
BODIES = {
    "/v1/completions": {"prompt": SAID, "max_tokens": 12, "temperature": 0},
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"input": SAID, "max_output_tokens": 12, "temperature": 0},
    "/v1/messages": CHAT,
}


def served_tokens(running: Running, path: str, **more) -> list[int]:
    """The ids of the answer, which a tiny model's text does not tell apart."""
    sequences, stream = [], running.service.engine.stream

    async def listened(*args, **kwargs):
        found = await stream(*args, **kwargs)
        sequences.append(found.sequence)
        return found

    running.service.engine.stream = listened
    try:
        found = post(running, path, BODIES[path] | more)
    finally:
        running.service.engine.stream = stream
    assert found.status_code == 200, found.text
    return sequences[0].output_ids


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with served(tiny_engine(tiny.MIXTRAL)) as running:  # GROK's tied table, so small, repeats what it reads
        yield running


@pytest.mark.parametrize("k", [1, 3, 4])
def test_requests_over_http_choose_their_experts(running, k):
    """The answer is that of a server whose model has k for its own number."""
    with served(tiny_engine(dataclasses.replace(tiny.MIXTRAL, n_experts_per_tok=k))) as own:
        for path in BODIES:
            expected = served_tokens(own, path)
            assert served_tokens(running, path, experts=k) == expected
            assert served_tokens(running, path) != expected


def test_what_is_no_number_of_experts_is_a_400_that_says_so(running):
    for path, body in BODIES.items():
        for wrong in (0, -1, 5, "2", 1.5, True, 2**60):
            found = post(running, path, {**body, "experts": wrong})
            assert found.status_code == 400 and "experts" in found.json()["error"]["message"], (path, wrong)
        found = post(running, path, {**body, "experts": 5})
        assert "has 4 experts, 2 of which" in found.json()["error"]["message"]
    with served(tiny_engine(tiny.LLAMA)) as dense:
        for path, body in BODIES.items():
            found = post(dense, path, {**body, "experts": 1})
            assert found.status_code == 400 and "no experts" in found.json()["error"]["message"]
