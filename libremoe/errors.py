"""What a person did wrong, said in a sentence. cli.py prints these and exits with 2; the server makes them a 4xx.

Broken invariants are not these: they are AssertionError or the like, and keep their traceback.
"""

from __future__ import annotations

from pathlib import Path


class LibremoeError(Exception):
    """A mistake in a path, a flag, a field or a file; str(error) names it and says what to do."""


class CheckpointError(LibremoeError):
    """A model file that cannot be used: `path: reason`."""

    def __init__(self, path: Path | str, reason: str):
        self.path = Path(path)
        self.reason = reason
        super().__init__(f"{path}: {reason}")
