"""What a reader cannot see is taken out of retrieved text before anything else looks at it, and counted."""

from __future__ import annotations

import re
import unicodedata

# Letters and marks that show as nothing although their category is a visible one.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
_HIDDEN = ("Cc", "Cf", "Cn", "Co", "Cs")  # controls, formats (bidi, zero width, tags), unassigned, private, surrogates


def _is_hidden(letter: str) -> bool:
    code = ord(letter)
    if letter in "\n\t" or 0x20 <= code < 0x7F:
        return False
    return (letter in _BLANK or 0xFE00 <= code <= 0xFE0F or 0xE0000 <= code <= 0xE0FFF
            or unicodedata.category(letter) in _HIDDEN)


def visible(text: str) -> tuple[str, int]:
    """The text in NFC without what cannot be seen, and how many letters were taken out.

    Tags, directions and zero-width letters can carry orders to a model, or make a reader see another text than it.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n\n")
    if text.isascii() and text.isprintable():
        return text, 0
    kept = "".join(letter for letter in text if not _is_hidden(letter))
    return unicodedata.normalize("NFC", kept), len(text) - len(kept)


def tidy(text: str) -> str:
    """Single spaces, and one line break between paragraphs."""
    lines = (re.sub(r"[^\S\n]+", " ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)
