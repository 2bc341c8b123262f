"""How much memory this process can still have: what the machine has free, within what its control group allows."""

from __future__ import annotations

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")  # version 2, and version 1 under memory/


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
