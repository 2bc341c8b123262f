"""Run a program in a memory control group: what it takes, page cache included, as the kernel counts it from outside."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_SAMPLE_S = 0.02


class Cap:
    """A control group of version 1 or 2 with a limit."""

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        self.is_v1 = (folder / "memory.limit_in_bytes").exists()
        self._write("memory.limit_in_bytes" if self.is_v1 else "memory.max", limit)

    def peak(self) -> int | None:
        """Most bytes at any moment, page cache and kernel memory included. None where the kernel does not say."""
        name = "memory.max_usage_in_bytes" if self.is_v1 else "memory.peak"
        return int((self.folder / name).read_text()) if (self.folder / name).exists() else None

    def times_hit(self) -> int:
        """How often the limit stood in the way and the kernel had to take pages back."""
        if self.is_v1:
            return int((self.folder / "memory.failcnt").read_text())
        lines = (self.folder / "memory.events").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("max "))

    def cache(self) -> int:
        """Bytes of files' pages now."""
        wanted = "cache " if self.is_v1 else "file "
        lines = (self.folder / "memory.stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(wanted))

    def _write(self, name: str, value: int) -> None:
        (self.folder / name).write_text(str(value))


@contextmanager
def memory_cap(limit: int) -> Iterator[Cap]:
    """Raises SystemExit where this user may make no control group (root may)."""
    parent = _ROOT / "memory" if (_ROOT / "memory/memory.limit_in_bytes").exists() else _ROOT
    folder = parent / f"libremoe-bench-{os.getpid()}"
    try:
        folder.mkdir()
        cap = Cap(folder, limit)
    except OSError as error:
        if folder.exists():
            folder.rmdir()
        reason = f"{folder}: no memory control group can be made ({error.strerror}); run this as root"
        raise SystemExit(reason) from None
    try:
        yield cap
    finally:
        folder.rmdir()


def run_capped(command: list[str], limit: int) -> dict:
    """The JSON object of the program's last line, with what was seen from outside under "watched".

    Raises SystemExit with the program's stderr when it fails or is killed.
    """
    with memory_cap(limit) as cap:
        enter = ["sh", "-c", f'echo $$ > {cap.folder}/cgroup.procs && exec "$@"', "sh", *command]
        seen, ended = [0], threading.Event()

        def sample() -> None:
            while not ended.wait(_SAMPLE_S):
                seen.append(cap.cache())

        sampler = threading.Thread(target=sample, daemon=True)
        sampler.start()
        done = subprocess.run(enter, capture_output=True, text=True)
        ended.set()
        sampler.join()
        if done.returncode:
            said = f"{' '.join(command)}\nended with {done.returncode}; the cap was hit {cap.times_hit()} times"
            raise SystemExit(f"{said}\n{done.stderr[-2000:]}")
        result = json.loads(done.stdout.splitlines()[-1])
        result["watched"] = {"limit": limit, "peak": cap.peak(), "cap_hit": cap.times_hit(), "page_cache": max(seen)}
        return result
