"""Write a model as a GGUF file that llama.cpp and weights/gguf.py read: architecture `grok`, or `llama`.

Meant for tiny test models and small conversions; needs the `gguf` package. K-quants are made from an f16 or f32
file by llama.cpp's own llama-quantize. One tensor (all experts of a layer for a stack) is in memory at a time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from libremoe.config import ModelConfig
from libremoe.errors import LibremoeError
from libremoe.experts import Weight
from libremoe.quant import QuantTensor
from libremoe.weights import parameter_names
from libremoe.weights.gguf import tensor_name
from libremoe.weights.gguf_dequant import TYPES

if TYPE_CHECKING:
    import gguf
    import numpy as np

QUANTS = ("f32", "f16", "bf16", "q8_0", "q4_0")
_N_BYTE_PIECES = 3 + 256  # <unk>, <s>, </s> and every byte


def write_gguf(path: Path | str, config: ModelConfig, tensor_source: Callable[[str], Weight], quant: str = "f16",
               licence: str | None = None) -> None:
    """Write the model that tensor_source hands out by our names.

    Norms and routers stay float32, and so does a weight whose rows are no multiple of the format's block. The
    vocabulary is one of bytes, enough for llama.cpp to load the file. The file appears only when it is complete.
    Raises LibremoeError for an unknown quant, a wrong shape, a folder that cannot be written, or where the gguf
    package is missing.
    """
    try:
        import gguf
    except ImportError:
        raise LibremoeError("writing GGUF needs the gguf package: pip install gguf") from None
    if quant not in QUANTS:
        raise LibremoeError(f"cannot write GGUF as {quant!r}; there are: {', '.join(QUANTS)}")
    path = Path(path)
    stacks = _stacks(config)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    writer = gguf.GGUFWriter(partial, "grok" if config.family == "grok-1" else "llama")
    try:
        _add_metadata(writer, config, licence)
        for name, (ours, shape) in stacks.items():
            kind = _type_of(gguf, quant, ours[0], shape)
            nbytes = math.prod(shape) // _block(kind)[0] * _block(kind)[1]
            writer.add_tensor_info(name, shape, torch.empty(0).numpy().dtype, nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for ours, shape in stacks.values():
            writer.write_tensor_data(_stack(gguf, config, tensor_source, ours, shape, quant))
        writer.flush()
        for file in writer.fout or []:
            os.fsync(file.fileno())
        writer.close()
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise LibremoeError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        writer.close()
        partial.unlink(missing_ok=True)


def _stacks(config: ModelConfig) -> dict[str, tuple[list[str], tuple[int, ...]]]:
    """GGUF name -> (our names that make it up, shape): a stack (E, out, in) of experts, or one tensor."""
    stacks: dict[str, tuple[list[str], tuple[int, ...]]] = {}
    for ours, shape in parameter_names(config).items():
        name, e = tensor_name(config, ours)
        if e is None:
            stacks[name] = [ours], shape
        else:
            stacks.setdefault(name, ([], (config.n_experts, *shape)))[0].append(ours)
    return stacks


def _block(kind: gguf.GGMLQuantizationType) -> tuple[int, int]:
    return TYPES[kind.value].block, TYPES[kind.value].nbytes


def _type_of(gguf_module: ModuleType, quant: str, ours: str, shape: tuple[int, ...]) -> gguf.GGMLQuantizationType:
    types = gguf_module.GGMLQuantizationType
    kind = types[quant.upper()]
    if len(shape) == 1 or ours.endswith("router.weight") or shape[-1] % _block(kind)[0]:
        return types.F32
    return kind


def _stack(gguf_module: ModuleType, config: ModelConfig, tensor_source: Callable[[str], Weight], ours: list[str],
           shape: tuple[int, ...], quant: str) -> np.ndarray:
    """The bytes of one GGUF tensor."""
    import numpy as np

    kind = _type_of(gguf_module, quant, ours[0], shape)
    wanted = shape[1:] if len(ours) > 1 else shape
    parts = [gguf_module.quantize(w.numpy(), kind) for w in _floats(config, tensor_source, ours, wanted)]
    return np.stack(parts) if len(parts) > 1 else np.ascontiguousarray(parts[0])


def _floats(config: ModelConfig, tensor_source: Callable[[str], Weight], ours: list[str],
            wanted: tuple[int, ...]) -> Iterator[torch.Tensor]:
    for name in ours:
        weight = tensor_source(name)
        weight = weight.dequantize() if isinstance(weight, QuantTensor) else weight
        if tuple(weight.shape) != wanted:
            raise LibremoeError(f"{name} has shape {tuple(weight.shape)}, the configuration says {wanted}")
        n_heads = {"attn.q": config.n_heads, "attn.k": config.n_kv_heads}.get(".".join(name.split(".")[2:4]))
        if n_heads and config.family != "grok-1":
            weight = _permute(weight, n_heads)
        yield weight.float().contiguous()


def _permute(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Rows of each head from halves to neighbouring pairs, as llama.cpp's `llama` architecture wants them."""
    n_out, n_in = weight.shape
    return weight.view(n_heads, 2, n_out // n_heads // 2, n_in).transpose(1, 2).reshape(n_out, n_in)


def _add_metadata(writer: gguf.GGUFWriter, config: ModelConfig, licence: str | None) -> None:
    writer.add_name(config.family)
    if licence:
        writer.add_license(licence)
    writer.add_context_length(config.context_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if config.is_moe:
        writer.add_expert_count(config.n_experts)
        writer.add_expert_used_count(config.n_experts_per_tok)
    if config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)
    if config.family == "grok-1":
        writer.add_attn_output_scale(config.score_scale)
        writer.add_attn_logit_softcapping(config.attn_softcap or 0.0)
        writer.add_embedding_scale(config.embed_scale)
        writer.add_logit_scale(config.logit_scale)
    _add_byte_vocabulary(writer, config)


def _add_byte_vocabulary(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """Ids 0-2 <unk>, <s>, </s>, then 256 bytes, then unused pieces; none where the vocabulary is too small."""
    if config.bos_id is not None:
        writer.add_bos_token_id(config.bos_id)
    if config.eos_id is not None:
        writer.add_eos_token_id(config.eos_id)
    writer.add_add_bos_token(config.add_bos)
    if config.vocab_size < _N_BYTE_PIECES:
        writer.add_tokenizer_model("no_vocab")
        return
    unused = [f"<unused{i}>" for i in range(config.vocab_size - _N_BYTE_PIECES)]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *unused]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * len(pieces))
    unknown, control, unused_kind, byte_kind = 2, 3, 5, 6  # llama_token_type, SentencePiece's numbers
    writer.add_token_types([unknown, control, control, *[byte_kind] * 256, *[unused_kind] * len(unused)])


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
