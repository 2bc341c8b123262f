"""`libremoe verify DIR`: is every file the one that the manifest names? Read at the speed of the disk.

A folder of another format has no manifest; then its structure is checked, and the answer says that this is
all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from libremoe.errors import CheckpointError
from libremoe.progress import Progress, size_text
from libremoe.weights import open_checkpoint
from libremoe.weights.native import NativeReader, read_manifest
from libremoe.weights.native_layout import DESCRIPTION, MANIFEST

N_THREADS = 2  # one hashes while the other waits for the disk; hashing frees the interpreter lock
_PIECE = 8 << 20  # bytes read at once


def run(args: argparse.Namespace) -> int:
    """The command. args: path, json. Exit status 0: all is well, 1: something differs, 130: interrupted."""
    try:
        result = verify(args.path, shown=not args.json)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps(result))
        return 0 if result["ok"] else 1
    for problem in result["problems"]:
        print(problem)
    print(f"{args.path}: {result['said']}")
    return 0 if result["ok"] else 1


def verify(path: Path | str, shown: bool = False) -> dict[str, Any]:
    """Check a model; returns ok, problems (one sentence each), said, and what was read.

    Raises CheckpointError for a path without a model, or a model of another format that contradicts itself.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file() or not (path / DESCRIPTION).is_file():
        return _structure(path)
    started = time.monotonic()
    files = read_manifest(path)
    problems = [f"{path / name}: not in {MANIFEST}" for name in _extra(path, set(files))]
    to_hash = []
    for name, (size, digest) in files.items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found is None:
            problems.append(f"{path / name}: missing")
        elif found != size:
            problems.append(f"{path / name}: {found} bytes, {MANIFEST} says {size}")
        else:
            to_hash.append((name, size, digest))
    total = sum(size for _, size, _ in to_hash)
    problems += _hash_all(path, to_hash, Progress("verifying", total, shown))
    if not problems:
        try:
            NativeReader(path)
        except CheckpointError as error:  # every digest right, and still no model: written wrongly
            problems.append(str(error))
    seconds = time.monotonic() - started
    said = (f"{len(files)} files, {size_text(total)}, all as the manifest says" if not problems
            else f"{len(problems)} problem{'s' if len(problems) > 1 else ''}")
    return {"path": str(path), "ok": not problems, "manifest": True, "problems": sorted(problems),
            "files": len(files), "bytes": total, "seconds": round(seconds, 3),
            "megabytes_per_s": round(total / seconds / 1e6, 1), "said": f"{said}; {total / seconds / 1e6:.0f} MB/s"}


def _structure(path: Path) -> dict[str, Any]:
    """What can be said of a model without a manifest: opening it has checked all but the weights."""
    reader = open_checkpoint(path)
    files = {reader.entry(name).file for name in reader.names()}
    said = (f"a {reader.kind} has no manifest, so the weights themselves cannot be checked. Its structure is "
            f"sound: sizes, shapes and names of {len(reader.names())} tensors in {len(files)} files")
    return {"path": str(path), "ok": True, "manifest": False, "problems": [], "files": len(files), "bytes": 0,
            "said": said}


def _extra(folder: Path, known: set[str]) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name not in known | {MANIFEST})


def _hash_all(folder: Path, files: list[tuple[str, int, str]], bar: Progress) -> list[str]:
    """Problems of the files that do not have their digest. Threads report what they read through a queue."""
    read: queue.SimpleQueue[int] = queue.SimpleQueue()
    stop = False

    def differs(name: str, digest: str) -> str | None:
        try:
            found = _sha256(folder / name, read, lambda: stop)
        except OSError as error:
            return f"{folder / name}: cannot be read: {error.strerror}"
        return None if found == digest else f"{folder / name}: its sha256 is not that of {MANIFEST}"

    with bar, ThreadPoolExecutor(N_THREADS) as pool:
        answers = [pool.submit(differs, name, digest) for name, _, digest in files]
        try:
            while not all(answer.done() for answer in answers):
                try:
                    bar.advance(read.get(timeout=0.02))
                except queue.Empty:
                    continue
        except KeyboardInterrupt:
            stop = True
            pool.shutdown(cancel_futures=True)
            raise
        while not read.empty():
            bar.advance(read.get())
    return [problem for answer in answers if (problem := answer.result()) is not None]


def _sha256(path: Path, read: queue.SimpleQueue[int], stopped: Any) -> str:
    digest = hashlib.sha256()
    buffer = bytearray(_PIECE)
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while (n := file.readinto(buffer)) and not stopped():
            digest.update(memoryview(buffer)[:n])
            read.put(n)
    return digest.hexdigest()
