"""Reads benchmark files from a folder that the user points at. They are strangers' files: sizes are bounded before
anything is kept, nothing is unpacked to disk, and what is malformed gets a sentence with its line.

Layouts: FOLDER/<benchmark>/<file>, or <file> in FOLDER itself; text files as they are or gzipped (.gz), folders as they
are or as a .tar, .tar.gz. data.digests holds the sha256 of each file that was read.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from libremoe.errors import LibremoeError

MAX_FILE_BYTES = 512 << 20  # on disk
MAX_TEXT_BYTES = 512 << 20  # of one file or archive, unpacked; the published tar of MMLU has 166 MB
MAX_MEMBERS = 50_000  # MATH has 12,500 files
MAX_ROWS = 1_000_000


class Data:
    """The folder of --data. root None: every look-up says that the flag is missing."""

    def __init__(self, root: Path | None):
        """Raises LibremoeError where root is no folder."""
        if root is not None and not root.is_dir():
            raise LibremoeError(f"{root}: no such folder; --data takes the folder that holds the benchmark files")
        self.root = root
        self.digests: dict[str, str] = {}  # path below root -> sha256; of a folder: of its files' names and digests

    def text(self, task: str, *names: str) -> tuple[Path, str]:
        """The first of these files that is there, as text. Raises LibremoeError where none is, or it is no UTF-8."""
        path = self._find(task, [each for name in names for each in (name, f"{name}.gz")], names)
        return path, _decoded(path, self._bytes(path))

    def has(self, task: str, name: str) -> bool:
        """Whether a file is there, gzipped or not."""
        return self.root is not None and any((folder / each).is_file() for folder in (self.root / task, self.root)
                                             for each in (name, f"{name}.gz"))

    def members(self, task: str, folders: Sequence[str], archives: Sequence[str], suffix: str) -> dict[str, str]:
        """Texts by their path, in order of it: the files that end in suffix, inside the first of these archives or else
        below the first of these folders. Raises LibremoeError where there are none, or they are malformed."""
        tried = [*archives, *(f"{name}/" for name in folders if name != ".")]
        path = self._find(task, [*archives, *folders], tried)
        found = self._folder(path, suffix) if path.is_dir() else self._archive(path, suffix)
        if not found:
            raise LibremoeError(f"{path}: holds no {suffix} file")
        return dict(sorted(found.items()))

    def _find(self, task: str, names: Sequence[str], shown: Sequence[str]) -> Path:
        if self.root is None:
            raise LibremoeError(f"{task} needs its files: point --data at the folder that holds {task}/{shown[0]}, or "
                                f"get them with `libremoe eval fetch {task}`")
        for folder in (self.root / task, self.root):
            for name in names:
                path = folder / name if name != "." else folder
                if path.exists() and (name != "." or folder != self.root):
                    return path
        raise LibremoeError(f"{self.root}: {task} is not there; wanted: {task}/{f' or {task}/'.join(shown)}")

    def _folder(self, folder: Path, suffix: str) -> dict[str, str]:
        found: dict[str, str] = {}
        total, whole = 0, hashlib.sha256()
        for path in sorted(folder.rglob(f"*{suffix}")):
            if path.is_file():
                content = _read(path)
                total += len(content)
                whole.update(f"{path.relative_to(folder)} {hashlib.sha256(content).hexdigest()}\n".encode())
                if len(found) >= MAX_MEMBERS or total > MAX_TEXT_BYTES:
                    raise LibremoeError(f"{folder}: holds more than {MAX_MEMBERS} files or {MAX_TEXT_BYTES} bytes")
                found[str(path.relative_to(folder))] = _decoded(path, content)
        self._note(folder, whole.hexdigest(), suffix)
        return found

    def _archive(self, path: Path, suffix: str) -> dict[str, str]:
        raw = _unzipped(path, self._bytes(path), MAX_TEXT_BYTES)
        found = {}
        try:
            with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
                for count, member in enumerate(tar):
                    if count >= MAX_MEMBERS:
                        raise LibremoeError(f"{path}: holds more than {MAX_MEMBERS} files")
                    content = tar.extractfile(member) if member.isreg() and member.name.endswith(suffix) else None
                    if content is not None:  # never written anywhere, so names cannot lead out of a folder
                        found[member.name] = _decoded(path, content.read(len(raw)), member.name)
        except (tarfile.TarError, EOFError, ValueError, OSError) as error:
            raise LibremoeError(f"{path}: not a tar archive that can be read: {error}") from error
        return found

    def _bytes(self, path: Path) -> bytes:
        raw = _read(path)
        self._note(path, hashlib.sha256(raw).hexdigest())
        return raw

    def _note(self, path: Path, digest: str, suffix: str = "") -> None:
        name = str(path.relative_to(self.root or path.parent))
        self.digests[f"{name}/*{suffix}" if suffix else name] = digest


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise LibremoeError(f"{path}: {error.strerror or error}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise LibremoeError(f"{path}: more than {MAX_FILE_BYTES} bytes; no benchmark file is so long")
    return raw


def _unzipped(path: Path, raw: bytes, limit: int) -> bytes:
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise LibremoeError(f"{path}: broken gzip: {error}") from error
    if len(content) > limit:
        raise LibremoeError(f"{path}: unpacks to more than {limit} bytes; no benchmark file is so long")
    return content


def _decoded(path: Path, raw: bytes, member: str = "") -> str:
    where = f"{path}: {member}" if member else str(path)
    try:
        return _unzipped(path, raw, MAX_TEXT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LibremoeError(f"{where}: not UTF-8 at byte {error.start}") from None


def json_value(where: str, text: str) -> Any:
    """Raises LibremoeError naming `where`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LibremoeError(f"{where}: not JSON: {error}") from None


def json_lines(path: Path, text: str) -> list[dict[str, Any]]:
    """One object a line; empty lines are passed over. Each gets "_where" for messages."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        row = json_value(where, line)
        if not isinstance(row, dict):
            raise LibremoeError(f"{where}: not a JSON object")
        rows.append({**row, "_where": where})
        if len(rows) > MAX_ROWS:
            raise LibremoeError(f"{path}: more than {MAX_ROWS} lines")
    if not rows:
        raise LibremoeError(f"{path}: empty")
    return rows


def csv_rows(where: str, text: str, columns: int, delimiter: str = ",") -> list[list[str]]:
    """Rows of exactly this many columns. Raises LibremoeError naming the row."""
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    except csv.Error as error:
        raise LibremoeError(f"{where}: not CSV: {error}") from None
    for number, row in enumerate(rows, 1):
        if len(row) != columns:
            raise LibremoeError(f"{where}: row {number} has {len(row)} columns, not {columns}")
    if not rows:
        raise LibremoeError(f"{where}: empty")
    return rows


def need(row: dict[str, Any], name: str, kind: type | tuple[type, ...] = str) -> Any:
    """row[name]. Raises LibremoeError where it is missing or of another type."""
    value = row.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        what = "missing" if value is None else f"of the type {type(value).__name__}"
        raise LibremoeError(f"{row.get('_where', 'a row')}: the field {name!r} is {what}")
    return value
