"""`libremoe convert SRC DST --format F`: any readable model into libremoe's own folder, file by file.

One tensor is in memory at a time. Each finished file is recorded in convert.json inside DST, which is
removed at the end. A run that was interrupted, however it was, goes on from there; the result is the same
to the last byte.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from libremoe.config import ModelConfig
from libremoe.errors import CheckpointError, LibremoeError
from libremoe.experts import Weight
from libremoe.progress import Progress, size_text
from libremoe.quant import FORMATS, TILE_OUT, QuantTensor, quantize
from libremoe.weights import Reader, open_checkpoint, shared_names
from libremoe.weights.gguf import GGUFReader
from libremoe.weights.native_layout import JOURNAL, PARTS, PLAIN, WeightLayout, place, view
from libremoe.weights.native_writer import (
    PARTIAL,
    FileRecord,
    Layouts,
    complete,
    file_size,
    write_small,
    write_weights,
)
from libremoe.weights.safetensors_header import read_json

TARGETS = ("f32", "bf16", *FORMATS)
HEAD_FORMATS = ("f32", "bf16", "int8", "int4")
SHARED = "shared.safetensors"
TABLES = ("embed.weight", "head.weight")
_MAX_JOURNAL_BYTES = 64 << 20
_CHUNK = 4 << 20  # weights converted at once; bounds what conversion needs beside the tensor itself
_SPARE_BYTES = 16 << 20  # kept free on the disk for the tables and the file system's own needs
_AGAIN = "what is done is kept: run the same command again to continue"
_CARRIED = ("chat_template.jinja", "tokenizer_config.json", "train.json")


def run(args: argparse.Namespace) -> int:
    """The command. args: src, dst, format, head, group, json. Exit status 0; 130 when interrupted."""
    try:
        summary = convert(args.src, args.dst, args.format, args.head, shown=not args.json, group=args.group)
    except KeyboardInterrupt:
        print(f"\nstopped; {_AGAIN}", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps(summary))
    else:
        print(f"{summary['dst']}: {summary['files']} files, {size_text(summary['bytes'])}, "
              f"{summary['format']}; {summary['megabytes_per_s']:.0f} MB/s")
    return 0


def convert(src: Path | str, dst: Path | str, format: str, head: str | None = None,
            shown: bool = True, group: int | None = None) -> dict[str, Any]:
    """Convert the model at src into a new folder dst, or continue; returns the summary that --json prints.

    group: inputs that share a scale, of linear weights that are quantised; None: the format's default.
    Raises LibremoeError for anything that a person can put right: formats, an existing dst, a full disk.
    """
    return convert_reader(open_checkpoint(src), Path(dst), format, head, shown=shown, group=group)


def convert_reader(reader: Reader, dst: Path, format: str, head: str | None = None, random: bool = False,
                   shown: bool = True, title: str = "converting", group: int | None = None) -> dict[str, Any]:
    """As convert, from an open reader. random: mark the result as random weights."""
    for given, known in ((format, TARGETS), (head or HEAD_FORMATS[0], HEAD_FORMATS)):
        if given not in known:
            raise LibremoeError(f"no format {given!r} to convert to; there are: {', '.join(known)}")
    check_group(format, group)
    _check_carried(reader, format, group)
    started = time.monotonic()
    try:
        with _locked(dst):
            done = _resume(dst, {"format": format, "head": head, "group": group, **_identity(reader)})
            written = _write_files(reader, dst, Wanted(format, head, group), done, random, Progress(title, 0, shown))
    except OSError as error:
        again = f"; {_AGAIN}" if os.access(dst / JOURNAL, os.F_OK) else ""
        raise LibremoeError(f"{error.filename or dst}: {error.strerror or error}{again}") from error
    seconds = time.monotonic() - started
    files = {p.name: p.stat().st_size for p in dst.iterdir()}
    return {"src": str(reader.path), "dst": str(dst), "format": format, "files": len(files),
            "bytes": sum(files.values()), "seconds": round(seconds, 3), "bytes_written": written,
            "megabytes_per_s": round(written / max(seconds, 1e-9) / 1e6, 1)}


def check_group(format: str, group: int | None) -> None:
    """Raises LibremoeError for a group that the format does not offer."""
    groups = FORMATS[format].groups if format in FORMATS else ()
    said = ", ".join(map(str, groups))
    if group is not None and group not in groups:
        raise LibremoeError(f"--group {group}: {format} has {f'groups of {said}' if groups else 'no groups'}")


def _check_carried(reader: Reader, format: str, group: int | None) -> None:
    name = "layers.0.experts.0.gate.weight"
    if group is None or reader.entry(name).format != format:
        return
    weight = reader.read(name)
    if isinstance(weight, QuantTensor) and weight.group != group:
        raise LibremoeError(f"--group {group}: {reader.path} is {format} in groups of {weight.group} already, which "
                            "are carried over; leave --group out, or convert the original")


@dataclass(frozen=True)
class Wanted:
    """What to convert to. head: of the tables, group: of linear weights; None: as is usual for the format."""

    format: str
    head: str | None
    group: int | None


def _write_files(reader: Reader, dst: Path, wanted: Wanted, journal: dict[str, Any], random: bool,
                 bar: Progress) -> int:
    """Everything that is not there yet; returns the bytes written now."""
    done: dict[str, FileRecord] = journal["files"]
    tokenizer, others = _tokenizer(reader), {}  # first, because it may not be readable
    plans = _plan(reader.config)
    todo = {file: names for file, names in plans.items() if file not in done}
    shared = {name: _layout(reader, name, wanted) for name in plans[SHARED]}
    expert = {name: _layout(reader, name, wanted) for name in plans["experts-00000.safetensors"]}
    sizes = {file: file_size(shared if file == SHARED else expert) for file in plans}
    _check_space(dst, sum(sizes[file] for file in todo))
    bar.total = sum(sizes.values())
    bar.done = before = sum(record["size"] for record in done.values())
    with bar:
        for file, names in todo.items():
            layouts = shared if file == SHARED else {n: _layout(reader, n, wanted) for n in names}
            done[file] = write_weights(dst / file, layouts, _buffers(reader, layouts), bar.advance)
            write_small(dst / JOURNAL, json.dumps(journal).encode())
    if tokenizer is not None:
        others[tokenizer[0]] = write_small(dst / tokenizer[0], tokenizer[1])
    for found in _carried_files(reader):
        others[found.name] = write_small(dst / found.name, found.read_bytes())
    about = {"config": reader.config.to_dict(), "format": wanted.format, "licence": reader.licence,
             "source": reader.kind, "tokenizer": tokenizer[0] if tokenizer else None, "random": random}
    complete(dst, about, {file: done[file] for file in plans}, others)
    (dst / JOURNAL).unlink()  # not synced: should it come back after a power cut, the next run removes it
    return bar.done - before


def _plan(config: ModelConfig) -> dict[str, list[str]]:
    """The files to write and the weights that each holds, in order."""
    plans = {SHARED: list(shared_names(config))}
    for layer in range(config.n_layers):
        experts = range(max(config.n_experts, 1))
        plans[f"experts-{layer:05d}.safetensors"] = [
            f"layers.{layer}.experts.{e}.{part}.weight" for e in experts for part in PARTS
        ]
    return plans


def _carried_files(reader: Reader) -> list[Path]:
    """What the server renders conversations with, and the record of the training, where they lie beside the weights."""
    if not reader.path.exists():  # random weights come from nowhere
        return []
    folder = reader.path if reader.path.is_dir() else reader.path.parent
    return [folder / name for name in _CARRIED if (folder / name).is_file()]


def _tokenizer(reader: Reader) -> tuple[str, bytes] | None:
    """File name and content of the model's tokenizer, be it beside the weights or, in a GGUF, inside."""
    if reader.tokenizer is not None:
        return reader.tokenizer.name, reader.tokenizer.read_bytes()
    if isinstance(reader, GGUFReader) and (inside := reader.tokenizer_bytes()) is not None:
        return "tokenizer.model", inside
    return None


def target_format(name: str, stored: str, format: str, head: str | None) -> str:
    """The format of one weight in the result. stored: its format in the source, as TensorEntry has it."""
    kept = stored if stored in PLAIN or stored in FORMATS else "f32"  # other formats are read as float32
    if name in TABLES:
        return head or ("int8" if format in ("int4", "int3", "int2") else kept)
    if name.endswith(("norm.weight", "router.weight")):
        return kept
    return format


def _layout(reader: Reader, name: str, wanted: Wanted) -> WeightLayout:
    """How a weight will be stored. A weight that is carried over keeps its groups and scales."""
    entry = reader.entry(name)
    target = target_format(name, entry.format, wanted.format, wanted.head)
    group = None if name in TABLES else wanted.group
    if target in PLAIN:
        return WeightLayout(target, entry.shape)
    if target == entry.format:
        return WeightLayout.of(reader.read(name))
    return WeightLayout(target, entry.shape, group or FORMATS[target].groups[0], "bf16")


def _buffers(reader: Reader, layouts: Layouts) -> Iterator[torch.Tensor]:
    """The bytes of each run, in order."""
    names = iter(layouts)
    for name in names:
        if ".experts." not in name:
            yield _fill([layouts[name]], [reader.read(name)], name, reader)
            continue
        _, layer, _, e, _, _ = name.split(".")
        members = [name, next(names), next(names)]
        expert = reader.read_expert(int(layer), int(e))
        yield _fill([layouts[n] for n in members], [expert.gate, expert.up, expert.down], name, reader)


def _fill(layouts: list[WeightLayout], weights: list[Weight], name: str, reader: Reader) -> torch.Tensor:
    """One run: the weights brought into their layouts, at their places."""
    places, length = place(layouts)
    buffer = torch.zeros(length, dtype=torch.uint8)
    for layout, where, weight in zip(layouts, places, weights, strict=True):
        carried = isinstance(weight, QuantTensor) and weight.format == layout.format
        if carried and WeightLayout.of(weight) != layout:
            raise CheckpointError(reader.entry(name).file, f"{name} has other groups than planned")
        _store(weight, view(layout, where, buffer))
    return buffer


def _store(weight: Weight, target: Weight) -> None:
    """Write a weight into the views of its target, a band of rows at a time."""
    n_in = weight.shape[1] if len(weight.shape) == 2 else 1
    band = max(TILE_OUT, _CHUNK // n_in // TILE_OUT * TILE_OUT)
    for start in range(0, weight.shape[0], band):
        stop = min(start + band, weight.shape[0])
        rows = weight.rows(start, stop) if isinstance(weight, QuantTensor) else weight[start:stop]
        if isinstance(target, torch.Tensor):
            target[start:stop] = rows.dequantize() if isinstance(rows, QuantTensor) else rows
            continue
        if not isinstance(rows, QuantTensor) or rows.format != target.format:
            values = rows.dequantize() if isinstance(rows, QuantTensor) else rows
            rows = quantize(values, target.format, target.group)
        tiles, place_of = rows.to_tiles(), target.rows(start, stop)
        place_of.data.copy_(tiles.data)
        place_of.scales.copy_(tiles.scales)


@contextlib.contextmanager
def _locked(dst: Path) -> Iterator[None]:
    """Make dst and hold it, so that two conversions do not write the same files. A death gives it free."""
    if not dst.exists():
        if not dst.absolute().parent.is_dir():
            raise LibremoeError(f"{dst}: the folder {dst.absolute().parent} does not exist")
        dst.mkdir()
    if not dst.is_dir():
        raise LibremoeError(f"{dst}: exists and is not a folder")
    fd = os.open(dst, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LibremoeError(f"{dst}: another conversion is writing into it") from None
        yield
    finally:
        os.close(fd)


def _resume(dst: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """The journal: of an earlier run with the same arguments, its files checked, or a new one.

    Raises LibremoeError where dst holds anything else.
    """
    path = dst / JOURNAL
    if not path.exists():
        others = [p.name for p in dst.iterdir() if p.name != JOURNAL + PARTIAL]
        if others:
            raise LibremoeError(f"{dst}: exists and is no conversion in progress (it holds {others[0]}); "
                                "give another folder or remove it")
        journal: dict[str, Any] = {"arguments": arguments, "files": {}}
        write_small(path, json.dumps(journal).encode())
        return journal
    journal = read_json(path, _MAX_JOURNAL_BYTES)
    begun, files = journal.get("arguments"), journal.get("files")
    if not isinstance(begun, dict) or not isinstance(files, dict):
        raise CheckpointError(path, "not the record of a conversion; remove the folder and begin again")
    different = [key for key in arguments if begun.get(key) != arguments[key]]
    if different:
        raise LibremoeError(f"{dst}: a conversion with another {' and '.join(different)} was begun here; "
                            "continue with the same arguments and source, or remove the folder")
    for leftover in dst.glob("*" + PARTIAL):  # its space is needed again
        leftover.unlink()
    whole = {name: record for name, record in files.items() if _is_whole(dst / name, record)}
    return {"arguments": arguments, "files": whole}


def _is_whole(path: Path, record: Any) -> bool:
    if not isinstance(record, dict) or set(record) != {"size", "sha256", "runs", "tensors"}:
        return False
    if not path.is_file() or path.stat().st_size != record["size"]:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == record["sha256"]


def _identity(reader: Reader) -> dict[str, Any]:
    """What must be the same when a conversion goes on: the source's configuration and its files."""
    files = {}
    for name in reader.names():
        path = reader.entry(name).file
        if path.name not in files:
            known = path.stat() if path.exists() else None
            files[path.name] = [known.st_size, known.st_mtime_ns] if known else None
    text = json.dumps([reader.kind, reader.config.to_dict(), sorted(files.items())])
    return {"source": hashlib.sha256(text.encode()).hexdigest()}


def _check_space(dst: Path, needed: int) -> None:
    free = shutil.disk_usage(dst).free
    if needed + _SPARE_BYTES > free:
        raise LibremoeError(f"{dst}: needs {size_text(needed)} more, and {size_text(free)} are free there; "
                            "free some space or give a folder on another disk")
