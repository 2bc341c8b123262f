"""`libremoe make-tiny DST`: a model of the exact architecture with random weights, at any size.

For trying the program out, for tests and for benchmarks; its text is noise, and the files say so. A
RandomReader is a reader like any other, so the writers of real models write these too. Each tensor has a
generator of its own, keyed by seed and name: the same seed means the same weights in every file format that
can hold them exactly.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from libremoe.config import ModelConfig, preset
from libremoe.convert import HEAD_FORMATS, TARGETS, check_group, convert_reader
from libremoe.errors import LibremoeError
from libremoe.experts import Expert, Weight
from libremoe.progress import size_text
from libremoe.quant import FORMATS, TILE_IN, TILE_OUT, QuantTensor, pack
from libremoe.weights import Reader, TensorEntry, parameter_names
from libremoe.weights.gguf_writer import QUANTS as GGUF_QUANTS
from libremoe.weights.gguf_writer import write_gguf
from libremoe.weights.native_layout import PARTS, WeightLayout
from libremoe.weights.native_writer import PARTIAL, sync_folder, write_small

SPECIAL_TOKENS = ("[PAD]", "[BOS]", "[EOS]", "[UNK]")  # ids 0 to 3, as in the release's vocabulary
MIN_VOCAB = len(SPECIAL_TOKENS) + 256
MAX_LAYERS = 1000  # every weight is planned before any is made; Grok-1 has 64
OFFICIAL_SHARDS = 8  # pieces in which the release was quantised: a scale row for each
NOTICE = "RANDOM-WEIGHTS.txt"
_LICENCE = "none: random weights"
_NOTICE_TEXT = "The weights of this model are random numbers (libremoe make-tiny). What it writes is noise.\n"


def run(args: argparse.Namespace) -> int:
    """The command. args: dst, dims, layers, as_, format, head, group, seed, json. Returns 0; 130 when interrupted."""
    try:
        summary = make_tiny(args.dst, args.as_, args.dims, args.layers, args.format, args.seed,
                            args.head, shown=not args.json, group=args.group)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps(summary))
    else:
        print(f"{summary['dst']}: {summary['parameters'] / 1e6:,.1f} M random weights, {summary['as']}, "
              f"{size_text(summary['bytes'])}")
    return 0


def make_tiny(dst: Path | str, as_: str = "native", dims: str | ModelConfig = "tiny",
              layers: int | None = None, format: str = "int8", seed: int = 0, head: str | None = None,
              shown: bool = False, group: int | None = None) -> dict[str, Any]:
    """Write a random model to dst, which must not exist; returns the summary that --json prints.

    as_: "native" (formats: convert.TARGETS), "ckpt" (the official layout, which is int8) or "gguf"
    (formats: gguf_writer.QUANTS; int8 means q8_0). dims: a preset's name or a configuration. layers:
    instead of its own. head: of the tables in native files, one of convert.HEAD_FORMATS. group: of the linear weights
    in native files, inputs that share a scale. Raises LibremoeError for a
    combination that does not exist, and for a dst that does.
    """
    dst = Path(dst)
    config = preset(dims) if isinstance(dims, str) else dims
    if layers is not None:
        config = dataclasses.replace(config, n_layers=layers)
    if as_ == "gguf" and format == "int8":
        format = "q8_0"
    _check(dst, as_, config, format, head)
    if group is not None and as_ != "native":
        raise LibremoeError(f"--group {group}: native files have a choice of groups, {as_} has none")
    check_group(format, group)
    write = {"native": _write_native, "ckpt": _write_ckpt, "gguf": _write_gguf}[as_]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer.json"
        tokenizer.write_text(byte_tokenizer(config.vocab_size), encoding="utf-8")
        narrow = as_ == "native" and format in FORMATS
        reader = RandomReader(config, format if narrow else "int8", seed, tokenizer, head, group)
        try:
            write(dst, reader, format, shown)
        except OSError as error:
            raise LibremoeError(f"{dst}: {error.strerror or error}") from error
    nbytes = sum(p.stat().st_size for p in (dst.rglob("*") if dst.is_dir() else [dst]) if p.is_file())
    return {"dst": str(dst), "as": as_, "format": format, "seed": seed, "bytes": nbytes,
            "parameters": config.n_params(), "config": config.to_dict()}


def _check(dst: Path, as_: str, config: ModelConfig, format: str, head: str | None) -> None:
    if config.n_layers > MAX_LAYERS:
        raise LibremoeError(f"--layers {config.n_layers} is more than {MAX_LAYERS}")
    formats = {"native": TARGETS, "ckpt": ("int8",), "gguf": GGUF_QUANTS}
    if as_ not in formats:
        raise LibremoeError(f"no file format {as_!r}; there are: {', '.join(formats)}")
    if format not in formats[as_]:
        raise LibremoeError(f"no format {format!r} as {as_}; there are: {', '.join(formats[as_])}")
    if head is not None and (as_ != "native" or head not in HEAD_FORMATS):
        raise LibremoeError(f"--head {head}: native files have {', '.join(HEAD_FORMATS)}; others have no choice")
    if as_ == "ckpt" and config.family != "grok-1":
        raise LibremoeError(f"the official checkpoint layout holds Grok-1 only, not {config.family}")
    if as_ != "native" and dst.exists():  # a native one is a conversion, which may go on
        raise LibremoeError(f"{dst}: exists; give another name or remove it")


def is_random(reader: Reader) -> bool:
    """Whether a model says of itself that make-tiny wrote it, in whichever format."""
    beside = any((folder / NOTICE).is_file() for folder in (reader.path, reader.path.parent))
    return beside or reader.licence == _LICENCE or bool(getattr(reader, "random", False))


class RandomReader:
    """A reader (weights/__init__.py) whose weights are made when they are read.

    format: of linear weights: int8 with the groups of the release for Grok-1, else any of quant.FORMATS
    with `group` or its default. Embedding and head are as `head` says, else float32 beside int8 and int8 beside less;
    norms scatter around 1; all else has mean 0 and a standard deviation that keeps activations near 1.
    """

    kind = "random weights"
    licence: str | None = None

    def __init__(self, config: ModelConfig, format: str = "int8", seed: int = 0,
                 tokenizer: Path | None = None, head: str | None = None, group: int | None = None):
        self.path = Path(f"random weights with seed {seed}")
        self.config = config
        self.format = format
        self.head = head
        self.group = group
        self.seed = seed
        self.tokenizer = tokenizer
        self._shapes = parameter_names(config)

    def names(self) -> list[str]:
        return list(self._shapes)

    def layout(self, name: str) -> WeightLayout:
        shape = self._shapes[name]
        if name.endswith(("norm.weight", "router.weight")):
            return WeightLayout("f32", shape)
        if name in ("embed.weight", "head.weight"):
            head = self.head or ("f32" if self.format == "int8" else "int8")
            if head not in FORMATS:
                return WeightLayout("f32", shape)
            return WeightLayout(head, shape, 64 if head == "int8" else 32, "bf16")
        group = self.group or FORMATS[self.format].groups[0]
        if self.format == "int8" and self.group is None and self.config.family == "grok-1":
            cut = name.endswith(("attn.o.weight", "down.weight")) and shape[1] % OFFICIAL_SHARDS == 0
            group = shape[1] // (OFFICIAL_SHARDS if cut else 1)  # only weights cut along their inputs have 8
        return WeightLayout(self.format, shape, group, "bf16")

    def entry(self, name: str) -> TensorEntry:
        layout = self.layout(name)
        return TensorEntry(name, layout.shape, layout.format, layout.nbytes, self.path)

    def read(self, name: str) -> Weight:
        layout = self.layout(name)
        key = int.from_bytes(hashlib.sha256(f"{self.seed}/{name}".encode()).digest()[:16], "big")
        rng = np.random.Generator(np.random.Philox(key=key))
        if layout.format in FORMATS:
            return _random_quant(rng, layout, self._deviation(name, layout.shape))
        values = torch.from_numpy(rng.standard_normal(layout.shape, dtype=np.float32))
        if name.endswith("norm.weight"):
            return values.mul_(0.1).add_(1.0)
        return values.mul_(self._deviation(name, layout.shape))

    def read_expert(self, layer: int, e: int) -> Expert:
        return Expert(*(self.read(f"layers.{layer}.experts.{e}.{part}.weight") for part in PARTS))

    def _deviation(self, name: str, shape: tuple[int, ...]) -> float:
        return 1.0 / self.config.embed_scale if name == "embed.weight" else 1.0 / math.sqrt(shape[1])


def _random_quant(rng: np.random.Generator, layout: WeightLayout, deviation: float) -> QuantTensor:
    """Uniform codes made directly in the tiles layout, with scales that give the deviation wanted."""
    fmt, (n_out, n_in) = FORMATS[layout.format], layout.shape
    words = rng.integers(0, 1 << 64, size=-(-layout.data_nbytes // 8), dtype=np.uint64)
    data = torch.from_numpy(words.view(np.uint8)[: layout.data_nbytes]).view(layout.data_shape())
    code_deviation = math.sqrt(((1 << fmt.bits) ** 2 - 1) / 12)
    spread = torch.from_numpy(rng.random(layout.scales_shape(), dtype=np.float32)).mul_(0.6).add_(0.7)
    scales = (spread * (deviation / code_deviation)).bfloat16()
    weight = QuantTensor(layout.format, (n_out, n_in), layout.group, data, scales)
    if n_out % TILE_OUT == 0 and n_in % TILE_IN == 0:
        return weight
    rows = weight.scales.transpose(1, 2).reshape(-1, weight.scales.shape[1])[:n_out]
    return pack(layout.format, weight.codes(), rows, layout.group)  # padding codes must mean zero


def byte_tokenizer(vocab_size: int) -> str:
    """A Hugging Face tokenizer.json: four special tokens, the 256 bytes, and letters that only decoding uses.

    Ids from 260 on are runs of letters that no text is encoded to, so that whatever a random model says can
    be shown. Raises LibremoeError for fewer than 260 ids.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    if vocab_size < MIN_VOCAB:
        raise LibremoeError(f"a byte tokenizer needs a vocabulary of at least {MIN_VOCAB}, not {vocab_size}")
    tokens = [*SPECIAL_TOKENS, *_byte_symbols()]
    tokens += [_letters(i) for i in range(vocab_size - len(tokens))]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return str(tokenizer.to_str())


def _byte_symbols() -> list[str]:
    """The character that stands for each byte in byte-level BPE: itself, or one from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _letters(i: int) -> str:
    """Two or more letters, different for each i: aa, ab, ..., zz, aaa, ..."""
    length = 2
    while i >= 26**length:
        i -= 26**length
        length += 1
    return "".join(chr(97 + i // 26**k % 26) for k in reversed(range(length)))


def _write_native(dst: Path, reader: RandomReader, format: str, shown: bool) -> None:
    convert_reader(reader, dst, format, reader.head, random=True, shown=shown, title="writing random weights")


def _write_ckpt(dst: Path, reader: RandomReader, format: str, shown: bool) -> None:
    from libremoe.weights.grok_writer import write_checkpoint

    with _whole_folder(dst, reader) as folder:
        write_checkpoint(folder, reader.config, reader.read)


def _write_gguf(dst: Path, reader: RandomReader, format: str, shown: bool) -> None:
    """One file where dst ends in .gguf, else a folder that holds it, the tokenizer and the notice."""
    if dst.suffix == ".gguf":
        write_gguf(dst, reader.config, reader.read, format, licence=_LICENCE)
        return
    with _whole_folder(dst, reader) as folder:
        write_gguf(folder / "model.gguf", reader.config, reader.read, format, licence=_LICENCE)


@contextlib.contextmanager
def _whole_folder(dst: Path, reader: RandomReader) -> Iterator[Path]:
    """A folder that appears as dst, with tokenizer and notice, when the block ends well; else not."""
    partial = dst.with_name(f".{dst.name}.{os.getpid()}{PARTIAL}")
    partial.mkdir()
    try:
        yield partial
        write_small(partial / NOTICE, _NOTICE_TEXT.encode())
        if reader.tokenizer is not None:
            write_small(partial / reader.tokenizer.name, reader.tokenizer.read_bytes())
        partial.rename(dst)
        sync_folder(dst.absolute().parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
