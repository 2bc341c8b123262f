"""A training mix of the real layout, small and made up, for tests of what reads it."""

from __future__ import annotations

import io
import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

from libremoe.train.corpus import PARTS
from libremoe.train.draw import LISTS

ROWS = 400
TEXT = ("The {n} ducks swam over {n} ponds to find some bread. They sat {n} days in the warm sun.\n\n"
        "In the evening {n} ducks went home.")


def write_mix(folder: Path) -> Path:
    """All 24 parts with ROWS rows each, the tool descriptions and the word lists."""
    for part in PARTS.values():
        path = folder / part.path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(_row(part.path, n), ensure_ascii=False) for n in range(ROWS)]
        path.write_bytes(lzma.compress(("\n".join(lines) + "\n").encode(), preset=0))
    tools = {"Taxi_1.GetRide": {"name": "GetRide", "description": "Calls a taxi", "parameters": {
        "type": "object", "properties": {"destination": {"type": "string"}}}}}
    (folder / "chat/schema_guided_dialogue_tools.json.xz").write_bytes(lzma.compress(json.dumps(tools).encode()))
    _write_lists(folder / "lists/word_lists.tar.xz")
    return folder


def _row(path: str, n: int) -> dict[str, Any]:
    text = {"id": f"{path}/{n}", "title": "Ducks", "author": "Aesop", "text": TEXT.format(n=n)}
    chat = {"source": "made", "messages": [{"role": "user", "content": f"What is a word{n}?"},
                                           {"role": "assistant", "content": f"It is number {n}."}]}
    if "wordnet.jsonl" in path:
        return {"word": f"word{n}", "pos": "noun", "definition": f"number {n}", "examples": [f'"word{n}"'],
                "synonyms": []}
    if path.startswith("pretrain"):
        return text
    if "schema_guided" in path:
        return {"source": "sgd/test" if n % 3 == 0 else "sgd/train", "tools": ["Taxi_1.GetRide"], "messages": [
            {"role": "user", "content": f"A taxi to Bern, {n}"},
            {"role": "assistant", "tool_calls": [{"name": "GetRide", "arguments": {"destination": f"Bern {n}"}}]},
            {"role": "tool", "content": "[]"}, {"role": "assistant", "content": "Done."}]}
    if "multiple_choice" in path:
        return {"source": "made", "question": f"Which is {n}?", "choices": ["no", "yes"], "answer": "B"}
    if "grounded" in path:
        return {"source": "made", "question": f"How many ducks in year {n}?", "answer": f"There are {n}.", "cites": [2],
                "answerable": True, "snippets": [{"title": "Geese", "text": "No ducks."},
                                                 {"title": "Ducks", "text": f"{n} ducks live here."}]}
    if "gsm8k" in path:
        chat["messages"][1]["content"] = f"It is {n}+1 = <<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"  # type: ignore[index]
    if "snips" in path:
        return {"text": f"Play song {n}", "intent": "PlayMusic", "slots": [{"slot": "song", "value": str(n)}]}
    if "clinc" in path:
        return {"text": f"how much is {n}", "intent": "exchange_rate"}
    if "tatoeba" in path:
        return {"en": f"I have {n} ducks.", "fr": f"J'ai {n} canards."}
    return chat


def _write_lists(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files: dict[str, Any] = {"humans/firstNames.json": {"firstNames": _words("Na", 80)},
                             "geography/countries_with_capitals.json": {"countries": [
                                 {"name": name, "capital": name + "ville"} for name in _words("La", 40)]}}
    for file, key in LISTS.values():
        files[file] = {key: _words("wo", 80)} if key else _words("ve", 80)
    with tarfile.open(path, "w:xz") as archive:
        for name, content in files.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _words(start: str, count: int) -> list[str]:
    letters = "abdegiklmnop"
    return [start + letters[n % 12] + letters[n // 12 % 12] + letters[(n * 7) % 12] for n in range(count)]
