"""load(), streams of text and their ends, on the golden checkpoint and on tiny models with a byte tokenizer."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import libremoe
from libremoe import loading
from libremoe.errors import CheckpointError, LibremoeError
from libremoe.language_model import LanguageModel, load
from libremoe.sampling import SamplingParams
from libremoe.tiny import byte_tokenizer
from libremoe.tokenizer_hf import HFTokenizer
from libremoe.weights import shared_names

GOLDEN = Path(__file__).parent / "golden" / "tiny-grok1"
LOGITS_ATOL = 2e-4  # golden/README: float32 against the matching float32 numbers
BF16_ATOL = 0.2  # the limit for bfloat16 there, on prompts whose router decisions are not close
INT8_KV_ATOL = 0.5  # keys and values in int8; here and there they make a router choose another expert
LOGPROB_ATOL = 1e-4  # the same sums in another order
CONFIG = dataclasses.replace(tiny.GROK, vocab_size=300)  # room for the 256 bytes


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "golden.npz") as file:
        return {name: file[name] for name in file.files}


def load_plain(**options: Any) -> LanguageModel:
    """The golden checkpoint on plain torch; compiled kernels round activations to 8 bits, where weights have 8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIBREMOE_OPS", "reference")
        return load(GOLDEN / "ckpt-0", **options)


@pytest.fixture(scope="module")
def official() -> LanguageModel:
    return load_plain()


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    """Text from random weights: bytes, most of them no characters by themselves."""
    tokenizer = HFTokenizer(Path("bytes"), byte_tokenizer(CONFIG.vocab_size).encode())
    return LanguageModel(tiny.model(CONFIG), tokenizer)


# The official checkpoint.


@pytest.mark.parametrize("prompt", ["p1", "p7", "p33"])
def test_logits_and_greedy_tokens_are_the_official_ones(official, golden, prompt):
    ids = golden[f"f32/{prompt}/tokens"].tolist()
    logits = official.logits(ids)
    assert (logits.dtype, tuple(logits.shape)) == (torch.float32, (len(ids), official.config.vocab_size))
    np.testing.assert_allclose(logits.numpy(), golden[f"f32/{prompt}/logits"], rtol=0, atol=LOGITS_ATOL)
    expected = golden[f"f32/{prompt}/dec_tokens"].tolist()
    done = official.generate(ids, temperature=0, max_tokens=len(expected), ignore_eos=True)
    assert (done.tokens, done.text, done.finish_reason) == (expected, "", "length")
    assert (done.usage.prompt_tokens, done.usage.total_tokens) == (len(ids), len(ids) + len(expected))


def test_cached_decoding_on_the_backend_of_this_machine_is_its_own_argmax(golden):
    lm = load(GOLDEN / "ckpt-0")
    tokens = golden["f32/p33/tokens"].tolist()
    done = lm.generate(tokens, temperature=0, max_tokens=12, ignore_eos=True)
    for token in done.tokens:
        assert token == int(lm.logits(tokens)[-1].argmax())
        tokens.append(token)


def test_mapped_files_give_the_same_numbers(official):
    ids = [5, 17, 23]
    assert torch.equal(load_plain(mmap=True).logits(ids), official.logits(ids))


def test_bfloat16_activations_are_close_and_keep_their_cache_in_bfloat16(golden):
    half = load_plain(dtype="bf16")
    logits = half.logits(golden["f32/p33/tokens"].tolist())
    np.testing.assert_allclose(logits.numpy(), golden["f32/p33/logits"], rtol=0, atol=BF16_ATOL)
    assert half.engine.kv.layers[0].k.dtype == torch.bfloat16


def test_keys_and_values_are_kept_in_what_was_asked_for(golden):
    tokens = golden["f32/p33/tokens"].tolist()
    exact, narrow = load_plain(), load_plain(kv="int8")
    assert (exact.kv_dtype, exact.engine.kv.dtype) == (torch.float32, torch.float32)
    assert (narrow.kv_dtype, narrow.engine.kv.dtype) == (torch.int8, torch.int8)
    assert load_plain(kv=torch.bfloat16).engine.kv.layers[0].v.dtype == torch.bfloat16
    wanted, got = exact.logits(tokens), narrow.logits(tokens)  # through a cache, as in answers
    assert 0 < float((got - wanted).abs().max()) < INT8_KV_ATOL
    first = narrow.generate(tokens, temperature=0, max_tokens=1, logprobs=0)
    assert first.logprobs[0].logprob == pytest.approx(float(got[-1].log_softmax(-1).max()), abs=1e-4)


def test_progress_reaches_the_size_of_the_files():
    seen: list[tuple[int, int]] = []
    load(GOLDEN / "ckpt-0", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_each_tensor_is_read_once(monkeypatch):
    from libremoe.weights.grok import GrokReader

    reads: list[str] = []
    read = GrokReader.read
    monkeypatch.setattr(GrokReader, "read", lambda self, name: (reads.append(name), read(self, name))[1])
    lm = load(GOLDEN / "ckpt-0")
    assert sorted(set(reads)) == sorted(reads)
    assert set(shared_names(lm.config)) <= set(reads)


def test_what_does_not_fit_into_memory_is_refused_with_numbers_and_ways_out(monkeypatch):
    monkeypatch.setattr(loading, "available_bytes", lambda: 1000)
    with pytest.raises(LibremoeError, match=r"need 0\.0 GB of memory, 0\.0 GB are free: .*--memory.*int4"):
        load(GOLDEN / "ckpt-0")
    load(GOLDEN / "ckpt-0", mmap=True)


def test_wrong_paths_types_and_tokenizers_are_sentences(tmp_path, lm):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(LibremoeError, match="dtype must be float32 or bfloat16, not int8"):
        load(GOLDEN / "ckpt-0", dtype="int8")
    with pytest.raises(LibremoeError, match="kv must be float32, bfloat16 or int8, not int4"):
        load(GOLDEN / "ckpt-0", kv="int4")
    with pytest.raises(CheckpointError):
        load(GOLDEN / "ckpt-0", tokenizer=tmp_path / "tokenizer.model")
    with pytest.raises(LibremoeError, match="300 ids, the model 256: they do not belong together"):
        LanguageModel(tiny.model(tiny.GROK), lm.tokenizer)
    assert load(GOLDEN / "ckpt-0", tokenizer="bytes").generate("Hi", max_tokens=2).usage.prompt_tokens == 2


def test_without_a_tokenizer_text_is_refused_and_ids_are_not(official):
    for call in (official.stream, official.generate, official.pieces):
        with pytest.raises(LibremoeError, match="no tokenizer"):
            call("hello")
    with pytest.raises(LibremoeError, match="stop strings need a tokenizer"):
        official.generate([5], stop="x")
    assert [len(piece.tokens) for piece in official.pieces([5], max_tokens=3, ignore_eos=True)] == [1, 1, 1]


@pytest.mark.parametrize("ids", [[5, 6], (5, 6), range(5, 7), np.array([5, 6]), np.array([5, 6], np.int32),
                                 torch.tensor([5, 6]), torch.tensor([5, 6], dtype=torch.int32)], ids=repr)
def test_ids_may_come_in_any_row_of_integers(official, ids):
    assert official.logits(ids).equal(official.logits([5, 6]))
    assert official.encode(ids) == [5, 6]


@pytest.mark.parametrize("ids", [[5.5], ["5"], "hello", None, 5, [[5, 6]], [None], b"ab", {5: 1}, np.array([5.0]),
                                 np.array(5), torch.tensor([[5, 6]]), torch.tensor([5.0])], ids=repr)
def test_what_is_no_row_of_integers_is_refused(official, ids):
    with pytest.raises(LibremoeError, match="one row of whole numbers"):
        official.logits(ids)
    if not isinstance(ids, str):
        with pytest.raises(LibremoeError, match="one row of whole numbers"):
            official.generate(ids, max_tokens=1)


# Text.


def test_the_stream_joined_is_the_decoded_answer(lm):
    for seed in range(6):
        fields = {"seed": seed, "temperature": 1.5, "max_tokens": 60, "ignore_eos": True}
        done = lm.generate("größer", **fields)
        assert done.text == "".join(lm.stream("größer", **fields)) == lm.tokenizer.decode(done.tokens)
        assert len(done.tokens) == 60


def test_a_stop_string_ends_the_text_before_it_and_frees_the_engine(lm):
    fields = {"seed": 1, "temperature": 1.5, "max_tokens": 60, "ignore_eos": True}
    whole = lm.generate("a", **fields).text
    stop = whole[20:23]
    done = lm.generate("a", stop=stop, **fields)
    assert (done.text, done.finish_reason) == (whole[: whole.index(stop)], "stop")
    assert len(done.tokens) < 60
    assert "".join(lm.stream("a", stop=[stop, "never to be seen"], **fields)) == done.text
    assert not lm.engine.has_work()
    assert lm.engine.stats().blocks_used == 0


def test_an_end_of_text_id_is_counted_and_not_shown(lm):
    forced = lm.generate("a", temperature=0, max_tokens=9, logit_bias={CONFIG.eos_id: 100.0})
    assert (forced.text, forced.tokens, forced.finish_reason) == ("", [CONFIG.eos_id], "stop")
    ignored = lm.generate("a", temperature=0, max_tokens=9, logit_bias={CONFIG.eos_id: 100.0}, ignore_eos=True)
    assert (len(ignored.tokens), ignored.finish_reason) == (9, "length")


def test_closing_a_stream_ends_the_run(lm):
    stream = lm.pieces("a", max_tokens=200, ignore_eos=True)
    next(stream)
    assert lm.engine.stats().running == 1
    stream.close()
    assert not lm.engine.has_work()
    assert lm.engine.stats().blocks_used == 0
    assert lm._unread == {}


def test_two_streams_open_at_once_give_what_each_gives_alone(lm):
    fields = {"temperature": 0, "max_tokens": 20, "ignore_eos": True}
    alone = [lm.generate(prompt, **fields).tokens for prompt in ("a", "bc")]
    streams = [lm.pieces(prompt, **fields) for prompt in ("a", "bc")]
    both = list(zip(*streams, strict=True))
    assert [[piece.tokens[0] for piece in pieces] for pieces in zip(*both, strict=True)] == alone


def test_log_probabilities_are_of_the_tokens_that_were_drawn(lm):
    done = lm.generate("abc", seed=3, max_tokens=8, logprobs=2, ignore_eos=True)
    logprobs = lm.logits(lm.encode("abc") + done.tokens).log_softmax(-1)
    for i, (token, entry) in enumerate(zip(done.tokens, done.logprobs, strict=True)):
        assert entry.token == token
        assert entry.logprob == pytest.approx(float(logprobs[2 + i, token]), abs=LOGPROB_ATOL)
        assert len(entry.top) == 2


def test_bos_is_added_to_text_where_the_model_wants_it_and_never_to_ids(lm):
    config = dataclasses.replace(CONFIG, add_bos=True)
    wanting = LanguageModel(tiny.model(config), lm.tokenizer)
    assert wanting.encode("ab") == [config.bos_id, *lm.encode("ab")]
    assert wanting.encode("[BOS]ab") == wanting.encode("ab")  # it is there already
    assert wanting.encode([7, 8]) == [7, 8]
    assert lm.tokenizer.decode(lm.encode("ab")) == "ab"


def test_a_token_that_the_tokenizer_does_not_know_adds_no_text(lm):
    padded = LanguageModel(tiny.model(dataclasses.replace(CONFIG, vocab_size=320)), lm.tokenizer)
    done = padded.generate("a", temperature=0, max_tokens=3, logit_bias={310: 100.0})
    assert (done.tokens, done.text) == ([310] * 3, "")


def test_wrong_fields_and_lengths_are_sentences(lm):
    with pytest.raises(LibremoeError, match="no sampling field heat; there are: .*temperature"):
        lm.generate("a", heat=1)
    with pytest.raises(LibremoeError, match="temperature"):
        lm.generate("a", SamplingParams(), temperature=-1)
    with pytest.raises(LibremoeError, match="600 tokens and max_tokens is 5.*holds 512"):
        lm.generate([7] * 600, max_tokens=5)
    with pytest.raises(LibremoeError, match="600 tokens, the context holds 512"):
        lm.logits([7] * 600)
    for call in (lm.generate, lm.logits):
        with pytest.raises(LibremoeError, match="empty"):
            call([])
        with pytest.raises(LibremoeError, match="outside the vocabulary"):
            call([300])


def test_stats_are_those_of_the_last_run(lm):
    lm.generate([7] * 100, max_tokens=5, ignore_eos=True)
    stats = lm.stats.to_dict()
    assert (stats["prompt_tokens"], stats["tokens"]) == (100, 5)
    assert 0 < stats["first_token_s"] <= stats["seconds"]
    assert math.isfinite(stats["tokens_per_s"])
    assert "100 prompt tokens" in lm.stats.describe()
    lm.generate([7] * 100, max_tokens=1)
    assert lm.stats.shared_tokens == 64
    assert lm.stats.tokens_per_s == 0.0


# The package.


def test_public_names_are_there_and_importing_the_package_is_light():
    for name in libremoe.__all__:
        assert getattr(libremoe, name) is not None
        assert name in dir(libremoe)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = libremoe.nonsense
    code = "import sys, libremoe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
