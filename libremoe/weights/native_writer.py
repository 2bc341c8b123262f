"""Writing libremoe's own folder: files of aligned runs, and at last the two files that make it complete.

The format is in docs/formats.md. Every file appears under its name only when it is whole and on the disk:
it is written as NAME.partial, synced and renamed. Nothing here depends on the time or on the machine, so
the same weights give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from libremoe.weights.native_layout import (
    ALIGN,
    BLOCK,
    DESCRIPTION,
    MANIFEST,
    VERSION,
    WeightLayout,
    block_checksums,
    place,
    run_of,
)

PARTIAL = ".partial"
_PIECE = 8 * BLOCK  # bytes written, hashed and reported at once

Layouts = dict[str, WeightLayout]  # by weight name, in the order in which they lie in a file
FileRecord = dict[str, Any]  # size, sha256, runs, tensors of one file


def file_layout(layouts: Layouts) -> tuple[bytes, dict[str, tuple[int, int]], FileRecord]:
    """The header of a file that holds these weights, its runs as name -> (offset, length), its tensors."""
    members: dict[str, list[str]] = {}
    for name in layouts:
        members.setdefault(run_of(name), []).append(name)
    tensors: FileRecord = {}
    spans: dict[str, Any] = {}
    at = 0
    for run, names in members.items():
        places, length = place([layouts[name] for name in names])
        for name, where in zip(names, places, strict=True):
            layout = layouts[name]
            tensors[name] = {"format": layout.format, "shape": list(layout.shape), "group": layout.group,
                             "scales": layout.scales, "data_at": where.data_at, "scales_at": where.scales_at}
        spans[run] = {"dtype": "U8", "shape": [length], "data_offsets": [at, at + length]}
        at += length
    text = json.dumps({"__metadata__": {"format": "libremoe", "version": str(VERSION)}, **spans}).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)  # so that the first run begins on ALIGN
    start = 8 + len(text)
    runs = {name: (start + span["data_offsets"][0], span["shape"][0]) for name, span in spans.items()}
    return len(text).to_bytes(8, "little") + text, runs, tensors


def file_size(layouts: Layouts) -> int:
    """Bytes of the file that holds these weights."""
    header, runs, _ = file_layout(layouts)
    return len(header) + sum(length for _, length in runs.values())


def write_weights(path: Path, layouts: Layouts, buffers: Iterable[torch.Tensor],
                  advance: Callable[[int], None]) -> FileRecord:
    """Write one file of runs; buffers gives each run's bytes (uint8, of the run's length) in their order.

    advance is called with the bytes written since the last call. Raises OSError where the disk refuses;
    then no file of that name has appeared or changed.
    """
    header, runs, tensors = file_layout(layouts)
    digest = hashlib.sha256()
    partial = path.with_name(path.name + PARTIAL)
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        _write(fd, memoryview(header), digest, advance)
        table: FileRecord = {}
        for (name, (offset, length)), buffer in zip(runs.items(), buffers, strict=True):
            if buffer.nbytes != length:
                raise ValueError(f"run {name} has {buffer.nbytes} bytes, not {length}")
            crc32 = block_checksums(buffer).hex()
            table[name] = {"offset": offset, "length": length, "crc32": crc32}
            _write(fd, buffer.numpy().data, digest, advance)
        os.fsync(fd)
        size = os.fstat(fd).st_size
    finally:
        os.close(fd)
    os.replace(partial, path)
    sync_folder(path.parent)
    return {"size": size, "sha256": digest.hexdigest(), "runs": table, "tensors": tensors}


def write_small(path: Path, content: bytes) -> dict[str, Any]:
    """Write a whole file at once, as carefully; its size and sha256. A file that has this content is left as it is, so
    that finishing what was finished touches nothing."""
    if not (path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content):
        partial = path.with_name(path.name + PARTIAL)
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            _write(fd, memoryview(content), hashlib.sha256(), lambda n: None)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(partial, path)
    sync_folder(path.parent)
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def complete(folder: Path, about: dict[str, Any], files: dict[str, FileRecord],
             others: dict[str, dict[str, Any]]) -> None:
    """Write libremoe.json and then manifest.json, which makes the folder one that readers trust.

    about: config, licence, source, tokenizer, random. others: size and sha256 of files that hold no weights.
    """
    description = {
        "version": VERSION,
        **about,
        "files": {name: record["runs"] for name, record in files.items()},
        "tensors": {name: entry for record in files.values() for name, entry in record["tensors"].items()},
    }
    listed = {name: {"size": record["size"], "sha256": record["sha256"]} for name, record in files.items()}
    listed.update(others)
    listed[DESCRIPTION] = write_small(folder / DESCRIPTION, _json(description))
    write_small(folder / MANIFEST, _json({"version": VERSION, "files": listed}))


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1).encode()  # ends in }, so that a manifest cut anywhere is no JSON


def _write(fd: int, content: memoryview, digest: Any, advance: Callable[[int], None]) -> None:
    for start in range(0, len(content), _PIECE):
        piece = content[start : start + _PIECE]
        digest.update(piece)
        done = 0
        while done < len(piece):  # a write may take less than it was given
            done += os.write(fd, piece[done:])
        advance(len(piece))
