"""The training mix as documents: 24 parts of xz-compressed JSON lines, read as streams, and the word lists.

Rows become text or conversations (render.Document). Which row is kept for validation depends on the row alone, so
that every mix holds out the same documents. Licences are those that the mix's SOURCE.md states.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from libremoe.chat.message import Message, Text, Tool, ToolCall, ToolResult, said
from libremoe.errors import CheckpointError
from libremoe.train.render import Document

HELD_OUT_EVERY = 50  # one document in 50 is for validation
Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A file of the mix, how its rows are read, and its licence."""

    path: str
    licence: str
    read: Callable[[Row, Path], Document | None]


def documents(folder: Path, name: str, held_out: bool) -> Iterator[Document]:
    """Documents of one part, those for validation or all others, in the order of the file.

    Raises CheckpointError where the file is missing or damaged.
    """
    part = PARTS[name]
    for number, row in enumerate(rows(folder / part.path)):
        if is_held_out(part.path, number, row) == held_out:
            document = part.read(row, folder)
            if document is not None:
                yield document


def rows(path: Path) -> Iterator[Row]:
    """JSON lines of an xz file. Raises CheckpointError with the number of a line that is none."""
    number = 0
    try:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise CheckpointError(path, f"line {number} is not a JSON object")
                yield row
    except (OSError, lzma.LZMAError, EOFError, ValueError) as error:
        raise CheckpointError(path, f"cannot be read after line {number}: {error}") from error


def sha256(path: Path) -> str:
    """Digest of a part, for the records. Raises CheckpointError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(path, error.strerror or str(error)) from error


def is_held_out(path: str, number: int, row: Row) -> bool:
    """Whether a row is for validation: one in 50 by its id, and the test split of the task dialogues."""
    if str(row.get("source", "")).endswith("sgd/test"):
        return True
    key = str(row.get("id", number)).encode()
    return zlib.crc32(path.encode() + b"/" + key) % HELD_OUT_EVERY == 0


def _text(row: Row, folder: Path) -> Document:
    return Document(text=row["text"].strip())


def _childrens(row: Row, folder: Path) -> Document | None:
    return _text(row, folder) if row.get("author") in CHILDRENS_AUTHORS else None


def _word(row: Row, folder: Path) -> Document:
    lines = [f"{row['word']} ({row['pos']}): {row['definition']}."]
    if row.get("examples"):
        lines.append("Example: " + row["examples"][0].strip('"'))
    if row.get("synonyms"):
        lines.append("Also: " + ", ".join(row["synonyms"][:4]))
    return Document(text="\n".join(lines))


def _chat(row: Row, folder: Path) -> Document | None:
    messages = tuple(said(m["role"], m["content"]) for m in row["messages"] if m.get("content"))
    return Document(messages=messages) if messages and messages[-1].role == "assistant" else None


def _gsm8k(row: Row, folder: Path) -> Document:
    """The worked answer without the calculator's marks; "#### 72" becomes a sentence."""
    question, answer = (m["content"] for m in row["messages"])
    while (at := answer.find("<<")) >= 0 and (end := answer.find(">>", at)) > 0:
        answer = answer[:at] + answer[end + 2 :]
    return Document(messages=(said("user", question), said("assistant", answer.replace("#### ",
                        "The answer is ") + ".")))


def _choice(row: Row, folder: Path) -> Document:
    choices = [f"{letter}) {text}" for letter, text in zip("ABCDEFGH", row["choices"], strict=False)]
    answer = next(line for line in choices if line.startswith(row["answer"]))
    return Document(messages=(said("user", "\n".join([row["question"], *choices])), said("assistant", answer)))


@cache
def _dialogue_tools(folder: Path) -> dict[str, Tool]:
    path = folder / "chat/schema_guided_dialogue_tools.json.xz"
    try:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, lzma.LZMAError, EOFError, ValueError) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error
    return {key: Tool(one["name"], one.get("description", ""), one.get("parameters", {})) for key, one in found.items()}


def _dialogue(row: Row, folder: Path) -> Document | None:
    """A task dialogue. One whose arguments need JSON escapes is left out: the served template shows them unescaped."""
    tools = _dialogue_tools(folder)
    messages: list[Message] = []
    for number, m in enumerate(row["messages"]):
        if m.get("tool_calls"):
            calls = [(c["name"], json.dumps(c["arguments"], ensure_ascii=False)) for c in m["tool_calls"]]
            if any("\\" in arguments for _, arguments in calls):
                return None
            messages.append(Message("assistant", tuple(ToolCall(f"call_{number}", *call) for call in calls)))
        elif m["role"] == "tool":
            content = m["content"] if isinstance(m["content"], str) else json.dumps(m["content"], ensure_ascii=False)
            messages.append(Message("tool", (ToolResult(f"call_{number - 1}", content),)))
        else:
            messages.append(Message(m["role"], (Text(m["content"]),)))
    while messages and messages[-1].role != "assistant":
        messages.pop()
    return Document(messages=tuple(messages), tools=tuple(tools[key] for key in row["tools"] if key in tools))


def excerpts(snippets: list[tuple[str, str]]) -> str:
    """Numbered excerpts as people, search tools and training write them: `[1] Title: text`, one a line."""
    return "\n".join(f"[{i}] {title}: {text}" for i, (title, text) in enumerate(snippets, 1))


def _grounded(row: Row, folder: Path) -> Document:
    shown = excerpts([(s["title"], s["text"]) for s in row["snippets"]])
    marks = "".join(f"[{n}]" for n in row.get("cites") or [])
    answer = row["answer"].strip()
    if row.get("answerable", True) and marks and "[" not in answer:
        answer = f"{answer.rstrip('.')} {marks}." if not answer.endswith(("!", "?")) else f"{answer} {marks}"
    return Document(messages=(said("user", f"{shown}\n\n{row['question']}"), said("assistant", answer)))


def _request(row: Row, folder: Path) -> Document | None:
    """A request with slot values as a call of the tool that is named as its intent."""
    slots: dict[str, str] = {}
    for slot in row["slots"]:
        slots.setdefault(slot["slot"], slot["value"].strip())
    if "\\" in json.dumps(slots, ensure_ascii=False):
        return None
    tool = Tool(row["intent"], "", {"type": "object", "properties": {k: {"type": "string"} for k in slots}})
    call = ToolCall("call_1", row["intent"], json.dumps(slots, ensure_ascii=False))
    return Document(messages=(said("user", row["text"]), Message("assistant", (call,))), tools=(tool,))


def _intent(row: Row, folder: Path) -> Document:
    intent = "none of those" if row["intent"] == "oos" else row["intent"].replace("_", " ")
    return Document(messages=(said("user", f"What does this person want? {row['text']}"), said("assistant", intent)))


def _pair(row: Row, folder: Path) -> Document:
    en, fr = row["en"].strip(), row["fr"].strip()
    way = zlib.crc32(en.encode()) % 6
    asked = [f"Translate to French: {en}", f"How do you say this in French? {en}", f'What is "{en}" in French?',
             f"Traduis en anglais : {fr}", f"Comment dit-on en anglais : {fr}", f"En anglais : {fr}"][way]
    return Document(messages=(said("user", asked), said("assistant", fr if way < 3 else en)))


CC_BY = "CC BY 4.0"
CHILDRENS_AUTHORS = (
    "A. A. Milne", "Aesop", "Anna Sewell", "Beatrix Potter", "E. Nesbit", "Eleanor H. Porter",
                     "Frances Hodgson Burnett",
    "J. M. Barrie", "Jacob Grimm", "Jacob Grimm and Wilhelm Grimm", "Kenneth Grahame", "L. Frank Baum", "Lewis Carroll",
    "L. M. Montgomery", "Rudyard Kipling",
)
PARTS = {
    "standard_ebooks": Part("pretrain/standard_ebooks.jsonl.xz", "public domain (US); edition CC0 1.0", _text),
    "childrens_books": Part("pretrain/standard_ebooks.jsonl.xz", "public domain (US); edition CC0 1.0", _childrens),
    "openstax_textbooks": Part("pretrain/openstax_textbooks.jsonl.xz", CC_BY, _text),
    "open_english_wordnet": Part("pretrain/open_english_wordnet.jsonl.xz", "CC BY 4.0 and WordNet licence", _word),
    "world_factbook": Part("pretrain/world_factbook.jsonl.xz", "CC0 1.0", _text),
    "tldr_pages": Part("pretrain/tldr_pages.jsonl.xz", CC_BY, _text),
    "storybooks_en": Part("pretrain/storybooks_en.jsonl.xz", "CC BY", _text),
    "recipes": Part("pretrain/recipes.jsonl.xz", "Unlicense", _text),
    "storybooks_fr": Part("pretrain/storybooks_fr.jsonl.xz", "CC BY", _text),
    "chemical_elements": Part("pretrain/chemical_elements.jsonl.xz", "CC BY-SA 3.0", _text),
    "schema_guided_dialogue": Part("chat/schema_guided_dialogue.jsonl.xz", "CC BY-SA 4.0", _dialogue),
    "self_dialogue": Part("chat/self_dialogue.jsonl.xz", "BSD-3-Clause", _chat),
    "gsm8k_train": Part("chat/gsm8k_train.jsonl.xz", "MIT", _gsm8k),
    "topical_chat": Part("chat/topical_chat.jsonl.xz", "CDLA-Sharing-1.0", _chat),
    "word_definitions": Part("chat/word_definitions.jsonl.xz", "CC BY 4.0 and WordNet licence", _chat),
    "openstax_key_terms": Part("chat/openstax_key_terms.jsonl.xz", CC_BY, _chat),
    "multiple_choice": Part("chat/multiple_choice.jsonl.xz", "CC BY 4.0; Apache-2.0", _choice),
    "openstax_review_answers": Part("chat/openstax_review_answers.jsonl.xz", CC_BY, _chat),
    "self_instruct_human": Part("chat/self_instruct_human.jsonl.xz", "Apache-2.0", _chat),
    "mbpp_train": Part("chat/mbpp_train.jsonl.xz", CC_BY, _chat),
    "small_talk_and_jokes": Part("chat/small_talk_and_jokes.jsonl.xz", "MIT; BSD-3-Clause", _chat),
    "grounded_answers": Part("grounded/grounded_answers.jsonl.xz", "CC BY 4.0; CC0 1.0; MIT", _grounded),
    "snips_requests": Part("tools/snips_requests.jsonl.xz", "CC0 1.0", _request),
    "clinc150_intents_train": Part("tools/clinc150_intents_train.jsonl.xz", "CC BY 3.0", _intent),
    "tatoeba_en_fr": Part("translation/tatoeba_en_fr.jsonl.xz", "CC BY 2.0 FR", _pair),
}


@dataclass(frozen=True)
class WordLists:
    """The mix's word lists (CC0 1.0): file such as "foods/fruits.json" -> its JSON."""

    files: dict[str, Any]

    def words(self, file: str, key: str) -> list[str]:
        """Short plain words of one list, in its order."""
        found = self.files[file][key] if isinstance(self.files[file], dict) else self.files[file]
        return [w.lower() for w in found if isinstance(w, str) and w.isalpha() and w.isascii() and 2 < len(w) < 11]

    def names(self, file: str, key: str) -> list[str]:
        return [w for w in self.files[file][key] if w.isalpha() and w.isascii() and 2 < len(w) < 10]

    def capitals(self) -> list[tuple[str, str]]:
        """(country, capital)."""
        found = self.files["geography/countries_with_capitals.json"]["countries"]
        return [(c["name"], c["capital"]) for c in found if c.get("name") and c.get("capital")]


def word_lists(folder: Path) -> WordLists:
    """Raises CheckpointError where the archive is missing or damaged."""
    path = folder / "lists/word_lists.tar.xz"
    files: dict[str, Any] = {}
    try:
        with tarfile.open(path, "r:xz") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    files[member.name.removeprefix("./")] = json.loads(file.read())
    except (OSError, tarfile.TarError, lzma.LZMAError, EOFError, ValueError) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error
    return WordLists(files)
