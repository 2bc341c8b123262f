"""make-tiny: the same weights in every file format, a tokenizer that keeps every text, nothing half written."""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from libremoe import tiny
from libremoe.config import ModelConfig, preset
from libremoe.errors import LibremoeError
from libremoe.experts import Weight
from libremoe.quant import FORMATS, QuantTensor, pack
from libremoe.tiny import RandomReader, byte_tokenizer, is_random, make_tiny
from libremoe.weights import open_checkpoint, parameter_names

# Grok with every inconvenience: outputs that are no multiple of 16, inputs that are no multiple of 64.
SMALL = dataclasses.replace(preset("tiny"), dim=40, hidden_dim=88, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=12,
                            vocab_size=270)
SMALL_LLAMA = dataclasses.replace(preset("llama-2-7b"), dim=48, hidden_dim=72, n_layers=2, n_heads=4, n_kv_heads=2,
                                  head_dim=12, vocab_size=270)


def floats(weight: Weight) -> torch.Tensor:
    return weight.dequantize() if isinstance(weight, QuantTensor) else weight.float()


def same_weights(a: Path, b: Path) -> bool:
    first, second = open_checkpoint(a), open_checkpoint(b)
    return set(first.names()) == set(second.names()) and all(
        torch.equal(floats(first.read(name)), floats(second.read(name))) for name in first.names())


def test_one_seed_gives_the_same_weights_in_all_formats(tmp_path: Path) -> None:
    make_tiny(tmp_path / "native", "native", SMALL, seed=5)
    make_tiny(tmp_path / "ckpt", "ckpt", SMALL, seed=5)
    make_tiny(tmp_path / "gguf", "gguf", SMALL, format="f32", seed=5)
    make_tiny(tmp_path / "f32", "native", SMALL, format="f32", seed=5)
    make_tiny(tmp_path / "other", "native", SMALL, seed=6)
    for other in ("ckpt", "gguf", "f32"):
        assert same_weights(tmp_path / "native", tmp_path / other), other
    assert not same_weights(tmp_path / "native", tmp_path / "other")
    config = dataclasses.asdict(open_checkpoint(tmp_path / "ckpt").config)
    assert config == dataclasses.asdict(SMALL) | {"context_len": config["context_len"]}
    for name in ("native", "ckpt", "gguf", "f32"):
        assert is_random(open_checkpoint(tmp_path / name)), name
        assert open_checkpoint(tmp_path / name).tokenizer is not None


@pytest.mark.parametrize("format", ["bf16", *FORMATS])
@pytest.mark.parametrize("config", [SMALL, SMALL_LLAMA], ids=["grok", "llama"])
def test_every_native_format_has_the_architecture(tmp_path: Path, config: ModelConfig, format: str) -> None:
    make_tiny(tmp_path / "m", dims=config, format=format)
    reader = open_checkpoint(tmp_path / "m")
    assert reader.config == config
    assert {name: reader.entry(name).shape for name in reader.names()} == parameter_names(config)
    assert reader.entry("layers.0.attn.q.weight").format == format


@pytest.mark.parametrize("format", list(FORMATS))
def test_random_codes_are_a_packed_tensor_with_the_deviation_wanted(format: str) -> None:
    config = dataclasses.replace(SMALL, dim=200, hidden_dim=250)
    weight = RandomReader(config, format).read("layers.0.experts.0.gate.weight")
    assert isinstance(weight, QuantTensor)
    n_groups = weight.scales.shape[1]
    rows = weight.scales.transpose(1, 2).reshape(-1, n_groups)[: weight.shape[0]]
    repacked = pack(format, weight.codes(), rows, weight.group)
    assert torch.equal(repacked.data, weight.data)  # so the padding codes are those that pack() writes
    assert torch.equal(repacked.scales, weight.scales)
    # Of 50,000 values: the scatter of the scales (0.7 to 1.3) adds 1.5 %, the mean of -1/2 code up to 3 %.
    assert 0.9 < float(weight.dequantize().std()) * config.dim**0.5 < 1.1


@pytest.fixture(scope="module")
def bytes_512() -> Tokenizer:
    return Tokenizer.from_str(byte_tokenizer(512))


@given(text=st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_the_byte_tokenizer_keeps_every_text(bytes_512: Tokenizer, text: str) -> None:
    ids = bytes_512.encode(text).ids
    assert ids == [4 + byte for byte in text.encode()]
    assert bytes_512.decode(ids) == text


def test_the_byte_tokenizer_fills_its_vocabulary() -> None:
    tokenizer = Tokenizer.from_str(byte_tokenizer(1000))
    assert tokenizer.get_vocab_size() == 1000
    assert [tokenizer.token_to_id(token) for token in tiny.SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert tokenizer.decode([1, 2, 0]) == ""  # special tokens are not text
    assert len({tokenizer.decode([i]) for i in range(260, 1000)}) == 740
    with pytest.raises(LibremoeError, match="at least 260"):
        byte_tokenizer(259)


@pytest.mark.parametrize(("as_", "dims", "format", "said"), [
    ("ckpt", "llama-2-7b", "int8", "Grok-1 only"),
    ("ckpt", "tiny", "int4", "no format 'int4' as ckpt"),
    ("gguf", "tiny", "int3", "no format 'int3' as gguf"),
    ("onnx", "tiny", "int8", "no file format 'onnx'"),
    ("native", "huge", "int8", "no preset 'huge'"),
    ("native", "tiny", "q8_0", "no format 'q8_0' as native"),
])
def test_what_does_not_exist_is_refused(tmp_path: Path, as_: str, dims: str, format: str, said: str) -> None:
    with pytest.raises(LibremoeError, match=said):
        make_tiny(tmp_path / "m", as_, dims, format=format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("as_", ["native", "ckpt", "gguf"])
def test_an_existing_destination_is_left_alone(tmp_path: Path, as_: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("mine")
    with pytest.raises(LibremoeError, match="exists"):
        make_tiny(tmp_path / "m", as_, SMALL)
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["thesis.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("as_", ["ckpt", "gguf"])
def test_a_failure_leaves_nothing(tmp_path: Path, as_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tiny, "write_small", full)  # the last thing that is written
    with pytest.raises(LibremoeError, match="No space left"):
        make_tiny(tmp_path / "m", as_, SMALL)
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = Namespace(dst=tmp_path / "m", dims="tiny", layers=1, as_="native", format="int4", seed=1, head=None,
                     group=64, json=True)
    assert tiny.run(args) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["config"]["n_layers"] == 1
    assert summary["bytes"] == sum(p.stat().st_size for p in (tmp_path / "m").iterdir())


def test_tables_have_the_format_asked_for(tmp_path: Path) -> None:
    for head, stored in (("int8", "int8"), ("int4", "int4"), ("bf16", "bf16"), (None, "f32")):
        make_tiny(tmp_path / str(head), format="int8", head=head)
        assert open_checkpoint(tmp_path / str(head)).entry("embed.weight").format == stored
    with pytest.raises(LibremoeError, match="--head int4: native files"):
        make_tiny(tmp_path / "gguf", as_="gguf", head="int4")
