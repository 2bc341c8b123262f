"""Personas: tone and tools as open text files, and the system prompts made of them.

A system prompt is a persona's text, an empty line, and the policy (policy.toml), which no persona can change. Every
version of both stays in its file, so whoever has the SHA-256 of the prompt behind an answer finds that prompt again.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from libremoe.errors import LibremoeError

LANGUAGES = ("en", "fr")
PERSONAS = Path(__file__).with_name("personas")
POLICY = Path(__file__).with_name("policy.toml")
MAX_FILE_BYTES = 64 << 10
MAX_PERSONAS = 64
MAX_PROMPT_CHARS = 16_000
MAX_TOOLS = 64
# What a persona may say about sampling, and within which bounds; the person's own choice comes before it.
SAMPLING = {"temperature": (0.0, 2.0), "top_p": (0.0, 1.0), "top_k": (0, 1 << 20), "min_p": (0.0, 1.0),
            "repetition_penalty": (0.1, 10.0), "max_tokens": (1, 1 << 20)}
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


@dataclass(frozen=True)
class Version:
    """A text as it stood from a day on. prompts: by language; English is always there."""

    date: datetime.date
    note: str
    prompts: Mapping[str, str]

    def text(self, language: str) -> str:
        return self.prompts.get(language) or self.prompts["en"]


@dataclass(frozen=True)
class Persona:
    """One file. title and description: by language. tools: names of tools that it may be offered. versions: oldest
    first; the last is in use. own: whether it is a person's own file."""

    name: str
    versions: tuple[Version, ...]
    title: Mapping[str, str] = field(default_factory=dict)
    description: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)
    own: bool = False


@dataclass(frozen=True)
class Served:
    """A system prompt as it was, or is, given to the model: exact text, its SHA-256, and since when."""

    since: datetime.date
    note: str
    text: str
    sha256: str


def system_prompt(persona: Persona, language: str) -> Served:
    """The system prompt in use. language: one of LANGUAGES; where a persona has no text in it, its English one."""
    return history(persona, language)[0]


def history(persona: Persona, language: str) -> list[Served]:
    """Every system prompt that this persona has had, newest first: each version of it with the policy of its time."""
    rules = policy()
    served: list[Served] = []
    for day in sorted({version.date for version in (*persona.versions, *rules)}):
        own = [v for v in persona.versions if v.date <= day]
        general = [v for v in rules if v.date <= day] or list(rules[:1])
        if own:
            text = f"{own[-1].text(language)}\n\n{general[-1].text(language)}"
            if served and served[-1].text == text:
                continue  # that day changed another language
            served.append(Served(day, own[-1].note, text, digest(text)))
    return served[::-1]


def digest(text: str) -> str:
    """SHA-256 of the text in UTF-8, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def policy() -> tuple[Version, ...]:
    """The policy's versions, oldest first."""
    return _versions(POLICY, _read(POLICY))


def load_personas(folder: Path | None = None) -> dict[str, Persona]:
    """By name: those of the package, and those in a person's own folder, which replace them where names are the same.

    Raises LibremoeError for a file that is no persona; it names the file and the field.
    """
    found = {path.stem: read_persona(path) for path in sorted(PERSONAS.glob("*.toml"))}
    found = {"regular": found["regular"], **found}  # the default comes first
    if folder is not None and folder.is_dir():
        own = sorted(folder.glob("*.toml"))
        if len(own) > MAX_PERSONAS:
            raise LibremoeError(f"{folder}: has {len(own)} personas, {MAX_PERSONAS} are read: move some away")
        found.update({path.stem: read_persona(path, own=True) for path in own})
    return found


def read_persona(path: Path, own: bool = False) -> Persona:
    """One file. Raises LibremoeError naming the file and what is wrong with it."""
    if not _NAME.fullmatch(path.stem):
        raise LibremoeError(f"{path}: a persona's file is named with small letters, digits, - and _, at most 32")
    values = _read(path)
    unknown = set(values) - {"title", "description", "tools", "sampling", "versions"}
    if unknown:
        raise LibremoeError(f"{path}: {sorted(unknown)[0]} is not known here; there are title, description, tools, "
                            "sampling and versions (the policy is not a persona's to change)")
    tools = values.get("tools", [])
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS or not all(isinstance(t, str) for t in tools):
        raise LibremoeError(f"{path}: tools must be a list of names, at most {MAX_TOOLS}")
    return Persona(path.stem, _versions(path, values), _texts(path, values, "title") or {"en": path.stem},
                   _texts(path, values, "description"), tuple(tools), _sampling(path, values), own)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise LibremoeError(f"{path}: is longer than {MAX_FILE_BYTES} bytes")
        return tomllib.loads(content.decode())
    except OSError as error:
        raise LibremoeError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # of TOML and of UTF-8
        raise LibremoeError(f"{path}: is no TOML: {error}") from error


def _texts(path: Path, values: Mapping[str, Any], name: str) -> dict[str, str]:
    """A field with a text for each language."""
    found = values.get(name, {})
    if not isinstance(found, dict) or not all(k in LANGUAGES and isinstance(v, str) for k, v in found.items()):
        raise LibremoeError(f"{path}: {name} must have a text for each language: {name}.en, {name}.fr")
    return {language: text.strip() for language, text in found.items()}


def _versions(path: Path, values: Mapping[str, Any]) -> tuple[Version, ...]:
    entries = values.get("versions")
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise LibremoeError(f"{path}: has no [[versions]]; each has a date and versions.prompt.en")
    versions: list[Version] = []
    for entry in entries:
        day, note, prompts = entry.get("date"), entry.get("note", ""), _texts(path, entry, "prompt")
        if type(day) is not datetime.date or not isinstance(note, str):
            raise LibremoeError(f"{path}: versions.date must be a day such as 2026-11-24, and note a text")
        if not prompts.get("en") or max(map(len, prompts.values())) > MAX_PROMPT_CHARS:
            raise LibremoeError(f"{path}: versions.prompt.en is missing, or longer than {MAX_PROMPT_CHARS} characters")
        if versions and day <= versions[-1].date:
            raise LibremoeError(f"{path}: versions must be in the order of their dates, one a day")
        versions.append(Version(day, note, prompts))
    return tuple(versions)


def _sampling(path: Path, values: Mapping[str, Any]) -> dict[str, float]:
    found = values.get("sampling", {})
    if not isinstance(found, dict):
        raise LibremoeError(f"{path}: sampling must be a table, such as temperature = 0.7")
    for name, value in found.items():
        if name not in SAMPLING:
            raise LibremoeError(f"{path}: sampling.{name} is not known; there are {', '.join(SAMPLING)}")
        low, high = SAMPLING[name]
        whole = isinstance(high, int)
        right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not right or not low <= value <= high:
            raise LibremoeError(f"{path}: sampling.{name} must be {'a whole number ' if whole else ''}from {low:g} to "
                                f"{high:g}")
    return dict(found)
