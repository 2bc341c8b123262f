"""How much memory this process has and can still have: what the machine has free, and its control group allows."""

from __future__ import annotations

import re
from pathlib import Path

from libremoe.errors import LibremoeError

_CGROUP = Path("/sys/fs/cgroup")  # version 2, and version 1 under memory/


_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


def parse_bytes(text: str) -> int:
    """Bytes of "12G", "800M", "1.5GiB" or "4096". Raises LibremoeError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip().lower(), re.ASCII)
    if found is None or found.group(2) not in _UNITS:
        raise LibremoeError(f"{text!r} is not an amount of bytes: write 12G, 800M or 1.5GiB")
    return int(float(found.group(1)) * _UNITS[found.group(2)])


def process_bytes() -> int:
    """Memory that this process occupies now (its resident set). 0 where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def available_bytes() -> int:
    """Bytes that can be taken without swapping. 1 << 62, no known bound, where the system does not say (not Linux)."""
    available = 1 << 62
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    except OSError:
        return available
    for limit_file, used_file in (("memory.max", "memory.current"),
                                  ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            limit, used = (_CGROUP / limit_file).read_text().strip(), (_CGROUP / used_file).read_text().strip()
        except OSError:
            continue
        if limit.isdigit() and used.isdigit():  # "max": no limit
            available = min(available, max(0, int(limit) - int(used) + _reclaimable()))
    return available


def _reclaimable() -> int:
    """File pages that count as used in the control group but are given up on demand."""
    for name in ("memory.stat", "memory/memory.stat"):
        try:
            lines = (_CGROUP / name).read_text().splitlines()
        except OSError:
            continue
        return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return 0
