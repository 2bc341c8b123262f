"""Our sentences in French: one table, English sentence to French one, for the terminal and for the page's errors.

Errors stay English where they are raised, so that API clients go on getting English; they are put into French where a
person reads them. {a}, {b} and the like are the values of a sentence in their order. The table is written with the
no-break spaces of French typography: narrow, but for the one before a colon.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("french.json")
MAX_CHARS = 2000  # longer texts are no sentence of ours


def told(sentence: str, language: str, /, **values: object) -> str:
    """A sentence of the table with its values. Raises KeyError where the table has no French for it."""
    text = table()[sentence] if language == "fr" else sentence
    return _filled(text, values) if values else text


def translated(message: str, language: str) -> str:
    """A finished English message in a language; as it is where the table does not have it."""
    if language != "fr" or len(message) > MAX_CHARS:
        return message
    if message in table():
        return table()[message]
    for pattern, text in _patterns():
        if found := pattern.fullmatch(message):
            return _filled(text, {name: translated(value, language) for name, value in found.groupdict().items()})
    return message


def _filled(text: str, values: Mapping[str, object]) -> str:
    return re.sub(r"{(\w+)}", lambda place: str(values[place[1]]), text)


@cache
def table() -> dict[str, str]:
    return dict(json.loads(TABLE.read_text(encoding="utf-8")))


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """Errors with values; those of which most is fixed come first."""
    errors = [english for english in table() if "{a}" in english]
    errors.sort(key=lambda english: -len(re.sub(r"{\w}", "", english)))
    return [(re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>.+?)", re.escape(english)), re.DOTALL), table()[english])
            for english in errors]
