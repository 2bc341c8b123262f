"""Hugging Face folders: the same logits as transformers for each family it has, Grok-1 in its community form."""

import dataclasses
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_gguf import GROK, logits_of, random_weights

from libremoe.config import preset
from libremoe.errors import CheckpointError
from libremoe.weights import open_checkpoint
from libremoe.weights.hf import HFReader, read_config

# Both compute in float32, in another order; logits are about 1 in magnitude.
LOGITS = 1e-4
WINDOW = 8

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3,
}  # fmt: skip
MODELS = {
    "llama": (transformers.LlamaConfig, {"rms_norm_eps": 1e-5, "rope_theta": 5000.0}),
    "llama-tied": (transformers.LlamaConfig, {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama-wide-heads": (transformers.LlamaConfig, {"head_dim": 16}),
    "mistral": (transformers.MistralConfig, {"sliding_window": WINDOW}),
    "mistral-no-window": (transformers.MistralConfig, {"sliding_window": None}),
    "mixtral": (transformers.MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral-window": (transformers.MixtralConfig, {"num_local_experts": 5, "num_experts_per_tok": 3,
                                                    "sliding_window": WINDOW}),
}  # fmt: skip


def save_model(name, folder, **how):
    """A random model of transformers in the folder, and itself."""
    torch.manual_seed(3)
    kind, fields = MODELS[name]
    config = kind(**(SIZES | fields), attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder, **how)
    return model


@pytest.mark.parametrize("length", [1, WINDOW - 1, WINDOW, WINDOW + 1, 5 * WINDOW])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(tmp_path, name, length):
    model = save_model(name, tmp_path)
    tokens = torch.randint(0, SIZES["vocab_size"], (length,), generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        wanted = model(tokens[None]).logits[0]
    reader = open_checkpoint(tmp_path)
    assert isinstance(reader, HFReader) and reader.config.family == name.split("-")[0]
    assert (logits_of(reader, tokens.tolist()) - wanted).abs().max() < LOGITS


def test_window_matters_to_the_test_above(tmp_path):
    save_model("mistral", tmp_path)
    reader, tokens = HFReader(tmp_path), list(range(5 * WINDOW))
    without = logits_of(reader, tokens, dataclasses.replace(reader.config, sliding_window=None))
    assert (without - logits_of(reader, tokens)).abs().max() > 100 * LOGITS


def test_shards_are_one_model(tmp_path):
    save_model("mixtral", tmp_path / "one")
    save_model("mixtral", tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    one, many = HFReader(tmp_path / "one"), HFReader(tmp_path / "many")
    assert sorted(one.names()) == sorted(many.names())
    assert all(torch.equal(one.read(name), many.read(name)) for name in one.names())
    expert = many.read_expert(2, 3)
    assert torch.equal(expert.down, one.read("layers.2.experts.3.down.weight"))


@pytest.mark.parametrize("dtype, format", [(torch.bfloat16, "bf16"), (torch.float16, "f16")])
def test_types_come_as_stored(tmp_path, dtype, format):
    save_model("llama", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: weight.to(dtype) for name, weight in weights.items()}, tmp_path / "model.safetensors")
    reader = HFReader(tmp_path)
    found, entry = reader.read("layers.1.attn.q.weight"), reader.entry("layers.1.attn.q.weight")
    assert torch.equal(found, weights["model.layers.1.self_attn.q_proj.weight"].to(dtype))
    assert (found.dtype, entry.format, entry.shape, entry.nbytes) == (dtype, format, (32, 32), 2048)


GROK_NAMES = {
    "embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.scale",
    "layers.{i}.attn_norm.weight": "model.layers.{i}.pre_attn_norm.scale",
    "layers.{i}.attn_post_norm.weight": "model.layers.{i}.post_attn_norm.scale",
    "layers.{i}.ffn_norm.weight": "model.layers.{i}.pre_moe_norm.scale",
    "layers.{i}.ffn_post_norm.weight": "model.layers.{i}.post_moe_norm.scale",
    "layers.{i}.attn.q.weight": "model.layers.{i}.attn.q_proj.weight",
    "layers.{i}.attn.k.weight": "model.layers.{i}.attn.k_proj.weight",
    "layers.{i}.attn.v.weight": "model.layers.{i}.attn.v_proj.weight",
    "layers.{i}.attn.o.weight": "model.layers.{i}.attn.o_proj.weight",
    "layers.{i}.router.weight": "model.layers.{i}.moe_block.gate.weight",
    "layers.{i}.experts.{e}.gate.weight": "model.layers.{i}.moe_block.experts.{e}.linear.weight",
    "layers.{i}.experts.{e}.up.weight": "model.layers.{i}.moe_block.experts.{e}.linear_v.weight",
    "layers.{i}.experts.{e}.down.weight": "model.layers.{i}.moe_block.experts.{e}.linear_1.weight",
}  # fmt: skip


def grok_fields(config):
    return {
        "model_type": "grok-1", "vocab_size": config.vocab_size, "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim, "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads, "num_key_value_heads": config.n_kv_heads,
        "attn_output_multiplier": config.attn_scale, "max_attn_value": 30.0, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "embedding_multiplier_scale": config.embed_scale, "rms_norm_eps": 1e-5,
        "output_multiplier_scale": config.logit_scale, "max_position_embeddings": config.context_len,
        "num_experts_per_tok": 2, "num_experts": config.n_experts, "tie_word_embeddings": True,
    }  # fmt: skip


@pytest.mark.parametrize("norms", ["scale", "weight"])
def test_grok_in_the_community_form(tmp_path, norms):
    weights = random_weights(GROK)
    stored = {}
    for i in range(GROK.n_layers):
        for e in range(GROK.n_experts):
            for ours, theirs in GROK_NAMES.items():
                theirs = theirs.replace("norm.scale", f"norm.{norms}").format(i=i, e=e)
                stored[theirs] = weights[ours.format(i=i, e=e)].clone()
    stored["lm_head.weight"] = weights["embed.weight"].clone()
    save_file(stored, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(grok_fields(GROK)))
    reader = open_checkpoint(tmp_path)
    assert reader.config == GROK
    assert sorted(reader.names()) == sorted(weights)
    assert all(torch.equal(reader.read(name), weight) for name, weight in weights.items())


def test_config_of_the_published_grok(tmp_path):
    grok = preset("grok-1")
    (tmp_path / "config.json").write_text(json.dumps(grok_fields(grok)))
    assert read_config(tmp_path / "config.json") == grok


def test_rope_theta_from_old_and_new_places(tmp_path):
    path = tmp_path / "config.json"
    base = {"model_type": "mixtral", **SIZES}
    for fields, theta in (
        ({}, 1e6),
        ({"rope_theta": 1234.0}, 1234.0),
        ({"rope_theta": 1234.0, "rope_scaling": None}, 1234.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 77}}, 77.0),
    ):
        path.write_text(json.dumps(base | fields))
        assert read_config(path).rope_theta == theta


@pytest.mark.parametrize("fields, reason", [
    ({"model_type": "qwen2"}, "model_type 'qwen2' is not supported; these are: grok-1, llama, mistral, mixtral"),
    ({"model_type": ["llama"]}, "is not supported"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling of type 'llama3' is not supported"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters of type 'yarn' is not supported"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling of type 'linear' is not supported"),
    ({"rope_scaling": 3}, "must be an object"),
    ({"attention_bias": True}, "attention_bias = True is not supported"),
    ({"mlp_bias": True}, "mlp_bias = True is not supported"),
    ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
    ({"quantization_config": {"quant_method": "gptq"}}, "use the unquantised model, or a GGUF file"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layers of different attention types"),
    ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ({"num_attention_heads": "4"}, "num_attention_heads must be a non-negative integer"),
    ({"hidden_size": None}, "hidden_size is missing"),
    ({"hidden_size": -1}, "hidden_size must be a non-negative integer"),
    ({"vocab_size": 2**40}, "vocab_size must be a positive integer"),
    ({"num_key_value_heads": 3}, "must be a multiple of n_kv_heads"),
    ({"rms_norm_eps": 0}, "norm_eps must be a positive number"),
    ({"rms_norm_eps": True}, "rms_norm_eps must be a number"),
    ({"num_hidden_layers": 2**31 - 1}, "too few for 2147483647 layers"),
])  # fmt: skip
def test_what_the_network_lacks_is_refused(tmp_path, fields, reason):
    save_model("llama", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(CheckpointError) as caught:
        HFReader(tmp_path)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def change_tensors(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def test_every_tensor_is_used_or_named(tmp_path):
    save_model("llama", tmp_path)
    query = "model.layers.2.self_attn.q_proj.weight"
    change_tensors(tmp_path, lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    HFReader(tmp_path)
    change_tensors(tmp_path, lambda w: w.update({query.replace("weight", "bias"): torch.ones(32)}))
    with pytest.raises(CheckpointError, match="q_proj.bias belongs to no part of a llama model"):
        HFReader(tmp_path)
    change_tensors(tmp_path, lambda w: w.pop(query.replace("weight", "bias")))
    change_tensors(tmp_path, lambda w: w.update({query: torch.ones(32, 32, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match="q_proj.weight is stored as I8"):
        HFReader(tmp_path)
    change_tensors(tmp_path, lambda w: w.update({query: torch.ones(32, 31)}))
    with pytest.raises(CheckpointError, match="layers.2.attn.q.weight has shape"):
        HFReader(tmp_path)
    change_tensors(tmp_path, lambda w: w.pop(query))
    with pytest.raises(CheckpointError, match=f"tensor {query} is missing"):
        HFReader(tmp_path)


@pytest.mark.parametrize("change, reason", [
    (lambda m: m.update({"model.norm.weight": "../model.safetensors"}), "is no name of a .safetensors file"),
    (lambda m: m.update({"model.norm.weight": "/etc/passwd"}), "is no name of a .safetensors file"),
    (lambda m: m.update({"model.norm.weight": "a\\b.safetensors"}), "is no name of a .safetensors file"),
    (lambda m: m.update({"model.norm.weight": ".hidden.safetensors"}), "is no name of a .safetensors file"),
    (lambda m: m.update({"model.norm.weight": 7}), "is no name of a .safetensors file"),
    (lambda m: m.update({"model.norm.weight": "absent.safetensors"}), "absent.safetensors: cannot be opened"),
    (lambda m: m.update({"ghost": m["model.norm.weight"]}), "'ghost' is not in this file"),
    (lambda m: m.pop("model.norm.weight"), "model.norm.weight is not listed in"),
    (lambda m: m.clear(), "0 tensors are too few"),
])  # fmt: skip
def test_index_that_lies(tmp_path, change, reason):
    save_model("llama", tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    change(fields["weight_map"])
    index.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError) as caught:
        HFReader(tmp_path)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_folders_without_an_index(tmp_path):
    save_model("llama", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    HFReader(tmp_path)
    (tmp_path / "second.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="2 .safetensors files and no model.safetensors.index.json"):
        HFReader(tmp_path)


def test_licence_and_tokenizer(tmp_path):
    save_model("llama", tmp_path)
    reader = HFReader(tmp_path)
    assert (reader.licence, reader.tokenizer, reader.kind) == (None, None, "safetensors")
    (tmp_path / "LICENSE").write_text("                 Apache License\n           Version 2.0\n")
    (tmp_path / "tokenizer.model").write_bytes(b"")
    reader = HFReader(tmp_path)
    assert (reader.licence, reader.tokenizer) == ("apache-2.0", tmp_path / "tokenizer.model")
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: 'llama2'  # Meta\n---\nlicense: mit\n")
    assert HFReader(tmp_path).licence == "llama2"
