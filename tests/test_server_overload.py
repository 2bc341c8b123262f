"""bench/overload.py at a small size: nothing leaks, and every refusal says when to come again. Its times are figures,
not tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import overload  # noqa: E402


def test_streams_disconnects_and_overload() -> None:
    found = overload.measure(n_streams=100, n_disconnects=200, seconds=1.0)
    print(overload.goals(found))
    assert found["streams"]["finished"] == 100
    assert found["disconnects"]["leaked"] == found["disconnects_200"]["leaked"] == 0
    assert all(part["stall_ms"] > 0 for part in found.values())  # they are measured
    loaded = found["overload"]
    assert loaded["refused"] == loaded["with_retry_after"] > 0
    assert loaded["neither"] == 0 and loaded["held"] == 0
