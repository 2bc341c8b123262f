"""Which experts worked on each token, as the engine reports it, against the router of the reference asked anew."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from libremoe.batch import Batch
from libremoe.engine.engine import Engine
from libremoe.engine.sequence import Output
from libremoe.model import Transformer
from libremoe.sampling import SamplingParams


def expected(model: Transformer, tokens: list[int]) -> list[list[list[int]]]:
    """[layer][position]: experts that the router chooses over the whole text at once, without a cache."""
    batch = Batch.of_whole([len(tokens)])
    chosen: list[list[list[int]]] = []
    hooks = [block.moe.router.register_forward_hook(lambda _, __, out: chosen.append(out[0].tolist()))
             for block in model.blocks]
    try:
        with torch.inference_mode():
            model(torch.tensor(tokens), batch)
    finally:
        for hook in hooks:
            hook.remove()
    return chosen


def drained(engine: Engine) -> list[Output]:
    outputs = []
    while engine.has_work():
        outputs += engine.step()
    return outputs


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@settings(max_examples=12, deadline=None)
@given(prompts=st.lists(st.lists(st.integers(3, 60), min_size=1, max_size=90), min_size=1, max_size=4),
       seed=st.integers(0, 1000), own=st.lists(st.sampled_from([None, 1, 3]), min_size=4, max_size=4))
def test_reported_experts_are_those_of_the_router(backend: str, prompts: list[list[int]], seed: int,
                                                  own: list[int | None]) -> None:
    """In a batch with others, prompts in pieces; sequences that want other numbers of experts, and that report none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIBREMOE_OPS", backend)
        model = tiny.model(tiny.GROK)
        engine = Engine(model, max_running=4, step_tokens=32)
        seqs = [engine.add(p, SamplingParams(temperature=1.0, seed=seed, max_tokens=6, experts=own[i], ignore_eos=True),
                           report_experts=i != 1) for i, p in enumerate(prompts)]
        outputs = drained(engine)
        for i, seq in enumerate(seqs):
            reports = [o.experts for o in outputs if o.seq_id == seq.id and o.token is not None]
            assert len(reports) == 6
            if i == 1:
                assert set(reports) == {None}
                continue
            k = own[i] or tiny.GROK.n_experts_per_tok
            assert all(len(layers) == tiny.GROK.n_layers and all(len(ids) == k for ids in layers) for layers in reports)
            if own[i] is None:  # the whole text at once is computed with the model's own number
                layers = expected(model, seq.prompt_ids + seq.output_ids)
                for t, report in enumerate(reports):
                    position = len(seq.prompt_ids) + t - 1
                    assert report == tuple(tuple(layer[position]) for layer in layers), (i, t)


def test_a_dense_model_reports_none() -> None:
    engine = Engine(tiny.model(tiny.LLAMA), max_running=1)
    engine.add([5, 6], SamplingParams(max_tokens=2), report_experts=True)
    assert {o.experts for o in drained(engine)} == {None}


def test_drafted_tokens_report_too() -> None:
    model = tiny.model(dataclasses.replace(tiny.GROK))
    plain, drafting = Engine(model, max_running=1), Engine(model, max_running=1, draft=2)
    found = []
    for engine in (plain, drafting):
        engine.add([5, 6, 7], SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True), report_experts=True)
        found.append([(o.token, o.experts) for o in drained(engine)])
    assert found[0] == found[1] and all(experts for _, experts in found[0])
