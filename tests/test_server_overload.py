"""bench/overload.py at a small size: nothing leaks, and every refusal says when to come again. Its times are figures,
not tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import overload  # noqa: E402


def test_streams_disconnects_and_overload() -> None:
    found = overload.measure(n_streams=100, n_disconnects=200, seconds=1.0)
    print(overload.goals(found))
    assert found["streams"]["finished"] == 100
    assert found["disconnects"]["leaked"] == found["disconnects_200"]["leaked"] == 0
    assert all(part["stall_ms"] > 0 for part in found.values())  # they are measured
    for part in ("overload", "flood"):
        loaded = found[part]
        assert loaded["refused"] == loaded["with_retry_after"] > 0
        assert loaded["neither"] == 0 and loaded["held"] == 0
    assert not any(met for words, met in overload.goals(_spoilt(found)))


def _spoilt(found: dict[str, Any]) -> dict[str, Any]:
    """Figures that miss every goal."""
    bad = {"finished": 0, "stall_ms": 1e9, "leaked": 1, "freed_after_last_s": 1e9, "refusal_p99_ms": 1e9,
           "with_retry_after": 0, "neither": 1, "goodput_share": 0.0}
    return {part: figures | bad for part, figures in found.items()}
