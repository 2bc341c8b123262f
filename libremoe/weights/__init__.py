"""Readers: a model on disk seen as named tensors, whatever format it is in.

A reader makes names ours and the rotary layout one (half-split), so the network never asks where a weight came from.
Names, with logical shapes (linear weights are (out, in) whatever the file's order):

    embed.weight (V, D)   norm.weight (D,)   head.weight (V, D), absent where embeddings are tied
    layers.{i}.attn_norm.weight (D,)          layers.{i}.attn_post_norm.weight (D,), with post_norms only
    layers.{i}.attn.{q,k,v,o}.weight          layers.{i}.ffn_norm.weight, layers.{i}.ffn_post_norm.weight (D,)
    layers.{i}.router.weight (E, D), with experts only
    layers.{i}.experts.{e}.{gate,up,down}.weight   gate is the activated branch; a dense feed-forward is expert 0
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from libremoe.config import ModelConfig
from libremoe.errors import CheckpointError
from libremoe.experts import Expert, Weight


@dataclass(frozen=True)
class TensorEntry:
    """What is known of a tensor before it is read. shape: logical, (out, in) for linear weights."""

    name: str
    shape: tuple[int, ...]
    format: str  # as stored: "f32", "bf16", "f16", "int8", "int4", "q4_k", ...
    nbytes: int  # bytes in the file, scales included
    file: Path


class Reader(Protocol):
    """What every format offers. `read` returns float tensors in the stored type, or QuantTensor where the stored
    format is one of ours (official int8 included); other quantised formats come dequantised as float32.

    Opening a reader checks everything that can be checked without reading weights (sizes, shapes, names), so that a bad
    file is refused before memory is taken. All raise CheckpointError naming the file and the reason.
    """

    path: Path
    kind: str  # "grok-1 checkpoint", "safetensors", "gguf", "libremoe"
    config: ModelConfig
    licence: str | None
    tokenizer: Path | None  # the tokenizer file that belongs to it: beside, or one level above

    def names(self) -> list[str]: ...

    def entry(self, name: str) -> TensorEntry: ...

    def read(self, name: str) -> Weight: ...

    def read_expert(self, layer: int, e: int) -> Expert: ...


def parameter_names(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every name a model of this configuration has, with its logical shape: what a reader must offer, no more, no
    less."""
    d, qk = config.dim, config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (config.vocab_size, d), "norm.weight": (d,)}
    if not config.tied_embeddings:
        shapes["head.weight"] = (config.vocab_size, d)
    for i in range(config.n_layers):
        layer = f"layers.{i}"
        norms = ("attn_norm", "attn_post_norm", "ffn_norm", "ffn_post_norm")
        for norm in norms if config.post_norms else norms[::2]:
            shapes[f"{layer}.{norm}.weight"] = (d,)
        shapes[f"{layer}.attn.q.weight"] = (config.n_heads * qk, d)
        shapes[f"{layer}.attn.k.weight"] = (config.n_kv_heads * qk, d)
        shapes[f"{layer}.attn.v.weight"] = (config.n_kv_heads * qk, d)
        shapes[f"{layer}.attn.o.weight"] = (d, config.n_heads * qk)
        if config.is_moe:
            shapes[f"{layer}.router.weight"] = (config.n_experts, d)
        for e in range(max(config.n_experts, 1)):
            expert = f"{layer}.experts.{e}"
            shapes[f"{expert}.gate.weight"] = (config.hidden_dim, d)
            shapes[f"{expert}.up.weight"] = (config.hidden_dim, d)
            shapes[f"{expert}.down.weight"] = (d, config.hidden_dim)
    return shapes


def check_names(reader: Reader) -> None:
    """Raises CheckpointError with both lists when a reader's names or shapes are not those of its configuration."""
    wanted = parameter_names(reader.config)
    found = set(reader.names())
    missing = sorted(set(wanted) - found)
    extra = sorted(found - set(wanted))
    if missing or extra:
        raise CheckpointError(reader.path, f"tensors missing: {_some(missing)}; not known: {_some(extra)}")
    for name, shape in wanted.items():
        if reader.entry(name).shape != shape:
            raise CheckpointError(reader.entry(name).file,
                                  f"{name} has shape {reader.entry(name).shape}, the configuration says {shape}")


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def shared_names(config: ModelConfig) -> Iterator[str]:
    """The names that are no expert's, in the order data flows."""
    return (name for name in parameter_names(config) if ".experts." not in name)


def open_checkpoint(path: Path | str) -> Reader:
    """Look at the files and return the reader that fits.

    Accepts: the official checkpoint (a folder with tensor00000_000, or the folder above one named ckpt-0), a Hugging
    Face folder (config.json + *.safetensors), a GGUF file, libremoe's own folder (manifest.json + libremoe.json).
    Raises CheckpointError saying what was looked for.
    """
    path = Path(path)
    try:
        return _open(path)
    except OSError as error:
        raise CheckpointError(error.filename or path, f"cannot be opened: {error.strerror}") from None


def _open(path: Path) -> Reader:
    if not path.exists():
        raise CheckpointError(path, "no such file or folder")
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            from libremoe.weights.gguf import GGUFReader

            return GGUFReader(path)
        raise CheckpointError(path, "not a model: give the folder that holds it, or a .gguf file")
    os.scandir(path).close()  # a folder that may not be listed looks empty to glob
    if (path / "libremoe.json").exists() or (path / "convert.json").exists():
        from libremoe.weights.native import NativeReader

        return NativeReader(path)
    for folder in (path, path / "ckpt-0"):
        if folder.is_dir() and any(folder.glob("tensor?????_???")):
            from libremoe.weights.grok import GrokReader

            return GrokReader(folder)
    if any(path.glob("*.safetensors")):
        from libremoe.weights.hf import HFReader

        return HFReader(path)
    ggufs = sorted(path.glob("*-00001-of-*.gguf")) or sorted(path.glob("*.gguf"))  # the first of a split file leads
    if len(ggufs) == 1:
        return open_checkpoint(ggufs[0])
    if ggufs:
        names = ", ".join(file.name for file in ggufs[:6])
        raise CheckpointError(path, f"holds {len(ggufs)} .gguf files ({names}): give the path of one")
    raise CheckpointError(
        path,
        "no model found: looked for tensor00000_000 (the official checkpoint), libremoe.json, *.safetensors "
        "with config.json, and one .gguf file",
    )


def find_tokenizer(folder: Path) -> Path | None:
    """tokenizer.model or tokenizer.json in the folder or one level above, the folder first."""
    for place in (folder, *folders_above(folder)):
        for name in ("tokenizer.model", "tokenizer.json"):
            if (place / name).is_file():
                return place / name
    return None


def folders_above(folder: Path) -> list[Path]:
    """Where the folder lies; of a symbolic link, where the link lies and then where it points to."""
    by_name, by_link = Path(os.path.abspath(folder)).parent, folder.resolve().parent
    return [by_name] if by_name == by_link else [by_name, by_link]
