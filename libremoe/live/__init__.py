"""What happened this morning: sources that a person chose, one way out for bytes, snapshots, and citations checked."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Live, which needs the extra `live`; citations and values need nothing."""
    if name != "Live":
        raise AttributeError(name)
    from libremoe.live.live import Live

    return Live
