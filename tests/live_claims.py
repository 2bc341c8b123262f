"""Invented news in English and French with sentences that they bear out, and a way to alter those sentences.

(title, text, true sentences). The sentences say it in other words, shorter, or joined, as a careful writer would. The
second half, from HELD_OUT on, was written after the first version of the rules and used little to mend them.
"""

from __future__ import annotations

import random
import re
from pathlib import Path


def _read() -> tuple[list[tuple[str, str, str, tuple[str, ...]]], int]:
    stories, held_out = [], 0
    for block in (Path(__file__).parent / "live_stories.txt").read_text().split("\n\n"):
        if block.startswith("%%"):
            held_out = len(stories)
            continue
        head, text, *true = block.strip().splitlines()
        lang, title = head.removeprefix("== ").split(" ", 1)
        stories.append((lang, title, text, tuple(t.removeprefix("- ") for t in true)))
    return stories, held_out


STORIES, HELD_OUT = _read()
_NUMBER_WORDS = ["two", "three", "four", "five", "six", "seven", "eight", "nine"]
_NOMBRES = ["deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"]
_MONTHS = ["January", "February", "March", "April", "June", "July", "August", "September", "October", "November"]
_MOIS = ["janvier", "février", "mars", "avril", "juin", "juillet", "août", "septembre", "octobre", "novembre"]
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_JOURS = ["lundi", "mardi", "mercredi", "jeudi", "vendredi", "samedi", "dimanche"]
_NO_NAMES = ["Mayor", "Governor", "Captain", "Storm", "Cape", "Stadium", "Street", "Museum", "Central", "Semiconductor",
             "March", "Earth", "Bank"]
_NAMES = ["Larsen", "Moretti", "Quillon", "Tarvik", "Ostrava", "Delmare", "Fenwick", "Hazari", "Brunel", "Castor"]


def altered(text: str, kind: str, draw: random.Random) -> str | None:
    """A twin of the sentence with one number, date or name changed, or its negation turned; None where it has none."""
    if kind == "number":
        return _other_number(text, draw)
    if kind == "date":
        for names in (_MONTHS, _MOIS, _DAYS, _JOURS):
            match = re.search(rf"\b(?:{'|'.join(names)})\b", text)
            if match:
                return _put(text, match, draw.choice([n for n in names if n != match.group()]))
        return None
    if kind == "name":
        matches = [m for m in re.finditer(r"(?<=[a-zà-ÿ,'] )(?<!^)[A-ZÀ-Þ][a-zà-ÿ]{3,}", text)
                   if m.group() not in (*_MONTHS, *_DAYS, *_NO_NAMES)]
        return _put(text, draw.choice(matches), draw.choice(_NAMES)) if matches else None
    return _turned(text)


def _put(text: str, match: re.Match[str], word: str) -> str:
    return text[: match.start()] + word + text[match.end():]


def _other_number(text: str, draw: random.Random) -> str | None:
    digits = [m for m in re.finditer(r"\d", text)]
    if digits:
        match = draw.choice(digits)
        return _put(text, match, draw.choice([d for d in "123456789" if d != match.group()]))
    for names in (_NUMBER_WORDS, _NOMBRES):
        match = re.search(rf"\b(?:{'|'.join(names)})\b", text, re.IGNORECASE)
        if match:
            word = draw.choice([n for n in names if n != match.group().lower()])
            return _put(text, match, word.capitalize() if match.group()[0].isupper() else word)
    return None


_AWAY = [
    (r"\b(was|is|are|were|has|have|had|will|did|does) not\b", r"\1"), (r"^No (\w+)", r"Some \1"),
    (r"\bhad no\b", "had"),
    (r"\bn['’](a|ont|en|est|était|avait) pas\b", r"\1"), (r"\bne (s['’]est) pas\b", r"\1"),
    (r"^Aucune (\w+) n['’]", r"Une \1 "),
]
_VERBS = ("won|beat|cost|left|voted|scored|began|rose|opened|sank|died|killed|took|saw|led|plans|expects|accepted|"
          "found|saved")
_IN = [
    (r"\b(was|is|are|were|will|has|have|had)\b", r"\1 not"),
    (r"\b(a|ont|avait|avaient) (\w+é\w*|battu|ouvert)\b", r"n'\1 pas \2"), (r"\b(sera|est|était)\b", r"n'\1 pas"),
    (rf"\b({_VERBS})\b", r"never \1"),
]


def _turned(text: str) -> str | None:
    """With its negation taken away, or one put in."""
    for pattern, by in _AWAY + _IN:
        changed, n = re.subn(pattern, by, text, count=1)
        if n:
            return changed
    return None
