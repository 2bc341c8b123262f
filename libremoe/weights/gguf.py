"""A GGUF file (or the files of a split one) as a Reader: architectures `grok` and `llama` of llama.cpp.

`llama` covers Llama 2, Mistral 7B and Mixtral. Its files store q and k permuted for rotary pairs of neighbours;
they come out half-split again. `grok` files are half-split as they are (llama.cpp: LLAMA_ROPE_TYPE_NEOX).
Block formats come dequantised as float32. The conventions are those of llama.cpp's src/models and of its
converter; defaults of `grok` files without multipliers are its "defaults for old GGUFs", the release's numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from libremoe.config import ModelConfig
from libremoe.errors import CheckpointError, LibremoeError
from libremoe.experts import Expert, Weight
from libremoe.weights import TensorEntry, check_names, find_tokenizer, parameter_names
from libremoe.weights.gguf_dequant import GGMLType, dequantize
from libremoe.weights.gguf_header import GGUFHeader, GGUFTensor, parse_header
from libremoe.weights.gguf_tokenizer import sentencepiece_model
from libremoe.weights.safetensors_header import opened, read_into

ARCHITECTURES = ("grok", "llama")
MAX_SPLITS = 1000
MAX_EXPERTS_IN_ALL = 1 << 14  # layers x experts; Grok-1 has 512. Bounds the work that a small header can ask for
_SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.ASCII)

_GLOBAL = {"embed.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "head.weight": "output.weight"}
_LAYER = {
    "attn_norm": "attn_norm", "attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v", "attn.o": "attn_output",
    "ffn_norm": "ffn_norm", "router": "ffn_gate_inp", "attn_post_norm": "attn_output_norm",
    "ffn_post_norm": "layer_output_norm",
}  # fmt: skip
# llama.cpp takes either name of the last norm; experts lay apart in files from before April 2024.
_OTHER_NAMES = (("layer_output_norm", "post_ffw_norm"), ("_exps.", ".{e}."))
_SKIPPED = re.compile(r"blk\.\d+\.attn_rot_embd\.weight", re.ASCII)  # rotary buffers of old conversions


@dataclass(frozen=True)
class _Place:
    """One of our tensors: a run of bytes. n_heads: 0, or the heads whose rows are permuted for rotary pairs."""

    file: Path
    type: GGMLType
    shape: tuple[int, ...]
    start: int
    nbytes: int
    n_heads: int = 0


class GGUFReader:
    """The Reader contract of weights/__init__.py over a GGUF file."""

    kind = "gguf"

    def __init__(self, path: Path | str):
        self.path = Path(path)
        header = _joined(self.path)
        self.metadata = header.metadata
        self.config = read_config(self.path, header)
        licence = header.metadata.get("general.license")
        self.licence = licence.decode("utf-8", "replace") if isinstance(licence, bytes) else None
        self.tokenizer = find_tokenizer(self.path.parent)
        self._places = _match(self.path, self.config, dict(header.tensors))
        check_names(self)

    def names(self) -> list[str]:
        return list(self._places)

    def entry(self, name: str) -> TensorEntry:
        place = self._places[name]
        return TensorEntry(name, place.shape, place.type.name, place.nbytes, place.file)

    def read(self, name: str) -> Weight:
        place = self._places[name]
        data = torch.empty(place.nbytes, dtype=torch.uint8)
        with opened(place.file) as fd:
            read_into(fd, place.start, data.numpy().data, place.file)
        weight = dequantize(place.type.name, data).view(place.shape)
        return _unpermute(weight, place.n_heads) if place.n_heads else weight

    def read_expert(self, layer: int, e: int) -> Expert:
        prefix = f"layers.{layer}.experts.{e}"
        return Expert(*(self.read(f"{prefix}.{part}.weight") for part in ("gate", "up", "down")))

    def tokenizer_bytes(self) -> bytes | None:
        """The vocabulary in the file as a SentencePiece model, or None where it has none of that kind."""
        return sentencepiece_model(self.path, self.metadata)


def _unpermute(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Rows of each head from neighbouring pairs (0, 1), (2, 3), ... to halves: the reverse of the converter's permute.

    Source: LlamaModel.permute in llama.cpp's converter.
    """
    n_out, n_in = weight.shape
    return weight.view(n_heads, n_out // n_heads // 2, 2, n_in).transpose(1, 2).reshape(n_out, n_in)


def _joined(path: Path) -> GGUFHeader:
    """The header; of a split model, the first file's metadata with the tensors of all its files."""
    header = parse_header(path)
    n_files = header.metadata.get("split.count", 1)
    if type(n_files) is not int or n_files <= 1:
        return header
    name = _SPLIT_NAME.fullmatch(path.name)
    if n_files > MAX_SPLITS or not name or int(name[3]) != n_files:
        raise CheckpointError(path, f"is one of {n_files} split files but not named NAME-00001-of-{n_files:05}.gguf")
    if int(name[2]) != 1:
        raise CheckpointError(path, f"is a later part of a split model; open {name[1]}-00001-of-{name[3]}.gguf")
    tensors = dict(header.tensors)
    for i in range(2, n_files + 1):
        part = parse_header(path.with_name(f"{name[1]}-{i:05}-of-{name[3]}.gguf"))
        for tensor_name, tensor in part.tensors.items():
            if tensor_name in tensors:
                raise CheckpointError(tensor.file, f"tensor {tensor_name} is also in {tensors[tensor_name].file.name}")
            tensors[tensor_name] = tensor
    return GGUFHeader(header.metadata, tensors)


class _Keys:
    """Typed access to the metadata keys of one architecture."""

    def __init__(self, path: Path, metadata: dict[str, Any], arch: str):
        self.path, self.metadata, self.arch = path, metadata, arch

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._get(name, default)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]  # some converters write one number a layer
        if type(value) is not int or not 0 <= value < 2**31:
            raise CheckpointError(self.path, f"{self.arch}.{name} must be one small integer, not {str(value)[:40]}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default)
        if type(value) not in (int, float):
            raise CheckpointError(self.path, f"{self.arch}.{name} must be a number, not {str(value)[:40]}")
        return float(value)

    def _get(self, name: str, default: Any) -> Any:
        value = self.metadata.get(f"{self.arch}.{name}", default)
        if value is None:
            raise CheckpointError(self.path, f"key {self.arch}.{name} is missing")
        return value


def read_config(path: Path, header: GGUFHeader) -> ModelConfig:
    """Metadata as ModelConfig. Raises CheckpointError for what the network does not have."""
    raw = header.metadata.get("general.architecture")
    arch = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
    if arch not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise CheckpointError(path, f"architecture {arch[:40]!r} is not supported; these are: {known}")
    if "token_embd.weight" not in header.tensors:
        raise CheckpointError(path, "tensor token_embd.weight is missing")
    keys = _Keys(path, header.metadata, arch)
    _refuse_features(keys, header)
    n_heads, dim = keys.integer("attention.head_count"), keys.integer("embedding_length")
    n_experts, window = keys.integer("expert_count", 0), keys.integer("attention.sliding_window", 0) or None
    add_bos = header.metadata.get("tokenizer.ggml.add_bos_token", arch == "llama")
    fields: dict[str, Any] = {
        "family": "grok-1" if arch == "grok" else "mixtral" if n_experts else "mistral" if window else "llama",
        "vocab_size": header.tensors["token_embd.weight"].shape[0], "dim": dim,
        "hidden_dim": keys.integer("expert_feed_forward_length", keys.integer("feed_forward_length")),
        "n_layers": keys.integer("block_count"), "n_heads": n_heads,
        "n_kv_heads": keys.integer("attention.head_count_kv", n_heads),
        "head_dim": keys.integer("attention.key_length", dim // max(n_heads, 1)),
        "context_len": keys.integer("context_length"), "n_experts": n_experts,
        "n_experts_per_tok": keys.integer("expert_used_count", 0),
        "norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 10_000.0), "sliding_window": window,
        "tied_embeddings": "output.weight" not in header.tensors, "add_bos": bool(add_bos),
        "bos_id": _token_id(header, "bos"), "eos_id": _token_id(header, "eos"),
    }  # fmt: skip
    if arch == "grok":
        fields |= {
            "activation": "gelu", "post_norms": True, "renormalise_gates": False, "pad_id": 0,
            "attn_scale": keys.number("attention.output_scale", 0.08838834764831845),
            "attn_softcap": keys.number("attn_logit_softcapping", 30.0),
            "embed_scale": keys.number("embedding_scale", 78.38367176906169),
            "logit_scale": keys.number("logit_scale", 0.5773502691896257),
        }  # fmt: skip
    try:
        config = ModelConfig(**fields)
    except LibremoeError as error:
        raise CheckpointError(path, str(error)) from None
    if config.n_layers * max(config.n_experts, 1) > MAX_EXPERTS_IN_ALL:
        raise CheckpointError(path, f"{config.n_layers} layers of {config.n_experts} experts are too many")
    return config


def _token_id(header: GGUFHeader, which: str) -> int | None:
    value = header.metadata.get(f"tokenizer.ggml.{which}_token_id")
    return value if type(value) is int else None


def _refuse_features(keys: _Keys, header: GGUFHeader) -> None:
    """Raises CheckpointError for switches that change the computation and that the network does not have."""
    arch, path = keys.arch, keys.path
    scaling = header.metadata.get(f"{arch}.rope.scaling.type", b"none")
    if scaling != b"none" or keys.number("rope.scale_linear", 1.0) != 1.0:
        raise CheckpointError(path, f"rotary scaling {str(scaling)[:40]} is not supported")
    if "rope_freqs.weight" in header.tensors:
        raise CheckpointError(path, "rotary frequencies of its own (rope_freqs.weight, Llama 3.1) are not supported")
    if keys.number("final_logit_softcapping", 0.0):
        raise CheckpointError(path, "a soft cap on the logits (Grok-2) is not supported")
    if keys.integer("expert_gating_func", 1) != 1:
        raise CheckpointError(path, "experts chosen by another function than softmax are not supported")
    n_heads = max(keys.integer("attention.head_count"), 1)
    head_dim = keys.integer("attention.key_length", keys.integer("embedding_length") // n_heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if keys.integer(name, head_dim) != head_dim:
            raise CheckpointError(path, f"{arch}.{name} other than the head size {head_dim} is not supported")


def _match(path: Path, config: ModelConfig, stored: dict[str, GGUFTensor]) -> dict[str, _Place]:
    """Our name -> place. Raises CheckpointError naming a missing or left-over tensor."""
    places, used = {}, set()
    for name in parameter_names(config):
        gguf_name, e = tensor_name(config, name)
        for older, newer in _OTHER_NAMES:
            other = gguf_name.replace(older, newer.format(e=e))
            if other != gguf_name and other in stored:
                gguf_name, e = other, None
        if gguf_name not in stored:
            raise CheckpointError(path, f"tensor {gguf_name} is missing")
        used.add(gguf_name)
        tensor = stored[gguf_name]
        if e is None:
            place = _Place(tensor.file, tensor.type, tensor.shape, tensor.start, tensor.nbytes, _paired(config, name))
        else:
            place = _slice(tensor, gguf_name, e, config.n_experts)
        places[name] = place
    for gguf_name in sorted(set(stored) - used):
        if not _SKIPPED.fullmatch(gguf_name):
            raise CheckpointError(stored[gguf_name].file, f"tensor {gguf_name} belongs to no part of such a model")
    return places


def _slice(tensor: GGUFTensor, gguf_name: str, e: int, n_experts: int) -> _Place:
    """Expert e of a stack (E, out, in): its rows are one run of bytes, because rows are whole blocks."""
    if len(tensor.shape) != 3 or tensor.shape[0] != n_experts:
        raise CheckpointError(tensor.file, f"{gguf_name} has shape {tensor.shape}, not one matrix for each of "
                                           f"{n_experts} experts")  # fmt: skip
    nbytes = tensor.nbytes // n_experts
    return _Place(tensor.file, tensor.type, tensor.shape[1:], tensor.start + e * nbytes, nbytes)


def _paired(config: ModelConfig, name: str) -> int:
    """Heads whose rows have to be brought back from rotary pairs to halves, 0 for none."""
    if config.family == "grok-1":
        return 0
    return {"q": config.n_heads, "k": config.n_kv_heads}.get(name.rsplit(".", 2)[-2], 0)


def tensor_name(config: ModelConfig, name: str) -> tuple[str, int | None]:
    """The GGUF tensor that holds ours in a new file, and which expert of the stack, None where it is no stack."""
    if name in _GLOBAL:
        return _GLOBAL[name], None
    _, layer, rest = name.removesuffix(".weight").split(".", 2)
    prefix = f"blk.{layer}"
    if not rest.startswith("experts."):
        return f"{prefix}.{_LAYER[rest]}.weight", None
    _, e, part = rest.split(".")
    if not config.is_moe:
        return f"{prefix}.ffn_{part}.weight", None
    return f"{prefix}.ffn_{part}_exps.weight", int(e)
