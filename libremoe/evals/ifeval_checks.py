"""The 25 instructions of IFEval as functions of a text and their arguments. Written after the descriptions in the paper
(arXiv:2311.07911, table 1) and the published prompts. An empty answer follows nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from libremoe.errors import LibremoeError

Arguments = dict[str, Any]
CONSTRAINED = ("my answer is yes.", "my answer is no.", "my answer is maybe.")
ABBREVIATIONS = r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|Jr|Sr|No|Inc|Ltd|U\.S)\.$"


def follows(id: str, arguments: Arguments, text: str) -> bool:
    """Whether a text follows an instruction. Raises KeyError, TypeError or ValueError for wrong arguments."""
    return CHECKS[id](text, arguments) and bool(text.strip())


def words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['\u2019-]\w+)*", text)


def sentences(text: str) -> list[str]:
    """Cut after . ! ? before a space and a beginning; not after usual abbreviations. Line ends of lists cut too."""
    found: list[str] = []
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)", text):
        rest = ""
        for part in re.split(r"(?<=[.!?])[\"')\u201d]*\s+(?=[\"'(\u201c]?[A-Z0-9])", block):
            rest = f"{rest} {part}".strip()
            if not re.search(ABBREVIATIONS, rest):
                found.append(rest)
                rest = ""
        found.append(rest)
    return [one for one in found if re.search(r"\w", one)]


def _related(count: int, relation: str, wanted: int) -> bool:
    if relation == "at least":
        return count >= wanted
    if relation == "less than":
        return count < wanted
    raise ValueError(f"no relation {relation!r}")


def _language(text: str) -> str:
    try:
        import py3langid
    except ImportError:
        raise LibremoeError("IFEval tells languages apart with py3langid: pip install 'libremoe[eval]'") from None
    return str(py3langid.classify(text)[0])


def _count(text: str, a: Arguments) -> bool:
    found = len(re.findall(re.escape(a["keyword"]), text, re.IGNORECASE))
    return _related(found, a["relation"], int(a["frequency"]))


def _letters(text: str, a: Arguments) -> bool:
    return _related(text.lower().count(a["letter"].lower()), a["let_relation"], int(a["let_frequency"]))


def _capital_words(text: str, a: Arguments) -> bool:
    found = sum(word.isupper() for word in words(text))
    return _related(found, a["capital_relation"], int(a["capital_frequency"]))


def _paragraphs(text: str, a: Arguments) -> bool:
    """Divided by ***; an empty one counts only where it is not at an end."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    inner = parts[1 if not parts[0].strip() else 0 : -1 if not parts[-1].strip() else None]
    return all(part.strip() for part in inner) and len(inner) == int(a["num_paragraphs"])


def _nth_first_word(text: str, a: Arguments) -> bool:
    parts = [part for part in re.split(r"\n\n", text) if part.strip()]
    nth = int(a["nth_paragraph"])
    if len(parts) != int(a["num_paragraphs"]) or not 1 <= nth <= len(parts):
        return False
    first = words(parts[nth - 1].strip().split()[0])
    return bool(first) and first[0].lower() == a["first_word"].lower()


def _highlights(text: str, a: Arguments) -> bool:
    single = [one for one in re.findall(r"\*([^\n*]*)\*", text) if one.strip()]
    double = [one for one in re.findall(r"\*\*([^\n*]*)\*\*", text) if one.strip()]
    return len(single) + len(double) >= int(a["num_highlights"])


def _sections(text: str, a: Arguments) -> bool:
    parts = re.split(rf"\s?{re.escape(a['section_spliter'].strip())}\s?\d+\s?", text)
    return len(parts) - 1 >= int(a["num_sections"])


def _json(text: str, a: Arguments) -> bool:
    bare = re.sub(r"^```\w*\s*|\s*```$", "", text.strip())
    try:
        json.loads(bare)
    except (ValueError, RecursionError):
        return False
    return True


def _two_responses(text: str, a: Arguments) -> bool:
    parts = text.split("******")
    inner = parts[1 if not parts[0].strip() else 0 : -1 if not parts[-1].strip() else None]
    return len(inner) == 2 and all(part.strip() for part in inner) and inner[0].strip() != inner[1].strip()


def _postscript(text: str, a: Arguments) -> bool:
    letters = r"\.?\s?".join(letter for letter in a["postscript_marker"].lower() if letter.isalpha())
    return re.search(rf"^\s*{letters}\.?", text.lower(), re.MULTILINE) is not None


def _bullets(text: str, a: Arguments) -> bool:
    found = re.findall(r"^\s*(?:\*(?!\*)|-)[^\n]*", text, re.MULTILINE)
    return len(found) == int(a["num_bullets"])


CHECKS: dict[str, Callable[[str, Arguments], bool]] = {
    "keywords:existence": lambda text, a: all(word.lower() in text.lower() for word in a["keywords"]),
    "keywords:frequency": _count,
    "keywords:forbidden_words": lambda text, a: not any(
        re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in a["forbidden_words"]),
    "keywords:letter_frequency": _letters,
    "language:response_language": lambda text, a: _language(text) == str(a["language"]),
    "length_constraints:number_sentences": lambda text, a: _related(
        len(sentences(text)), a["relation"], int(a["num_sentences"])),
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": lambda text, a: _related(len(words(text)), a["relation"], int(a["num_words"])),
    "length_constraints:nth_paragraph_first_word": _nth_first_word,
    "detectable_content:number_placeholders": lambda text, a: (
        len(re.findall(r"\[[^\]\n]*\]", text)) >= int(a["num_placeholders"])),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": lambda text, a: any(one in text.lower() for one in CONSTRAINED),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": lambda text, a: any(one.strip() for one in re.findall(r"<<([^\n]+?)>>", text)),
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": lambda text, a: (
        text.strip().lower().startswith(a["prompt_to_repeat"].strip().lower())),
    "startend:end_checker": lambda text, a: text.strip().strip('"').lower().endswith(a["end_phrase"].strip().lower()),
    "startend:quotation": lambda text, a: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda text, a: text.isupper() and _language(text.lower()) == "en",
    "change_case:english_lowercase": lambda text, a: text.islower() and _language(text) == "en",
    "punctuation:no_comma": lambda text, a: "," not in text,
}
