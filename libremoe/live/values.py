"""What the live mode hands around. Values only: they know nothing of networks, archives or models."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["supported", "unsupported", "dangling", "uncited"]


@dataclass(frozen=True)
class Excerpt:
    """A stretch of a stored text, as the model reads it: data with a number, never an instruction.

    text == snapshot[start:end], in characters, where the snapshot is the archive's text with this sha256 (hexadecimal,
    of its UTF-8 bytes). kind: feed, search, wikipedia, mastodon, bluesky, x or page. source: the name of the source
    that a person configured. author: who wrote it, where the source says. published, fetched: Unix time in seconds.
    """

    number: int
    title: str
    url: str
    source: str
    kind: str
    published: float | None
    fetched: float
    text: str
    snapshot_sha256: str
    start: int
    end: int
    author: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Sentence:
    """One sentence of an answer, answer[start:end], with what became of its citations.

    numbers: the excerpts it cites. span: (number, start, end), the stretch of that excerpt's text that bears it out, or
    comes nearest where the verdict is unsupported. reason, about: why it is not supported; reasons.worded() says it.
    """

    start: int
    end: int
    numbers: tuple[int, ...]
    verdict: Verdict
    span: tuple[int, int, int] | None = None
    reason: str = ""
    about: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Fact:
    """What several independent sources say alike. numbers: their excerpts, the first being the one of the text."""

    text: str
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Opinion:
    """What somebody thinks. who: the people or sources that say it; when: the latest time (Unix s) where known."""

    text: str
    who: tuple[str, ...]
    when: float | None
    how_many: int
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Conflict:
    """Two excerpts that speak of the same and give different numbers. sides: (excerpt's number, value, sentence)."""

    sides: tuple[tuple[int, str, str], ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Agreement:
    """Facts apart from opinions, and where numbers contradict each other."""

    facts: tuple[Fact, ...] = ()
    opinions: tuple[Opinion, ...] = ()
    conflicts: tuple[Conflict, ...] = ()


@dataclass(frozen=True)
class Findings:
    """What a question brought back. fresh: something of the last days is among the excerpts.

    notes: sentences for people: sources that gave nothing and why, what was stripped, "nothing fresh found".
    """

    excerpts: list[Excerpt] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fresh: bool = False
    facts: list[Fact] = field(default_factory=list)
    opinions: list[Opinion] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
