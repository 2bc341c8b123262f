"""No evaluation item in the training text: what shares a run of 13 words with one is dropped, and counted.

Thirteen words as in the GPT-3 paper, appendix C (arXiv:2005.14165); words are runs of letters and digits in lower case.
An item of 8 to 12 words counts when all of it stands in the text.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from libremoe.errors import CheckpointError

N = 13
SHORTEST = 8
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd: the golden ratio's, as in Knuth's multiplicative hashing
_WORD = re.compile(r"[^\W_]+")
_READ = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".dev", ".devtest")
# Their rows are in the training mix on purpose (the evaluation folder's README says so).
_TRAINING_KEYS = ("train", "oos_train", "val", "oos_val")


class Overlap:
    """Finds evaluation items in text. Of each length of run: the hashes in order, and the set that each comes from."""

    def __init__(self, items: Iterable[tuple[str, str]]):
        """items: (set, text)."""
        self.sets: list[str] = []
        self.counts: dict[str, int] = {}  # items looked for, by set; shorter ones than 8 words are none
        self._hashes: dict[str, int] = {}
        found: dict[int, list[tuple[np.ndarray, int]]] = {n: [] for n in range(SHORTEST, N + 1)}
        for name, text in items:
            if name not in self.counts:
                self.sets.append(name)
                self.counts[name] = 0
            ids = self._ids(text)
            if len(ids) >= SHORTEST:
                self.counts[name] += 1
                n = min(len(ids), N)
                found[n].append((_runs(ids, n), len(self.sets) - 1))
        self.runs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for n, parts in found.items():
            if parts:
                hashes, first = np.unique(np.concatenate([runs for runs, _ in parts]), return_index=True)
                owners = np.concatenate([np.full(len(runs), owner, np.uint8) for runs, owner in parts])
                self.runs[n] = hashes, owners[first]

    def find(self, text: str) -> str | None:
        """The set of an item of which 13 words in a row, or a shorter item as a whole, stand in the text; or None."""
        ids = self._ids(text)
        runs = _runs(ids, SHORTEST) if len(ids) >= SHORTEST else ids[:0]
        for n in range(SHORTEST, min(N, len(ids)) + 1):
            if n > SHORTEST:
                runs = _longer(runs, ids)
            if n in self.runs:
                known, owners = self.runs[n]
                at = np.minimum(np.searchsorted(known, runs), len(known) - 1)
                hit = np.flatnonzero(known[at] == runs)
                if len(hit):
                    return self.sets[owners[at[hit[0]]]]
        return None

    def _ids(self, text: str) -> np.ndarray:
        words = _WORD.findall(text.lower())
        for word in words:
            if word not in self._hashes:
                digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
                self._hashes[word] = int.from_bytes(digest, "little")
        return np.array([self._hashes[word] for word in words], dtype=np.uint64)


def _runs(ids_N: np.ndarray, n: int) -> np.ndarray:
    """A polynomial hash, modulo 2^64, of each n neighbours: (N - n + 1,)."""
    runs = ids_N
    for _ in range(n - 1):
        runs = _longer(runs, ids_N)
    return runs


def _longer(runs: np.ndarray, ids_N: np.ndarray) -> np.ndarray:
    """Hashes of runs of n + 1 words from those of n."""
    return runs[:-1] * _MULTIPLIER + ids_N[len(ids_N) - len(runs) + 1 :]


def evaluation_items(folder: Path) -> Iterator[tuple[str, str]]:
    """(set, text) of every text in an evaluation folder: JSON, JSON lines, CSV, TSV, lines; gzip and tar unpacked.

    Raises CheckpointError where a file cannot be read, or where there is none.
    """
    count = 0
    for path in sorted(folder.rglob("*")):
        name = path.name.removesuffix(".gz")
        if not path.is_file() or not name.endswith((*_READ, ".tar")):
            continue
        owner = path.relative_to(folder).parts[0]
        try:
            for inner, content in _unpacked(path):
                for text in _texts(inner, content):
                    count += 1
                    yield owner, text
        except (OSError, EOFError, ValueError, tarfile.TarError) as error:
            raise CheckpointError(path, f"cannot be read: {error}") from error
    if not count:
        raise CheckpointError(folder, "holds no evaluation items (.json, .jsonl, .csv, .tsv, .txt)")


def _unpacked(path: Path) -> Iterator[tuple[str, str]]:
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None and member.name.endswith(_READ):
                    yield member.name, file.read().decode()
        return
    raw = path.read_bytes()
    yield path.name.removesuffix(".gz"), (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()


def _texts(name: str, content: str) -> Iterator[str]:
    if name.endswith((".csv", ".tsv")):
        for row in csv.reader(io.StringIO(content), delimiter="\t" if name.endswith(".tsv") else ","):
            yield from row
    elif name.endswith((".json", ".jsonl")):
        try:
            yield from _strings(json.loads(content))
        except ValueError:
            for line in content.splitlines():
                if line.strip():
                    row = json.loads(line)
                    if not (name.startswith("mbpp") and int(row.get("task_id", 0)) > 510):
                        yield from _strings(row)
    else:
        yield from content.splitlines()


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            if key not in _TRAINING_KEYS:
                yield from _strings(one)
