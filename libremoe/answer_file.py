"""A file of answers, one JSON object a line in the order of the prompts, that an interruption does not lose.

While the work goes on, answers are appended to FILE.partial as they are finished, each on the disk before it counts as
done. When all are there, FILE is written in the order of the prompts and FILE.partial is removed. Whoever begins again
with the same job finds what is done; a last line that was cut short is forgotten: its answer is computed again.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from libremoe.errors import LibremoeError

Record = dict[str, Any]  # has "index": the prompt's place, from 0


class AnswerFile:
    """Use as `with AnswerFile(path, job) as file: ... file.append(records); file.finish()`.

    job: what the answers depend on, as JSON values; an unfinished file of another job is refused.
    done: the records by index, those of earlier runs included.
    """

    def __init__(self, path: Path, job: dict[str, Any]):
        """Raises LibremoeError where the file exists, or cannot be written, or belongs to other work."""
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self.done: dict[int, Record] = {}
        if path.exists() and not self.partial.exists():
            raise LibremoeError(f"{path}: exists already: choose another name, or remove it")
        try:
            self._file = self.partial.open("a+b")
        except OSError as error:
            raise LibremoeError(f"{path}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise LibremoeError(f"{self.partial}: another process is writing it") from None
        try:
            self._take_up(job)
        except LibremoeError:
            self._file.close()
            raise

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._file.close()

    def append(self, records: list[Record]) -> None:
        """Keep these: they are on the disk when this returns."""
        if not records:
            return
        self._write([json.dumps(record) for record in records])
        self.done.update({record["index"]: record for record in records})

    def finish(self) -> None:
        """Write all records to the file, in the order of prompts, and remove the partial one."""
        whole = self.path.with_name(self.path.name + ".whole")
        with whole.open("wb") as file:
            for _, record in sorted(self.done.items()):
                file.write(json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        whole.replace(self.path)
        _sync_folder(self.path.parent)
        self.partial.unlink()

    def _take_up(self, job: dict[str, Any]) -> None:
        """What earlier runs left, or a first line that says which job this is."""
        self._file.seek(0)
        content = self._file.read()
        whole, _, _ = content.rpartition(b"\n")  # what follows the last line's end was cut short
        lines = whole.split(b"\n") if whole else []
        if not lines:
            self._file.truncate(0)
            self._write([json.dumps({"job": job})])
            _sync_folder(self.path.parent)
            return
        found = [self._parsed(line, i) for i, line in enumerate(lines, start=1)]
        theirs = found[0].get("job")
        if theirs != json.loads(json.dumps(job)):
            differing = [key for key in job if not isinstance(theirs, dict) or theirs.get(key) != job[key]]
            named = ", ".join(differing) or "its fields"
            raise LibremoeError(f"{self.partial}: belongs to work that differs in {named}: "
                                f"ask for the same again to continue it, or remove it, or choose another --output")
        for i, record in enumerate(found[1:], start=2):
            if not isinstance(record.get("index"), int):
                raise self._broken(i)
            self.done[record["index"]] = record
        self._file.truncate(len(whole) + 1)

    def _parsed(self, line: bytes, number: int) -> Record:
        try:
            record = json.loads(line)
        except ValueError:
            raise self._broken(number) from None
        if not isinstance(record, dict):
            raise self._broken(number)
        return record

    def _broken(self, number: int) -> LibremoeError:
        return LibremoeError(f"{self.partial}: line {number} is no answer: remove the file to begin again")

    def _write(self, lines: list[str]) -> None:
        self._file.write("".join(line + "\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
