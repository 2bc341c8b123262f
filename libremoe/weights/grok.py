"""The official Grok-1 checkpoint: a folder of pickles, read without ever unpickling.

pickle_grammar.py finds where the arrays lie, grok_layout.py says which parameter each file holds; here the
bytes are read when they are asked for, one expert as two contiguous runs. Weights keep the file's own order:
QuantTensor layout "columns". A file that shrinks under a running program gives a short read, which is an
error of one request; a mapped file would end the process, so mapping is for those who ask for it.
"""

from __future__ import annotations

import functools
import mmap as mmap_module
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from libremoe.config import GROK_1, ModelConfig
from libremoe.direct_read import Piece
from libremoe.errors import CheckpointError
from libremoe.experts import Expert, Weight
from libremoe.quant import QuantTensor
from libremoe.weights import TensorEntry, find_tokenizer, folders_above
from libremoe.weights.byte_window import open_regular
from libremoe.weights.grok_layout import RELEASE_BYTES, Parameter, file_name, n_files, parameters, read_config
from libremoe.weights.pickle_grammar import Shard, StoredArray, parse_shard
from libremoe.weights.safetensors_header import read_into

_DTYPES = {"int8": torch.int8, "bfloat16": torch.bfloat16, "float32": torch.float32}
_MAX_FILES = 100_000  # what five digits can number


@dataclass(frozen=True)
class _Place:
    """Where one of our tensors lies: a whole file, or one expert of a file."""

    parameter: Parameter
    shard: Shard
    expert: int | None


class GrokReader:
    """The Reader contract over a folder of tensorNNNNN_000 files.

    The configuration is the release's, unless a config.json lies in the folder or one level above. Opening
    parses the header of every file and compares types, shapes and, for the release's configuration, published
    sizes. Files that do not begin with `tensor` are left alone.

    mmap: map the int8 codes instead of reading them; for local files that nobody changes meanwhile, because a
    mapped file that shrinks ends the process.

    Raises CheckpointError naming the file and what is wrong with it, from the constructor and from every
    read.
    """

    kind = "grok-1 checkpoint"

    def __init__(self, folder: Path | str, mmap: bool = False):
        self.path = Path(folder)
        if not self.path.is_dir():
            raise CheckpointError(self.path, "is no folder; the official checkpoint is one")
        self.config = _find_config(self.path)
        self.licence = "Apache-2.0" if self.config == GROK_1 else None
        self.tokenizer = find_tokenizer(self.path)
        self._mmap = mmap
        self.drop_pages = False  # for a memory budget: see _read_into
        self._mapped: dict[Path, mmap_module.mmap] = {}
        _check_file_names(self.path, self.config)
        self._places: dict[str, _Place] = {}
        for parameter in parameters(self.config):
            path = self.path / parameter.file
            if self.config == GROK_1:
                _check_release_size(path, parameter)
            shard = parse_shard(path)
            _check_shard(shard, parameter)
            if ".experts." not in parameter.name:
                self._places[parameter.name] = _Place(parameter, shard, None)
                continue
            for e in range(self.config.n_experts):
                name = parameter.name.replace(".experts.", f".experts.{e}.")
                self._places[name] = _Place(parameter, shard, e)

    def names(self) -> list[str]:
        return list(self._places)

    def entry(self, name: str) -> TensorEntry:
        place = self._place(name)
        shard, shape = place.shard, place.parameter.shape
        n_parts = 1 if place.expert is None else shape[0]
        nbytes = shard.weight.nbytes // n_parts
        if not place.parameter.quantised:
            logical = shape[::-1] if name.endswith("router.weight") else shape
            return TensorEntry(name, logical, "f32", nbytes, shard.path)
        if shard.scales is not None:
            nbytes += shard.scales.nbytes // n_parts
        return TensorEntry(name, (shape[-1], shape[-2]), "int8", nbytes, shard.path)

    def read(self, name: str) -> Weight:
        """float32 for norms, router and embedding; QuantTensor (int8, columns) for all other weights."""
        place = self._place(name)
        shard = place.shard
        if shard.scales is None:
            values = self._array(shard, shard.weight, None)
            return values.t().contiguous() if name.endswith("router.weight") else values
        codes = self._array(shard, shard.weight, place.expert)
        scales = self._array(shard, shard.scales, place.expert)
        n_in, n_out = codes.shape
        return QuantTensor("int8", (n_out, n_in), n_in // scales.shape[0], codes, scales, layout="columns")

    def read_expert(self, layer: int, e: int) -> Expert:
        prefix = f"layers.{layer}.experts.{e}"
        return Expert(*(self.read(f"{prefix}.{part}.weight") for part in ("gate", "up", "down")))

    def expert_pieces(self, layer: int, e: int) -> list[Piece]:
        """Where an expert's bytes lie: codes and scales of gate, up and down, each in its own shard. Shards carry no
        checksums; one that changed since it was opened is refused."""
        pieces = []
        for shard, stored in self._expert_arrays(layer, e):
            size = stored.nbytes // stored.shape[0]
            check = functools.partial(_check_unchanged_file, shard)
            pieces.append(Piece(shard.path, stored.offset + e * size, size, check))
        return pieces

    def expert_from(self, layer: int, e: int, pieces: Sequence[torch.Tensor]) -> Expert:
        """The expert over the bytes of expert_pieces (uint8). Scales are copied: they may begin at an odd byte."""
        values = []
        for (_, stored), piece in zip(self._expert_arrays(layer, e), pieces, strict=True):
            dtype = _DTYPES[stored.dtype]
            data = piece if dtype == torch.int8 else piece.clone()
            values.append(data.view(dtype).view(stored.shape[1:]))
        weights = []
        for codes, scales in zip(values[::2], values[1::2], strict=True):
            n_in, n_out = codes.shape
            weights.append(QuantTensor("int8", (n_out, n_in), n_in // scales.shape[0], codes, scales, layout="columns"))
        return Expert(*weights)

    def _expert_arrays(self, layer: int, e: int) -> list[tuple[Shard, StoredArray]]:
        found = []
        for part in ("gate", "up", "down"):
            shard = self._place(f"layers.{layer}.experts.{e}.{part}.weight").shard
            if shard.scales is None:
                raise CheckpointError(shard.path, "holds experts without scales, which cannot be streamed")
            found += [(shard, shard.weight), (shard, shard.scales)]
        return found

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise CheckpointError(self.path, f"there is no tensor {name}")
        return self._places[name]

    def _array(self, shard: Shard, stored: StoredArray, expert: int | None) -> torch.Tensor:
        """The whole array, or the slice [expert] of its first axis."""
        shape, offset, dtype = stored.shape, stored.offset, _DTYPES[stored.dtype]
        if expert is not None:
            offset += expert * (stored.nbytes // shape[0])
            shape = shape[1:]
        if self._mmap and dtype == torch.int8:  # the only type that may begin at any byte
            count = torch.Size(shape).numel()
            return torch.frombuffer(self._map(shard), dtype=dtype, count=count, offset=offset).view(shape)
        values = torch.empty(shape, dtype=dtype)
        _read_into(shard, offset, values.view(-1).view(torch.uint8).numpy().data, self.drop_pages)
        return values

    def _map(self, shard: Shard) -> mmap_module.mmap:
        if shard.path not in self._mapped:  # private pages, because torch has no read-only tensors
            with open_regular(shard.path) as file:
                _check_unchanged(shard, file.fileno())
                try:
                    mapped = mmap_module.mmap(file.fileno(), shard.size, access=mmap_module.ACCESS_COPY)
                except OSError as e:
                    raise CheckpointError(shard.path, f"cannot be mapped: {e.strerror}") from None
            self._mapped[shard.path] = mapped
        return self._mapped[shard.path]


def _find_config(folder: Path) -> ModelConfig:
    for path in (place / "config.json" for place in (folder, *folders_above(folder))):
        if os.path.lexists(path):
            return read_config(path)
    return GROK_1


def _check_file_names(folder: Path, config: ModelConfig) -> None:
    """Exactly tensor00000_000 and on, as many as the configuration has."""
    wanted = n_files(config)
    try:
        found = {name for name in os.listdir(folder) if name.startswith("tensor")}
    except OSError as e:
        raise CheckpointError(folder, f"cannot be listed: {e.strerror}") from None
    said = f"{config.n_layers} layers are {wanted:,} files, {file_name(0)} to {file_name(wanted - 1)}"
    if wanted > _MAX_FILES:
        raise CheckpointError(folder, f"{said}: more than file names can number")
    names = {file_name(i) for i in range(wanted)}
    missing, extra = sorted(names - found), sorted(found - names)
    if missing:
        more = f" and {len(missing) - 4:,} more" if len(missing) > 4 else ""
        raise CheckpointError(folder, f"missing: {', '.join(missing[:4])}{more} ({said})")
    if extra:
        more = f" and {len(extra) - 4:,} more" if len(extra) > 4 else ""
        shown = ", ".join(ascii(name)[1:-1][:80] for name in extra[:4])
        raise CheckpointError(folder, f"does not belong here: {shown}{more} ({said})")


def _check_release_size(path: Path, parameter: Parameter) -> None:
    wanted = RELEASE_BYTES[parameter.name.split(".")[-2]]
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size != wanted:
        raise CheckpointError(
            path, f"has {size:,} bytes, the release's file has {wanted:,}: download it again "
            "(another model than Grok-1 needs a config.json beside its files)")


def _check_shard(shard: Shard, parameter: Parameter) -> None:
    """Type and shape against the configuration, scale rows against the weight."""
    weight, scales = shard.weight, shard.scales
    wanted = "int8" if parameter.quantised else "float32"
    found_as_wanted = (weight.dtype, weight.shape) == (wanted, parameter.shape)
    if not found_as_wanted or (scales is not None) != parameter.quantised:
        raise CheckpointError(
            shard.path, f"holds {weight.dtype} {weight.shape}; by the configuration it is "
            f"{parameter.module}, {wanted} {parameter.shape}")
    if scales is None:
        return
    *experts, n_in, n_out = parameter.shape
    rows = scales.shape[-2] if len(scales.shape) == len(parameter.shape) else 0
    if not rows or n_in % rows or scales.shape != (*experts, rows, n_out):
        raise CheckpointError(shard.path, f"scales {scales.shape} do not go with weights {parameter.shape}")


def _check_unchanged_file(shard: Shard, _buffer: torch.Tensor, _at: int) -> None:
    with open_regular(shard.path) as file:
        _check_unchanged(shard, file.fileno())


def _check_unchanged(shard: Shard, fd: int) -> None:
    status = os.fstat(fd)
    if (status.st_size, status.st_mtime_ns) != (shard.size, shard.mtime_ns):
        raise CheckpointError(shard.path, "changed since it was opened; load the model again")


def _read_into(shard: Shard, offset: int, buffer: memoryview, drop_pages: bool) -> None:
    """Fill buffer from offset on; a file that is shorter than it was is an error."""
    with open_regular(shard.path) as file:
        _check_unchanged(shard, file.fileno())
        read_into(file.fileno(), offset, buffer, shard.path, drop_pages)
