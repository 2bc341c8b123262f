"""What lies where in the official Grok-1 checkpoint: its config.json, and which parameter each file holds.

Source: docs/grok-1.md, "Parameters" and "Checkpoint format". The release keeps its configuration in code; a
config.json with the release's field names, beside the folder of tensors or in it, describes another size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from libremoe.config import GROK_1, ModelConfig, grok_hidden_dim
from libremoe.errors import CheckpointError, LibremoeError
from libremoe.weights.byte_window import open_regular

MAX_CONFIG_BYTES = 1 << 20
FILES_PER_LAYER = 12

# Field of the release -> ours. Language-model fields lie at the top, the others under "model".
_TOP = {"vocab_size": "vocab_size", "sequence_len": "context_len", "pad_token": "pad_id",
        "eos_token": "eos_id", "output_multiplier_scale": "logit_scale",
        "embedding_multiplier_scale": "embed_scale"}
_MODEL = {"emb_size": "dim", "key_size": "head_dim", "num_q_heads": "n_heads", "num_kv_heads": "n_kv_heads",
          "num_layers": "n_layers", "num_experts": "n_experts", "num_selected_experts": "n_experts_per_tok",
          "attn_output_multiplier": "attn_scale"}
# Fields that the release has and that change nothing here: initialisation, sharding, names.
_IDLE_TOP = {"model", "model_size", "model_type", "embedding_init_scale", "init_scale_override",
             "shard_embeddings", "name", "fprop_dtype"}
_IDLE_MODEL = {"widening_factor", "shard_activations", "data_axis", "model_axis", "capacity_factor",
               "init_scale", "name"}
_FLOATS = {"output_multiplier_scale", "embedding_multiplier_scale", "attn_output_multiplier",
           "widening_factor"}
_MAX_FLOAT = 1e9

# What the release fixes in its code: never in config.json.
_FIXED: dict[str, Any] = {
    "family": GROK_1.family, "activation": GROK_1.activation, "post_norms": GROK_1.post_norms,
    "norm_eps": GROK_1.norm_eps, "rope_theta": GROK_1.rope_theta, "attn_softcap": GROK_1.attn_softcap,
    "renormalise_gates": GROK_1.renormalise_gates, "tied_embeddings": GROK_1.tied_embeddings,
    "bos_id": GROK_1.bos_id, "add_bos": GROK_1.add_bos,
}


def read_config(path: Path) -> ModelConfig:
    """config.json with the release's field names. Raises CheckpointError naming the field that is wrong."""
    with open_regular(path) as file:
        try:
            raw = file.read(MAX_CONFIG_BYTES + 1) or b""
        except OSError as e:
            raise CheckpointError(path, f"cannot be read: {e.strerror}") from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise CheckpointError(path, f"larger than {MAX_CONFIG_BYTES:,} bytes: this is no configuration")

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
            raise CheckpointError(path, f"field {_short(twice)} comes twice")
        return fields

    def no_number(text: str) -> NoReturn:
        raise CheckpointError(path, f"{text} is not a number that JSON has")

    try:
        top = json.loads(raw, object_pairs_hook=no_duplicates, parse_constant=no_number)
    except RecursionError:
        raise CheckpointError(path, "nested too deeply: this is no configuration") from None
    except ValueError as e:
        raise CheckpointError(path, f"not JSON: {_short(str(e), 160)}") from None
    try:
        return ModelConfig(**_FIXED, **_our_fields(path, top))
    except CheckpointError:
        raise
    except LibremoeError as e:
        raise CheckpointError(path, str(e)) from None


def _our_fields(path: Path, top: Any) -> dict[str, Any]:
    if not isinstance(top, dict) or not isinstance(top.get("model"), dict):
        raise CheckpointError(path, "it must be an object with an object `model`, as in the release")
    fields: dict[str, Any] = {}
    model = top["model"]
    for found, wanted, idle in ((top, _TOP, _IDLE_TOP), (model, _MODEL, _IDLE_MODEL)):
        unknown = sorted(set(found) - set(wanted) - idle)
        if unknown:
            raise CheckpointError(path, f"unknown field {_short(unknown[0])}")
        for field, ours in wanted.items():
            fields[ours] = _value(path, found, field)
    for field in ("pad_token", "eos_token"):
        if top[field] >= fields["vocab_size"]:
            raise CheckpointError(path, f"{field} {top[field]} must be below vocab_size")
    fields["hidden_dim"] = grok_hidden_dim(fields["dim"], _value(path, model, "widening_factor"))
    return fields


def _value(path: Path, found: dict[str, Any], field: str) -> Any:
    """A field that must be there: an integer from 0 on below 2^31, or for some a positive number."""
    if field not in found:
        raise CheckpointError(path, f"field {field} is missing")
    value = found[field]
    if field in _FLOATS:
        if type(value) not in (int, float) or not 0 < value <= _MAX_FLOAT:
            raise CheckpointError(path, f"{field} must be above 0 and at most 1e9, not {_short(value)}")
        return value
    least = 0 if field in ("pad_token", "eos_token") else 1
    if type(value) is not int or not least <= value < 1 << 31:
        raise CheckpointError(path, f"{field} must be an integer from {least} to 2^31, not {_short(value)}")
    return value


def _short(value: Any, limit: int = 40) -> str:
    """A value from a file, in one line of a message."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "a huge integer"
    return ascii(value)[:limit]


def config_json(config: ModelConfig) -> str:
    """The reverse of read_config. Raises LibremoeError for what the release cannot express."""
    top: dict[str, Any] = {field: getattr(config, ours) for field, ours in _TOP.items()}
    model: dict[str, Any] = {field: getattr(config, ours) for field, ours in _MODEL.items()}
    for widening in (8, 1.5 * config.hidden_dim / config.dim):
        if grok_hidden_dim(config.dim, widening) == config.hidden_dim:
            break
    else:
        raise LibremoeError(f"hidden_dim {config.hidden_dim} must be a multiple of 8 in the official format")
    fixed = {name: value for name, value in _FIXED.items() if getattr(config, name) != value}
    fixed |= {"sliding_window": None} if config.sliding_window is not None else {}
    if fixed:
        name, value = next(iter(fixed.items()))
        raise LibremoeError(f"the official format has {name} {value!r}, not {getattr(config, name)!r}")
    if None in top.values() or None in model.values() or not config.is_moe:
        raise LibremoeError("the official format needs experts, attn_scale, pad_id and eos_id")
    top["model"] = {**model, "widening_factor": widening}
    return json.dumps(top, indent=1) + "\n"


@dataclass(frozen=True)
class Parameter:
    """One file of the checkpoint. shape: as in the file, (in, out) or (E, in, out) for linear weights."""

    file: str
    module: str
    shape: tuple[int, ...]
    quantised: bool
    name: str  # ours; for experts without their number: layers.{i}.experts.{part}.weight


def n_files(config: ModelConfig) -> int:
    return 2 + FILES_PER_LAYER * config.n_layers


def parameters(config: ModelConfig) -> list[Parameter]:
    """All files in their order: sorted by module path AS TEXT, so layer 10 comes before layer 2."""
    d, e, f = config.dim, config.n_experts, config.hidden_dim
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    in_layer: dict[str, tuple[str, tuple[int, ...], bool]] = {
        "moe/linear": ("experts.gate", (e, d, f), True),  # the activated branch
        "moe/linear_1": ("experts.down", (e, f, d), True),
        "moe/linear_v": ("experts.up", (e, d, f), True),
        "multi_head_attention/key": ("attn.k", (d, kv), True),
        "multi_head_attention/linear": ("attn.o", (q, d), True),
        "multi_head_attention/query": ("attn.q", (d, q), True),
        "multi_head_attention/value": ("attn.v", (d, kv), True),
        "rms_norm": ("attn_norm", (d,), False),
        "rms_norm_1": ("attn_post_norm", (d,), False),
        "rms_norm_2": ("ffn_norm", (d,), False),
        "rms_norm_3": ("ffn_post_norm", (d,), False),
        "router": ("router", (d, e), False),
    }
    found: dict[str, tuple[str, tuple[int, ...], bool]] = {
        "language_model/in_out_embed": ("embed.weight", (config.vocab_size, d), False),
        "language_model/rms_norm": ("norm.weight", (d,), False),
    }
    for i in range(config.n_layers):
        for module, (name, shape, quantised) in in_layer.items():
            found[f"transformer/decoder_layer_{i}/{module}"] = f"layers.{i}.{name}.weight", shape, quantised
    return [Parameter(file_name(index), module, shape, quantised, name)
            for index, (module, (name, shape, quantised)) in enumerate(sorted(found.items()))]


def file_name(index: int) -> str:
    return f"tensor{index:05}_000"


# Sizes of the release's files by the last part of our name: the table of docs/grok-1.md, "Parameters".
RELEASE_BYTES = {
    "embed": 3_221_225_637, "gate": 1_611_137_347, "up": 1_611_137_347, "down": 1_611_399_491, "k": 6_293_814,
    "v": 6_293_814, "o": 37_847_359, "q": 37_761_334, "router": 196_770, "norm": 24_727, "attn_norm": 24_727,
    "attn_post_norm": 24_727, "ffn_norm": 24_727, "ffn_post_norm": 24_727,
}
