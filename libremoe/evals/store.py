"""The answers of one benchmark in one run: a file that only grows, on disk before an answer counts as given.

RUN/<task>/answers.jsonl, one JSON object a line, "kind" first:
  run      format, task, title, metric, settings, data (sha256 of each file), model, seed, n_items: once, at the top
  session  number, started, command: at each start
  prefix   number, text: what many prompts begin with, written once
  item     id, group, session, at (seconds since the session began), prefix, question, options, answer, score
RUN/<task>/result.json is made from it whenever a session ends (results.py).
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from libremoe.errors import LibremoeError
from libremoe.evals.task import Answer, Example, Prompt, Score

FORMAT = "libremoe eval 1"
NAME = "answers.jsonl"


class Answers:
    """Use as `with Answers(folder, header, command) as answers`; items: records by id, of earlier sessions too."""

    def __init__(self, folder: Path, header: dict[str, Any], command: dict[str, Any]):
        """Raises LibremoeError where the file belongs to other settings, is broken, or another process writes to it."""
        self.path = folder / NAME
        self.items: dict[str, dict[str, Any]] = {}
        self._prefixes: dict[str, int] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise LibremoeError(f"{self.path}: another process writes to this run: wait for it, or choose another "
                                f"--out") from None
        with ExitStack() as closing:
            closing.callback(self._file.close)
            self.header, n_sessions = self._load(json.loads(json.dumps({"kind": "run", "format": FORMAT, **header})))
            self.session = n_sessions + 1
            self._began = time.monotonic()
            started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self._write([{"kind": "session", "number": self.session, "started": started, "command": command}])
            closing.pop_all()  # all is well: it stays open

    def add(self, example: Example, prompt: Prompt, answer: Answer, score: Score) -> None:
        """Returns when the item is on disk."""
        lines: list[dict[str, Any]] = []
        before = prompt.prefix(len(prompt.shots) - answer.dropped_shots)
        if before not in self._prefixes:
            self._prefixes[before] = len(self._prefixes)
            lines.append({"kind": "prefix", "number": self._prefixes[before], "text": before})
        item = {
            "kind": "item", "id": example.id, "group": example.group, "session": self.session,
            "at": round(time.monotonic() - self._began, 3), "prefix": self._prefixes[before],
            "question": prompt.question, "options": list(prompt.options), "answer": dataclasses.asdict(answer),
            "score": dataclasses.asdict(score),
        }
        self._write([*lines, item])
        self.items[example.id] = item

    def _write(self, records: list[dict[str, Any]]) -> None:
        self._file.write("".join(json.dumps(record) + "\n" for record in records).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _load(self, wanted: dict[str, Any]) -> tuple[dict[str, Any], int]:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)  # the line under way when a process was killed
        records = read_records(self.path, content[:whole])
        if not records:
            self._write([wanted])
            folder = os.open(self.path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
            return wanted, 0
        header = records[0]
        self._compare(header, wanted)
        self._prefixes = {record["text"]: record["number"] for record in records if record["kind"] == "prefix"}
        self.items = {record["id"]: record for record in records if record["kind"] == "item"}
        return header, sum(record["kind"] == "session" for record in records)

    def _compare(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                old, new = (json.dumps(one.get(name))[:120] for one in (found, wanted))
                raise LibremoeError(f"{self.path}: was made with {name} {old}, this run has {new}: results are not "
                                    f"mixed; choose another --out, or remove the folder")

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._file.close()


def read_answers(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[int, str]]:
    """Header, items and prefixes (number -> text) of RUN/<task>. Raises LibremoeError where there are none."""
    path = folder / NAME
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LibremoeError(f"{path}: {error.strerror or error}") from error
    records = read_records(path, content[: content.rfind(b"\n") + 1])
    if not records:
        raise LibremoeError(f"{path}: empty: the run had not begun")
    prefixes = {record["number"]: record["text"] for record in records if record["kind"] == "prefix"}
    return records[0], [record for record in records if record["kind"] == "item"], prefixes


def read_records(path: Path, content: bytes) -> list[dict[str, Any]]:
    """Every line, checked as far as this module relies on it; "prefix" may be missing from old items."""
    records: list[dict[str, Any]] = []
    needed = {"run": ("format", "task"), "session": ("number",), "prefix": ("number", "text"),
              "item": ("id", "group", "session", "at", "answer", "score")}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            record = json.loads(line)
            kind = record["kind"]
            good = all(name in record for name in needed[kind]) and (kind == "run") == (number == 1)
        except (ValueError, LookupError, TypeError, RecursionError):
            good = False
        if not good:
            raise LibremoeError(f"{path}: line {number} is not a line of answers: the file was changed or is damaged")
        records.append(record)
    if records and records[0]["format"] != FORMAT:
        raise LibremoeError(f"{path}: the format is {records[0]['format']!r}, not {FORMAT!r}")
    return records
