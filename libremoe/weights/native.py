"""libremoe's own folder, read: every weight and every expert is one aligned run with a checksum per block.

The format is written down in docs/formats.md; native_writer.py writes it. A run lies in a safetensors file
as a U8 tensor that begins and ends on 4,096 bytes, so one O_DIRECT read brings an expert, already in the
layout that kernels multiply (the tiles of quant.py). Nothing in a folder is believed: sizes come from the
manifest, spans from the safetensors headers, placement is computed, and libremoe.json must agree with all
of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from libremoe.config import ModelConfig
from libremoe.direct_read import Piece
from libremoe.errors import CheckpointError, LibremoeError
from libremoe.experts import Expert, Weight
from libremoe.quant import FORMATS
from libremoe.weights import TensorEntry, check_names, find_tokenizer
from libremoe.weights.native_layout import (
    ALIGN,
    BLOCK,
    DESCRIPTION,
    MANIFEST,
    PARTS,
    PLAIN,
    VERSION,
    Place,
    Run,
    WeightLayout,
    place,
    run_of,
    up,
    view,
)
from libremoe.weights.safetensors_header import opened, parse_header, read_bytes, read_into, read_json

_MAX_JSON_BYTES = 64 << 20  # the table of Grok-1 in int8 has 3 MB
_LIMIT = 1 << 48
_TENSOR_FIELDS = {"format", "shape", "group", "scales", "data_at", "scales_at"}
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", re.ASCII)


class NativeReader:
    """Reader of libremoe's own folder; see weights/__init__.py for the contract.

    verify: check each block's CRC-32 when it is read. mmap: map files instead of reading them; a mapped file
    that becomes shorter ends the process, so this is a choice and not the default.
    Raises CheckpointError, on opening, for a folder that is not complete or that contradicts itself.
    """

    kind = "libremoe"

    def __init__(self, path: Path | str, mmap: bool = False, verify: bool = True):
        self.path = Path(path)
        self.verify = verify
        self.drop_pages = False  # for a memory budget: see read_into
        self._mapped: dict[Path, torch.Tensor] | None = {} if mmap else None
        files = read_manifest(self.path)
        for name, (size, _) in files.items():
            _check_size(self.path / name, size)
        about = _read_description(self.path, files)
        self.config = _config(self.path, about)
        self.licence = _optional(self.path, about, "licence", str)
        self.source = _optional(self.path, about, "source", str)
        self.random = bool(_optional(self.path, about, "random", bool))  # random weights, to say so plainly
        self.tokenizer = self._tokenizer(_optional(self.path, about, "tokenizer", str), files)
        self._runs = _read_runs(self.path, about, files)
        self._layouts, self._places = _read_tensors(self.path, about, self._runs)
        n_experts = self.config.n_layers * max(self.config.n_experts, 1)
        if n_experts > len(self._layouts):  # before their names are listed
            reason = f"{n_experts} experts, but {len(self._layouts)} tensors"
            raise CheckpointError(self.path / DESCRIPTION, reason)
        check_names(self)

    def names(self) -> list[str]:
        return list(self._layouts)

    def entry(self, name: str) -> TensorEntry:
        layout = self._layouts[name]
        return TensorEntry(name, layout.shape, layout.format, layout.nbytes, self._runs[run_of(name)].file)

    def layout(self, name: str) -> WeightLayout:
        return self._layouts[name]

    def run(self, name: str) -> Run:
        """The run of an expert ("layers.3.experts.5") or of another weight (its own name)."""
        return self._runs[name]

    def read(self, name: str) -> Weight:
        """One weight; of an expert's run only the blocks that hold it are read."""
        where, run = self._places[name], self._runs[run_of(name)]
        start = where.data_at // BLOCK * BLOCK
        stop = min(up(where.stop, BLOCK), run.length)
        return view(self._layouts[name], where, self._bytes(run, start, stop), start)

    def read_expert(self, layer: int, e: int) -> Expert:
        run = self._runs[f"layers.{layer}.experts.{e}"]
        return self.expert_view(layer, e, self._bytes(run, 0, run.length))

    def expert_view(self, layer: int, e: int, buffer: torch.Tensor) -> Expert:
        """An expert as views into a uint8 buffer that holds its whole run, however it was read."""
        names = [f"layers.{layer}.experts.{e}.{part}.weight" for part in PARTS]
        return Expert(*(view(self._layouts[n], self._places[n], buffer) for n in names))

    def expert_pieces(self, layer: int, e: int) -> list[Piece]:
        """Where an expert's bytes lie: one run, each block checked by its checksum."""
        run = self._runs[f"layers.{layer}.experts.{e}"]
        return [Piece(run.file, run.offset, run.length, run.check if self.verify else None)]

    def expert_from(self, layer: int, e: int, pieces: Sequence[torch.Tensor]) -> Expert:
        """The expert over the bytes of expert_pieces (uint8)."""
        return self.expert_view(layer, e, pieces[0])

    def _bytes(self, run: Run, start: int, stop: int) -> torch.Tensor:
        if self._mapped is None:
            buffer = torch.empty(stop - start, dtype=torch.uint8)
            with opened(run.file) as fd:
                read_into(fd, run.offset + start, buffer.numpy().data, run.file, self.drop_pages)
        else:
            if run.file not in self._mapped:  # "c": private pages, as torch has no read-only tensors
                self._mapped[run.file] = torch.from_numpy(np.memmap(run.file, np.uint8, mode="c"))
            buffer = self._mapped[run.file][run.offset + start : run.offset + stop]
        if self.verify:
            run.check(buffer, start)
        return buffer

    def _tokenizer(self, name: str | None, files: dict[str, tuple[int, str]]) -> Path | None:
        if name is None:
            return find_tokenizer(self.path)
        if name not in files:
            raise CheckpointError(self.path / DESCRIPTION, f"tokenizer {name[:80]!r} is not in {MANIFEST}")
        return self.path / name


def read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and sha256 (hex) of every file of the folder but manifest.json itself.

    Raises CheckpointError where there is none, because a folder without one was never finished.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise CheckpointError(folder, f"no {MANIFEST}: its conversion did not finish; run that command again")
    about = read_json(path, _MAX_JSON_BYTES)
    files = about.get("files")
    if about.get("version") != VERSION or not isinstance(files, dict):
        raise CheckpointError(path, f"not a manifest of version {VERSION}")
    for name, entry in files.items():
        if not _FILE_NAME.fullmatch(name):
            raise CheckpointError(path, f"{name[:80]!r} is not a plain file name")
        if not isinstance(entry, dict) or set(entry) != {"size", "sha256"}:
            raise CheckpointError(path, f"entry of {name} is not exactly size and sha256")
        _count(path, entry["size"], f"size of {name}")
        if not isinstance(entry["sha256"], str) or not re.fullmatch(r"[0-9a-f]{64}", entry["sha256"]):
            raise CheckpointError(path, f"sha256 of {name} is not 64 hexadecimal digits")
    return {name: (entry["size"], entry["sha256"]) for name, entry in files.items()}


def _read_description(folder: Path, files: dict[str, tuple[int, str]]) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if DESCRIPTION not in files:
        raise CheckpointError(folder / MANIFEST, f"does not list {DESCRIPTION}")
    with opened(path) as fd:
        text = read_bytes(fd, 0, files[DESCRIPTION][0], path)
    if hashlib.sha256(text).hexdigest() != files[DESCRIPTION][1]:
        raise CheckpointError(path, f"is not the file that {MANIFEST} names: its sha256 differs")
    about = read_json(path, _MAX_JSON_BYTES)
    if about.get("version") != VERSION:
        raise CheckpointError(path, f"version {str(about.get('version'))[:20]}, not {VERSION}")
    return about


def _config(folder: Path, about: dict[str, Any]) -> ModelConfig:
    path, fields = folder / DESCRIPTION, about.get("config")
    if not isinstance(fields, dict):
        raise CheckpointError(path, "config is not an object")
    kinds = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
    for field in dataclasses.fields(ModelConfig):
        value = fields.get(field.name)
        kind, _, optional = str(field.type).partition(" | ")
        if field.name in fields and not (value is None and optional) and type(value) not in kinds[kind]:
            raise CheckpointError(path, f"config: {field.name} is {str(value)[:40]!r}, not {field.type}")
        if type(value) is int and not -_LIMIT < value < _LIMIT:
            raise CheckpointError(path, f"config: {field.name} is not below 2^48")
    try:
        return ModelConfig.from_dict(fields)
    except LibremoeError as error:
        raise CheckpointError(path, f"config: {error}") from None


def _read_runs(folder: Path, about: dict[str, Any], files: dict[str, tuple[int, str]]) -> dict[str, Run]:
    """Runs of all files, checked against the safetensors headers."""
    path, table = folder / DESCRIPTION, about.get("files")
    if not isinstance(table, dict) or not all(isinstance(runs, dict) for runs in table.values()):
        raise CheckpointError(path, "files is not an object of objects")
    found: dict[str, Run] = {}
    for file, runs in table.items():
        if file not in files:
            raise CheckpointError(path, f"file {file[:80]!r} is not in {MANIFEST}")
        header = parse_header(folder / file)
        if set(header.tensors) != set(runs):
            raise CheckpointError(folder / file, f"does not hold the runs that {DESCRIPTION} lists for it")
        for name, entry in runs.items():
            run = _read_run(path, folder / file, name, entry)
            span = header.tensors[name]
            if (span.dtype, span.start, span.nbytes) != ("U8", run.offset, run.length):
                said = f"{DESCRIPTION} says U8, {run.length} bytes at {run.offset}"
                found_it = f"{name} is {span.dtype}, {span.nbytes} bytes at {span.start}"
                raise CheckpointError(folder / file, f"{found_it}; {said}")
            if name in found:
                raise CheckpointError(path, f"{name} is in {found[name].file.name} and in {file}")
            found[name] = run
    return found


def _read_run(path: Path, file: Path, name: str, entry: Any) -> Run:
    if not isinstance(entry, dict) or set(entry) != {"offset", "length", "crc32"}:
        raise CheckpointError(path, f"run {name} is not exactly offset, length and crc32")
    offset = _count(path, entry["offset"], f"offset of {name}")
    length = _count(path, entry["length"], f"length of {name}")
    if offset % ALIGN or length % ALIGN:
        raise CheckpointError(path, f"run {name} is not aligned to {ALIGN} bytes")
    digits, n_blocks = entry["crc32"], -(-length // BLOCK)
    if not isinstance(digits, str) or len(digits) != 8 * n_blocks or not re.fullmatch(r"[0-9a-f]*", digits):
        raise CheckpointError(path, f"crc32 of {name} is not 8 hexadecimal digits for each of its blocks")
    return Run(name, file, offset, length, bytes.fromhex(digits))


def _read_tensors(folder: Path, about: dict[str, Any],
                  runs: dict[str, Run]) -> tuple[dict[str, WeightLayout], dict[str, Place]]:
    """Layouts and places by name; the places are computed, and what the table says must be the same."""
    path, table = folder / DESCRIPTION, about.get("tensors")
    if not isinstance(table, dict):
        raise CheckpointError(path, "tensors is not an object")
    layouts = {name: _read_layout(path, name, entry) for name, entry in table.items()}
    members: dict[str, list[str]] = {name: [] for name in runs}
    for name in layouts:
        if run_of(name) not in runs:
            raise CheckpointError(path, f"{name[:80]}: there is no run {run_of(name)[:80]!r}")
        members[run_of(name)].append(name)
    places: dict[str, Place] = {}
    for run, names in members.items():
        computed, length = place([layouts[name] for name in names])
        if length != runs[run].length:
            raise CheckpointError(path, f"run {run} has {runs[run].length} bytes; its weights need {length}")
        for name, where in zip(names, computed, strict=True):
            if (table[name]["data_at"], table[name]["scales_at"]) != (where.data_at, where.scales_at):
                raise CheckpointError(path, f"{name} is not where its format places it")
            places[name] = where
    return layouts, places


def _read_layout(path: Path, name: str, entry: Any) -> WeightLayout:
    if not isinstance(entry, dict) or set(entry) != _TENSOR_FIELDS:
        raise CheckpointError(path, f"{name[:80]} has not exactly {', '.join(sorted(_TENSOR_FIELDS))}")
    format, shape, scales = entry["format"], entry["shape"], entry["scales"]
    if not isinstance(shape, list) or not 1 <= len(shape) <= 2:
        raise CheckpointError(path, f"shape of {name[:80]} is not one or two numbers")
    sizes = tuple(_count(path, n, f"shape of {name[:80]}") for n in shape)
    if math.prod(sizes) >= _LIMIT or 0 in sizes:
        raise CheckpointError(path, f"shape of {name[:80]} is empty or has 2^48 values")
    group = _count(path, entry["group"], f"group of {name[:80]}")
    quantised = isinstance(format, str) and format in FORMATS
    if not quantised and (not isinstance(format, str) or format not in PLAIN):
        raise CheckpointError(path, f"{name[:80]} has format {str(format)[:40]!r}, which is not known")
    if quantised and not (len(sizes) == 2 and 0 < group <= sizes[1] + 128 and scales in ("bf16", "f32")):
        raise CheckpointError(path, f"{name[:80]}: {format} needs two sizes, a group, and bf16 or f32 scales")
    if not quantised and (group or scales != ""):
        raise CheckpointError(path, f"{name[:80]}: {format} has neither group nor scales")
    return WeightLayout(format, sizes, group, scales)


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat()
    except OSError as error:
        raise CheckpointError(path, f"named in {MANIFEST}, but cannot be found: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(path, "not a regular file")
    if found.st_size != size:
        raise CheckpointError(path, f"has {found.st_size} bytes, {MANIFEST} says {size}: cut or changed")


def _optional(folder: Path, about: dict[str, Any], key: str, kind: type) -> Any:
    value = about.get(key)
    if value is not None and type(value) is not kind:
        raise CheckpointError(folder / DESCRIPTION, f"{key} is not {kind.__name__}")
    return value


def _count(path: Path, value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < _LIMIT:
        raise CheckpointError(path, f"{what} is {str(value)[:40]!r}, not a count below 2^48")
    return value
