"""A Hugging Face folder (config.json beside *.safetensors) as a Reader: Llama, Mistral, Mixtral, and Grok-1.

Llama, Mistral and Mixtral: names and fields as the transformers library writes them (checked against 5.23, which
still stores Mixtral's experts one by one). Their rotary layout is already half-split, so nothing is permuted.
Grok-1: transformers has no such model; fields and names are those of the community port hpcai-tech/grok-1
(configuration_grok1.py, modeling_grok1.py: `model_type` "grok-1", norms called `scale`), and `weight` is accepted
for the norms too. What the port leaves open (tanh GELU, gates not renormalised, unseen pad keys) follows the
release, see docs/grok-1.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from libremoe.config import ModelConfig
from libremoe.errors import CheckpointError, LibremoeError
from libremoe.experts import Expert, Weight
from libremoe.weights import TensorEntry, check_names, find_tokenizer, parameter_names
from libremoe.weights.safetensors_header import TensorSpan, opened, parse_header, read_bytes, read_json, read_span

MODEL_TYPES = ("grok-1", "llama", "mistral", "mixtral")
FLOATS = {"F32": "f32", "BF16": "bf16", "F16": "f16"}
MAX_CONFIG_BYTES = 1 << 20
MAX_INDEX_BYTES = 16 << 20
MAX_TEXT_BYTES = 64 << 10  # of README.md and LICENSE
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors", re.ASCII)
# Buffers that older conversions stored beside the weights; they follow from the configuration.
_SKIPPED = re.compile(r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)", re.ASCII)

_GLOBAL = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight",
           "head.weight": "lm_head.weight"}  # fmt: skip
_LLAMA_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj", "attn.o": "self_attn.o_proj",
}  # fmt: skip
_GROK_LAYER = {
    "attn_norm": "pre_attn_norm", "attn_post_norm": "post_attn_norm", "ffn_norm": "pre_moe_norm",
    "ffn_post_norm": "post_moe_norm", "attn.q": "attn.q_proj", "attn.k": "attn.k_proj", "attn.v": "attn.v_proj",
    "attn.o": "attn.o_proj", "router": "moe_block.gate",
}  # fmt: skip
_LAYER_NAMES = {
    "grok-1": _GROK_LAYER,
    "llama": _LLAMA_LAYER,
    "mistral": _LLAMA_LAYER,
    "mixtral": _LLAMA_LAYER | {"router": "block_sparse_moe.gate"},
}
# (folder of expert {e}, its activated, plain and down projections)
_DENSE_NAMES = ("mlp", "gate_proj", "up_proj", "down_proj")
_EXPERT_NAMES = {
    "grok-1": ("moe_block.experts.{e}", "linear", "linear_v", "linear_1"),
    "llama": _DENSE_NAMES,
    "mistral": _DENSE_NAMES,
    "mixtral": ("block_sparse_moe.experts.{e}", "w1", "w3", "w2"),
}


class HFReader:
    """The Reader contract of weights/__init__.py over a folder; tensors come in the type in which they are stored."""

    kind = "safetensors"

    def __init__(self, folder: Path | str):
        self.path = Path(folder)
        self.config = read_config(self.path / "config.json")
        self.licence = find_licence(self.path)
        self.tokenizer = find_tokenizer(self.path)
        stored = dict(_stored_tensors(self.path))
        self._places = _match(self.path, self.config, stored)
        check_names(self)

    def names(self) -> list[str]:
        return list(self._places)

    def entry(self, name: str) -> TensorEntry:
        file, span = self._places[name]
        return TensorEntry(name, span.shape, FLOATS[span.dtype], span.nbytes, file)

    def read(self, name: str) -> Weight:
        return read_span(*self._places[name])

    def read_expert(self, layer: int, e: int) -> Expert:
        prefix = f"layers.{layer}.experts.{e}"
        return Expert(*(self.read(f"{prefix}.{part}.weight") for part in ("gate", "up", "down")))


def read_config(path: Path) -> ModelConfig:
    """config.json as ModelConfig. Raises CheckpointError for a model or a feature that the network does not have."""
    fields = read_json(path, MAX_CONFIG_BYTES)
    model_type = fields.get("model_type")
    if model_type == "grok":
        model_type = "grok-1"
    if model_type not in MODEL_TYPES:
        raise CheckpointError(path, f"model_type {model_type!r} is not supported; these are: {', '.join(MODEL_TYPES)}")
    _refuse_features(path, fields)
    integer, number = _Fields(path, fields).integer, _Fields(path, fields).number
    n_heads = integer("num_attention_heads")
    if not n_heads:
        raise CheckpointError(path, "num_attention_heads is 0")
    common: dict[str, Any] = {
        "family": model_type, "vocab_size": integer("vocab_size"), "dim": integer("hidden_size"),
        "hidden_dim": integer("intermediate_size"), "n_layers": integer("num_hidden_layers"), "n_heads": n_heads,
        "n_kv_heads": integer("num_key_value_heads", n_heads),
        "head_dim": integer("head_dim", integer("hidden_size") // n_heads),
        "context_len": integer("max_position_embeddings"), "norm_eps": number("rms_norm_eps", 1e-5),
        "rope_theta": _rope_theta(path, fields, 1e6 if model_type == "mixtral" else 1e4),
        "bos_id": _token_id(fields, "bos_token_id"), "eos_id": _token_id(fields, "eos_token_id"),
        "tied_embeddings": bool(fields.get("tie_word_embeddings", model_type == "grok-1")),
    }  # fmt: skip
    if model_type == "grok-1":
        common |= {
            "n_experts": integer("num_experts", 8), "n_experts_per_tok": integer("num_experts_per_tok", 2),
            "activation": "gelu", "post_norms": True, "attn_scale": number("attn_output_multiplier"),
            "attn_softcap": number("max_attn_value", 30.0), "embed_scale": number("embedding_multiplier_scale"),
            "logit_scale": number("output_multiplier_scale"), "renormalise_gates": False,
            "pad_id": _token_id(fields, "pad_token_id"),
        }  # fmt: skip
    else:
        common |= {"add_bos": True, "sliding_window": integer("sliding_window", 0) or None}
    if model_type == "llama":
        common["sliding_window"] = None  # transformers ignores the field there
    if model_type == "mixtral":
        common |= {"n_experts": integer("num_local_experts", 8), "n_experts_per_tok": integer("num_experts_per_tok", 2)}
    try:
        return ModelConfig(**common)
    except LibremoeError as error:
        raise CheckpointError(path, str(error)) from None


class _Fields:
    """Typed access to config.json; null counts as absent, as in transformers."""

    def __init__(self, path: Path, fields: dict[str, Any]):
        self.path, self.fields = path, fields

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._get(name, default)
        if type(value) is not int or value < 0:
            raise CheckpointError(self.path, f"{name} must be a non-negative integer, not {str(value)[:40]!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default)
        if type(value) not in (int, float):
            raise CheckpointError(self.path, f"{name} must be a number, not {str(value)[:40]!r}")
        return float(value)

    def _get(self, name: str, default: Any) -> Any:
        value = self.fields.get(name)
        if value is None and default is None:
            raise CheckpointError(self.path, f"{name} is missing")
        return default if value is None else value


def _refuse_features(path: Path, fields: dict[str, Any]) -> None:
    """Raises CheckpointError for switches that change the computation and that the network does not have."""
    if fields.get("quantization_config"):
        raise CheckpointError(path, "quantised Hugging Face weights (GPTQ, AWQ, FP8, ...) are not supported; use the "
                                    "unquantised model, or a GGUF file")  # fmt: skip
    for name, wanted in (("attention_bias", False), ("mlp_bias", False), ("partial_rotary_factor", 1.0)):
        if fields.get(name) not in (None, wanted):
            raise CheckpointError(path, f"{name} = {repr(fields[name])[:40]} is not supported")
    activation = fields.get("hidden_act")
    wanted_activations = (None, "silu", "swish") if fields.get("model_type") in MODEL_TYPES[1:] else (None, "gelu")
    if activation not in wanted_activations:
        raise CheckpointError(path, f"hidden_act {str(activation)[:40]!r} is not supported")
    layer_types = fields.get("layer_types")
    if isinstance(layer_types, list) and len({str(kind) for kind in layer_types}) > 1:
        raise CheckpointError(path, "layers of different attention types (layer_types) are not supported")


def _rope_theta(path: Path, fields: dict[str, Any], default: float) -> float:
    """Transformers 5 keeps rope_theta in rope_parameters, older versions at the top beside rope_scaling."""
    theta = fields.get("rope_theta")
    for name in ("rope_parameters", "rope_scaling"):
        rope = fields.get(name)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise CheckpointError(path, f"{name} must be an object, not {str(rope)[:40]!r}")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in (None, "default"):
            raise CheckpointError(path, f"{name} of type {str(kind)[:40]!r} is not supported; only 'default' is")
        theta = rope.get("rope_theta", theta)
    return _Fields(path, {"rope_theta": theta}).number("rope_theta", default)


def _token_id(fields: dict[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if isinstance(value, list) and value:
        value = value[0]  # several ends of text: the first is the tokenizer's own
    return value if type(value) is int and value >= 0 else None


def _stored_tensors(folder: Path) -> Iterator[tuple[str, tuple[Path, TensorSpan]]]:
    """Every tensor of the folder's safetensors files. Raises CheckpointError where index and files disagree."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        file = _only_file(folder)
        for name, span in parse_header(file).tensors.items():
            yield name, (file, span)
        return
    weight_map = read_json(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(index, "weight_map is missing")
    by_file: dict[str, set[str]] = {}
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or not _PLAIN.fullmatch(file_name) or ".." in file_name:
            raise CheckpointError(index, f"{str(file_name)[:80]!r} is no name of a .safetensors file in the folder")
        by_file.setdefault(file_name, set()).add(name)
    for file_name, listed in sorted(by_file.items()):
        file = folder / file_name
        tensors = parse_header(file).tensors
        if missing := sorted(listed - set(tensors)):
            raise CheckpointError(file, f"{missing[0][:200]!r} is not in this file, although {index.name} says so")
        if unlisted := sorted(set(tensors) - listed):
            raise CheckpointError(file, f"{unlisted[0]} is not listed in {index.name}")
        for name, span in tensors.items():
            yield name, (file, span)


def _only_file(folder: Path) -> Path:
    if (folder / "model.safetensors").exists():
        return folder / "model.safetensors"
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(folder, f"{len(files)} .safetensors files and no model.safetensors.index.json")
    return files[0]


def _match(folder: Path, config: ModelConfig,
           stored: dict[str, tuple[Path, TensorSpan]]) -> dict[str, tuple[Path, TensorSpan]]:
    """Our name -> place. Raises CheckpointError naming a missing, a left-over or a non-float tensor."""
    if 3 * config.n_layers * max(config.n_experts, 1) > len(stored):  # before a list of that length is made
        raise CheckpointError(folder, f"{len(stored)} tensors are too few for {config.n_layers} layers")
    places = {}
    for name in parameter_names(config):
        hf_name = _hf_name(config.family, name)
        if hf_name not in stored and config.family == "grok-1" and "norm." in name:
            hf_name = hf_name.removesuffix("weight") + "scale"
        if hf_name not in stored:
            raise CheckpointError(folder, f"tensor {_hf_name(config.family, name)} is missing")
        file, span = stored.pop(hf_name)
        if span.dtype not in FLOATS:
            raise CheckpointError(file, f"{hf_name} is stored as {span.dtype}; supported: {', '.join(FLOATS)}")
        places[name] = file, span
    if config.tied_embeddings:
        stored.pop("lm_head.weight", None)  # a copy of the embedding, which transformers ignores too
    for hf_name, (file, _) in stored.items():
        if not _SKIPPED.fullmatch(hf_name):
            raise CheckpointError(file, f"tensor {hf_name} belongs to no part of a {config.family} model")
    return places


def _hf_name(family: str, name: str) -> str:
    """layers.0.attn.q.weight -> model.layers.0.self_attn.q_proj.weight, and the like."""
    if name in _GLOBAL:
        return _GLOBAL[name]
    _, layer, rest = name.removesuffix(".weight").split(".", 2)
    if rest.startswith("experts."):
        _, e, part = rest.split(".")
        folder, *parts = _EXPERT_NAMES[family]
        rest = f"{folder.format(e=e)}.{parts[('gate', 'up', 'down').index(part)]}"
    else:
        rest = _LAYER_NAMES[family][rest]
    return f"model.layers.{layer}.{rest}.weight"


def find_licence(folder: Path) -> str | None:
    """`license:` of README.md's front matter, else the identifier that the first lines of LICENSE give away."""
    head = _beginning(folder / "README.md")
    if head.startswith("---"):
        found = re.search(r"^license:[ \t]*([^\s#]+)", head[3:].split("\n---", 1)[0], re.MULTILINE)
        if found:
            return found[1].strip("\"'")
    text = _beginning(folder / "LICENSE")[:400].lower()
    known = {"apache license": "apache-2.0", "mit license": "mit", "llama 2 community license": "llama2"}
    return next((identifier for phrase, identifier in known.items() if phrase in text), None)


def _beginning(path: Path) -> str:
    if not path.is_file():
        return ""
    with opened(path) as fd:
        length = min(os.fstat(fd).st_size, MAX_TEXT_BYTES)
        return read_bytes(fd, 0, length, path).decode("utf-8", "replace")
