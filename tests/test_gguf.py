"""GGUF files: block formats against the gguf package, what is written is what is read, names of old and new files."""

import dataclasses
import math
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import sentencepiece
import torch

from libremoe.batch import Batch
from libremoe.config import ModelConfig, preset
from libremoe.errors import CheckpointError, LibremoeError
from libremoe.model import Transformer
from libremoe.ops import reference
from libremoe.quant import quantize
from libremoe.tiny import RandomReader
from libremoe.weights import gguf as gguf_module
from libremoe.weights import gguf_writer, open_checkpoint, parameter_names
from libremoe.weights.gguf import GGUFReader
from libremoe.weights.gguf_dequant import TYPES, dequantize

GROK = dataclasses.replace(preset("tiny"), n_layers=2, hidden_dim=64, n_experts=4, vocab_size=300)
LLAMA = ModelConfig(
    family="llama", vocab_size=300, dim=64, hidden_dim=96, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16,
    context_len=128, bos_id=1, eos_id=2, add_bos=True,
)  # fmt: skip
MIXTRAL = dataclasses.replace(LLAMA, family="mixtral", n_experts=4, n_experts_per_tok=2)
MISTRAL = dataclasses.replace(LLAMA, family="mistral", sliding_window=8)
CONFIGS = {"grok-1": GROK, "llama": LLAMA, "mistral": MISTRAL, "mixtral": MIXTRAL}

FLOAT32_KEY = 1e-6  # numbers of the configuration are stored as float32: 2^-24, relative, is lost
# Sums in another order, and for the GELU of grok llama.cpp looks values up in a table of float16.
LLAMA_CPP_LOGITS = {"llama": 1e-4, "mixtral": 1e-4, "grok-1": 4e-3}


def random_weights(config, seed=0):
    """Weights of every name, with norms that scatter around 1 and scores that reach beyond 1."""
    torch.manual_seed(seed)
    weights = {}
    for name, shape in parameter_names(config).items():
        scale = (3 if ".attn." in name else 1) * shape[-1] ** -0.5
        weights[name] = 1 + 0.2 * torch.randn(shape) if len(shape) == 1 else scale * torch.randn(shape)
    return weights


class AllExperts:
    """Experts for Transformer, straight from a reader."""

    def __init__(self, reader):
        self.experts = {}
        self.reader = reader

    def begin(self, h_ND):
        pass

    def waves(self, layer, ids, x_ND):
        yield {e: self.get(layer, e) for e in ids}

    def get(self, layer, e):
        if (layer, e) not in self.experts:
            self.experts[layer, e] = self.reader.read_expert(layer, e)
        return self.experts[layer, e]


def logits_of(reader, tokens, config=None):
    model = Transformer(config or reader.config, reader.read, AllExperts(reader), reference)
    return model(torch.tensor(tokens), Batch.of_whole([len(tokens)])).detach()


# A GGUF file by hand, for files that no writer writes.


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name, kind, payload):
    return text(name) + struct.pack("<I", kind) + payload


def u32(name, value):
    return key(name, 4, struct.pack("<I", value))


def f32(name, value):
    return key(name, 6, struct.pack("<f", value))


def string(name, value):
    return key(name, 8, text(value))


def array(name, element, n, payload):
    return key(name, 9, struct.pack("<IQ", element, n) + payload)


def info(name, dims, kind=0, offset=0, n_dims=None):
    packed = b"".join(struct.pack("<Q", d) for d in dims)
    return text(name) + struct.pack("<I", len(dims) if n_dims is None else n_dims) + packed + struct.pack(
        "<IQ", kind, offset
    )


def gguf_bytes(keys, infos, data=b"", magic=b"GGUF", version=3, n_tensors=None, n_keys=None, alignment=32):
    head = magic + struct.pack("<IQQ", version, len(infos) if n_tensors is None else n_tensors,
                               len(keys) if n_keys is None else n_keys)  # fmt: skip
    head += b"".join(keys) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data


def packed_tensors(tensors, alignment=32):
    """(infos, data) of float32 tensors by name."""
    infos, data = [], b""
    for name, tensor in tensors.items():
        infos.append(info(name, list(reversed(tensor.shape)), 0, len(data)))
        data += tensor.contiguous().numpy().tobytes()
        data += bytes(-len(data) % alignment)
    return infos, data


def config_keys(config):
    """The metadata of a model, without any key that has a default."""
    arch = "grok" if config.family == "grok-1" else "llama"
    numbers = {
        "block_count": config.n_layers, "embedding_length": config.dim, "feed_forward_length": config.hidden_dim,
        "attention.head_count": config.n_heads, "attention.head_count_kv": config.n_kv_heads,
        "context_length": config.context_len, "expert_count": config.n_experts,
        "expert_used_count": config.n_experts_per_tok, "attention.key_length": config.head_dim,
    }  # fmt: skip
    keys = [string("general.architecture", arch), f32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)]
    return keys + [u32(f"{arch}.{name}", value) for name, value in numbers.items()]


@pytest.mark.parametrize("name", [t.name for t in TYPES.values()])
def test_blocks_are_dequantised_to_the_last_bit(name):
    rng = np.random.default_rng(0)
    kind = next(t for t in TYPES.values() if t.name == name)
    blocks = rng.integers(0, 256, (500, kind.nbytes), dtype=np.uint8)
    halves = {"q4_0": [0], "q8_0": [0], "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208]}.get(name, [])
    for start in halves:  # finite scales: NaN would compare unequal
        blocks[:, start : start + 2] = rng.normal(0, 0.1, 500).astype(np.float16).view(np.uint8).reshape(500, 2)
    wanted = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name.upper()])
    found = dequantize(name, torch.from_numpy(blocks.reshape(-1))).float().numpy()
    np.testing.assert_array_equal(found.reshape(-1), wanted.reshape(-1))


def test_block_table_is_that_of_the_gguf_package():
    for number, kind in TYPES.items():
        known = gguf.GGMLQuantizationType(number)
        assert (known.name.lower(), gguf.GGML_QUANT_SIZES[known]) == (kind.name, (kind.block, kind.nbytes))


def test_more_blocks_than_are_unpacked_at_once(monkeypatch):
    data = torch.from_numpy(np.random.default_rng(1).integers(0, 60, 34 * 100, dtype=np.uint8))
    whole = dequantize("q8_0", data)
    monkeypatch.setattr("libremoe.weights.gguf_dequant._BLOCKS_AT_ONCE", 7)
    assert torch.equal(dequantize("q8_0", data), whole)


@pytest.mark.parametrize("quant", gguf_writer.QUANTS)
@pytest.mark.parametrize("family", CONFIGS)
def test_what_is_written_is_read(tmp_path, family, quant):
    config, weights = CONFIGS[family], random_weights(CONFIGS[family])
    gguf_writer.write_gguf(tmp_path / "m.gguf", config, weights.__getitem__, quant, licence="apache-2.0")
    reader = open_checkpoint(tmp_path / "m.gguf")
    assert reader.licence == "apache-2.0"
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    for field, value in config.to_dict().items():
        wanted = pytest.approx(value, rel=FLOAT32_KEY) if isinstance(value, float) else value
        assert reader.config.to_dict()[field] == wanted, field
    kind = gguf.GGMLQuantizationType[quant.upper()]
    for name, weight in weights.items():
        entry, found = reader.entry(name), reader.read(name)
        assert entry.shape == tuple(found.shape) == tuple(weight.shape)
        if weight.dim() == 1 or "router" in name:
            assert entry.format == "f32" and torch.equal(found, weight)
            continue
        assert entry.format == quant
        wanted = gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind)
        np.testing.assert_array_equal(found.float().numpy(), wanted.reshape(weight.shape), err_msg=name)


def test_rows_that_are_no_whole_blocks_stay_float32(tmp_path):
    config = dataclasses.replace(LLAMA, hidden_dim=40)
    gguf_writer.write_gguf(tmp_path / "m.gguf", config, random_weights(config).__getitem__, "q8_0")
    reader = GGUFReader(tmp_path / "m.gguf")
    assert reader.entry("layers.0.experts.0.down.weight").format == "f32"
    assert reader.entry("layers.0.experts.0.up.weight").format == "q8_0"


def test_quantised_source_is_written_dequantised(tmp_path):
    weights = random_weights(LLAMA)
    name = "layers.1.experts.0.up.weight"
    weights[name] = quantize(weights[name], "int8")
    gguf_writer.write_gguf(tmp_path / "m.gguf", LLAMA, weights.__getitem__, "f32")
    assert torch.equal(GGUFReader(tmp_path / "m.gguf").read(name), weights[name].dequantize())


def test_writer_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(LibremoeError, match="cannot write GGUF as 'q4_k'; there are: f32"):
        gguf_writer.write_gguf(tmp_path / "m.gguf", LLAMA, random_weights(LLAMA).__getitem__, "q4_k")
    with pytest.raises(LibremoeError, match="embed.weight has shape"):
        gguf_writer.write_gguf(tmp_path / "m.gguf", LLAMA, lambda name: torch.zeros(3, 3), "f32")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LibremoeError, match="none/m.gguf: cannot be written: No such file"):
        gguf_writer.write_gguf(tmp_path / "none" / "m.gguf", LLAMA, random_weights(LLAMA).__getitem__, "f32")


def test_llama_files_hold_neighbouring_rotary_pairs_and_grok_files_halves(tmp_path):
    for config in (LLAMA, GROK):
        weights = random_weights(config)
        gguf_writer.write_gguf(tmp_path / "m.gguf", config, weights.__getitem__, "f32")
        stored = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
        for ours, theirs, n_heads in (("q", "attn_q", config.n_heads), ("k", "attn_k", config.n_kv_heads)):
            weight, half = weights[f"layers.1.attn.{ours}.weight"], config.head_dim // 2
            rows = list(range(n_heads * config.head_dim))
            if config.family == "llama":
                rows = [h * 2 * half + j * half + i for h in range(n_heads) for i in range(half) for j in (0, 1)]
            np.testing.assert_array_equal(stored[f"blk.1.{theirs}.weight"], weight[rows].numpy())


def test_an_expert_is_one_exact_read(tmp_path, monkeypatch):
    gguf_writer.write_gguf(tmp_path / "m.gguf", MIXTRAL, random_weights(MIXTRAL).__getitem__, "q8_0")
    reader = GGUFReader(tmp_path / "m.gguf")
    reads = []

    def recorded(fd, start, buffer, path):
        reads.append(len(buffer))
        return read_into(fd, start, buffer, path)

    read_into = gguf_module.read_into
    monkeypatch.setattr(gguf_module, "read_into", recorded)
    expert = reader.read_expert(1, 3)
    assert reads == [MIXTRAL.dim * MIXTRAL.hidden_dim // 32 * 34] * 3
    assert torch.equal(expert.down, reader.read("layers.1.experts.3.down.weight"))


def hand_made(config, weights, rename=lambda name: name):
    """File of float32 tensors under llama.cpp's names, experts apart, without optional keys."""
    tensors = {}
    for ours, weight in weights.items():
        name, e = gguf_module.tensor_name(config, ours)
        if e is not None:
            name = name.replace("_exps", f".{e}")
        if ".attn_q." in name or ".attn_k." in name:
            heads = config.n_heads if "_q" in name else config.n_kv_heads
            weight = gguf_writer._permute(weight, heads) if config.family != "grok-1" else weight
        tensors[rename(name)] = weight
    return tensors


@pytest.mark.parametrize("family", ["grok-1", "mixtral"])
def test_old_and_new_names_and_missing_keys(tmp_path, family):
    config, weights = CONFIGS[family], random_weights(CONFIGS[family])
    tensors = hand_made(config, weights, lambda name: name.replace("layer_output_norm", "post_ffw_norm"))
    tensors["blk.0.attn_rot_embd.weight"] = torch.zeros(8)
    infos, data = packed_tensors(tensors)
    for version in (2, 3):
        (tmp_path / "m.gguf").write_bytes(gguf_bytes(config_keys(config), infos, data, version=version))
        reader = GGUFReader(tmp_path / "m.gguf")
        assert all(torch.equal(reader.read(name), weight) for name, weight in weights.items())
    if family == "grok-1":  # the release's numbers, where the file has none
        found = reader.config
        assert (found.embed_scale, found.logit_scale) == (78.38367176906169, 0.5773502691896257)
        assert (found.attn_scale, found.attn_softcap, found.pad_id) == (0.08838834764831845, 30.0, 0)


def test_split_files_are_one_model(tmp_path):
    weights = random_weights(LLAMA)
    tensors = hand_made(LLAMA, weights)
    names = sorted(tensors)
    for i, part in enumerate((names[:7], names[7:]), 1):
        infos, data = packed_tensors({name: tensors[name] for name in part})
        keys = (config_keys(LLAMA) if i == 1 else []) + [key("split.count", 2, struct.pack("<H", 2))]
        (tmp_path / f"m-0000{i}-of-00002.gguf").write_bytes(gguf_bytes(keys, infos, data))
    reader = GGUFReader(tmp_path / "m-00001-of-00002.gguf")
    assert all(torch.equal(reader.read(name), weight) for name, weight in weights.items())
    with pytest.raises(CheckpointError, match="open m-00001-of-00002.gguf"):
        GGUFReader(tmp_path / "m-00002-of-00002.gguf")
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match="m-00002-of-00002.gguf: cannot be opened"):
        GGUFReader(tmp_path / "m-00001-of-00002.gguf")


@pytest.mark.parametrize("extra, reason", [
    (u32("llama.rope.scaling.type", 1), "rotary scaling"),
    (string("llama.rope.scaling.type", "yarn"), "rotary scaling"),
    (f32("llama.rope.scale_linear", 4.0), "rotary scaling"),
    (f32("llama.final_logit_softcapping", 30.0), "soft cap on the logits"),
    (u32("llama.expert_gating_func", 2), "another function than softmax"),
    (u32("llama.rope.dimension_count", 8), "llama.rope.dimension_count"),
    (u32("llama.attention.value_length", 32), "llama.attention.value_length"),
    (u32("llama.expert_feed_forward_length", 95), "has shape"),
])  # fmt: skip
def test_features_that_the_network_lacks_are_refused(tmp_path, extra, reason):
    infos, data = packed_tensors(hand_made(LLAMA, random_weights(LLAMA)))
    (tmp_path / "m.gguf").write_bytes(gguf_bytes([*config_keys(LLAMA), extra], infos, data))
    with pytest.raises(CheckpointError, match=reason):
        GGUFReader(tmp_path / "m.gguf")


def test_missing_and_left_over_tensors_are_named(tmp_path):
    tensors = hand_made(GROK, random_weights(GROK))
    for change, reason in (
        (lambda t: t.pop("blk.1.attn_output_norm.weight"), "blk.1.attn_output_norm.weight is missing"),
        (lambda t: t.update({"blk.0.ffn_up.weight": torch.zeros(2, 2)}), "blk.0.ffn_up.weight belongs to no part"),
        (lambda t: t.update({"rope_freqs.weight": torch.zeros(8)}), "rope_freqs.weight"),
    ):
        changed = dict(tensors)
        change(changed)
        infos, data = packed_tensors(changed)
        (tmp_path / "m.gguf").write_bytes(gguf_bytes(config_keys(GROK), infos, data))
        with pytest.raises(CheckpointError, match=reason):
            GGUFReader(tmp_path / "m.gguf")


def test_file_that_shrinks_later_is_an_error_of_the_read(tmp_path):
    path = tmp_path / "m.gguf"
    gguf_writer.write_gguf(path, LLAMA, random_weights(LLAMA).__getitem__, "f16")
    reader = GGUFReader(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="too early"):
        reader.read("norm.weight")


def test_embedded_vocabulary_becomes_a_sentencepiece_model(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The answer to life, the universe and everything is of course forty-two.\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "sp"), vocab_size=300, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=9,
    )  # fmt: skip
    wanted = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sp.model"))
    n = wanted.get_piece_size()
    types = [2 if wanted.is_unknown(i) else 3 if wanted.is_control(i) else 6 if wanted.is_byte(i) else 1
             for i in range(n)]  # fmt: skip
    keys = [
        string("tokenizer.ggml.model", "llama"),
        array("tokenizer.ggml.tokens", 8, n, b"".join(text(wanted.id_to_piece(i)) for i in range(n))),
        array("tokenizer.ggml.scores", 6, n, struct.pack(f"<{n}f", *(wanted.get_score(i) for i in range(n)))),
        array("tokenizer.ggml.token_type", 5, n, struct.pack(f"<{n}i", *types)),
    ]
    infos, data = packed_tensors(hand_made(LLAMA, random_weights(LLAMA)))
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(config_keys(LLAMA) + keys, infos, data))
    found = sentencepiece.SentencePieceProcessor(model_proto=GGUFReader(tmp_path / "m.gguf").tokenizer_bytes())
    for sample in ("The answer is forty-two.", "  two  spaces ", "Grüße, 世界 \x00 \U0001f600", ""):
        assert found.encode(sample) == wanted.encode(sample)
        assert found.decode(found.encode(sample)) == wanted.decode(wanted.encode(sample))
    assert (found.bos_id(), found.eos_id(), found.unk_id()) == (1, 2, 0)


def test_vocabularies_that_are_none(tmp_path):
    infos, data = packed_tensors(hand_made(LLAMA, random_weights(LLAMA)))
    model = string("tokenizer.ggml.model", "llama")
    for keys, reason in (([], None), ([string("tokenizer.ggml.model", "gpt2")], None), ([model], "not three lists")):
        (tmp_path / "m.gguf").write_bytes(gguf_bytes(config_keys(LLAMA) + keys, infos, data))
        reader = GGUFReader(tmp_path / "m.gguf")
        if reason is None:
            assert reader.tokenizer_bytes() is None
        else:
            with pytest.raises(CheckpointError, match=reason):
                reader.tokenizer_bytes()


@pytest.mark.parametrize("family", LLAMA_CPP_LOGITS)
def test_llama_cpp_computes_the_same_logits(tmp_path, family):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    config = CONFIGS[family]
    gguf_writer.write_gguf(tmp_path / "m.gguf", config, random_weights(config).__getitem__, "f32")
    tokens = np.random.default_rng(2).integers(3, 300, 24).tolist()
    # llama.cpp renormalises the gates of grok, which the release does not do.
    reader = GGUFReader(tmp_path / "m.gguf")
    ours = logits_of(reader, tokens, dataclasses.replace(reader.config, renormalise_gates=True)).numpy()
    theirs = llama_cpp_logits(llama_cpp, tmp_path / "m.gguf", tokens)
    assert np.abs(ours - theirs).max() < LLAMA_CPP_LOGITS[family] and math.isfinite(theirs.sum())


def llama_cpp_logits(llama_cpp, path, tokens):
    """(T, V) float32 through the C interface: the tokens as they are, no BOS added."""
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 128
    params.n_threads = params.n_threads_batch = 2
    params.type_k = params.type_v = 0  # float32
    params.flash_attn_type = 0
    context = llama_cpp.llama_init_from_model(model, params)
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    assert llama_cpp.llama_decode(context, batch) == 0
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (n_vocab,)).copy()
            for i in range(len(tokens))]  # fmt: skip
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return np.stack(rows)


GOLDEN_LOGITS = 5e-5  # float32 sums in another order; the release and its float64 recomputation are 1e-5 apart


@pytest.mark.parametrize("name, prompt", [("tiny-grok1", "p33"), ("tiny-grok1-12l", "p7")])
def test_official_checkpoint_as_gguf_gives_the_release_s_logits(tmp_path, name, prompt):
    folder = Path(__file__).parent / "golden" / name
    golden = np.load(folder / "golden.npz")
    official = open_checkpoint(folder)
    gguf_writer.write_gguf(tmp_path / "m.gguf", official.config, official.read, "f32")
    tokens = golden[f"f32/{prompt}/tokens"].reshape(-1).tolist()
    found = logits_of(GGUFReader(tmp_path / "m.gguf"), tokens).numpy()
    assert np.abs(found - golden[f"f32/{prompt}/logits"].reshape(found.shape)).max() < GOLDEN_LOGITS


def test_a_disk_that_fills_up_while_writing_is_a_sentence(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError("7 requested and 0 written")  # numpy's, which has no strerror

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    config = dataclasses.replace(preset("tiny"), n_layers=1)
    with pytest.raises(LibremoeError, match="cannot be written: 7 requested and 0 written"):
        gguf_writer.write_gguf(tmp_path / "x.gguf", config, RandomReader(config).read, "f32")
    assert list(tmp_path.iterdir()) == []
