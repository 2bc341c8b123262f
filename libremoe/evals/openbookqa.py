"""OpenBookQA, 0-shot: a stem and four ends (Mihaylov et al. 2018, arXiv:1809.02789), without the book."""

from __future__ import annotations

import json
import re
from typing import Any

from libremoe.errors import LibremoeError
from libremoe.evals import choices
from libremoe.evals.data import Data, csv_rows, json_lines, need
from libremoe.evals.task import LETTERS, Answer, Example, Prompt, Score


class OpenBookQA:
    name, title, metric = "openbookqa", "OpenBookQA (0-shot)", "accuracy, divided by length"

    def __init__(self, data: Data):
        path, text = data.text("openbookqa", "test.tsv", "test.jsonl", "Main/test.tsv", "Main/test.jsonl")
        rows = _tsv(str(path), text) if ".tsv" in path.name else _jsonl(json_lines(path, text))
        self._examples = [Example(id, {"stem": stem, "options": options, "right": right})
                          for id, stem, options, right in rows]
        self.settings = {"shots": 0, "prompt": "the stem alone"}

    def examples(self) -> list[Example]:
        return self._examples

    def prompt(self, example: Example) -> Prompt:
        return choices.question(example.fields["stem"], example.fields["options"])

    def score(self, example: Example, answer: Answer) -> Score:
        return choices.score(example.fields["options"], example.fields["right"], answer)


Row = tuple[str, str, list[str], int]


def _tsv(where: str, text: str) -> list[Row]:
    """ID, question stem, "(A) ... (B) ...", the whole question, answer key; a header."""
    found = []
    for number, row in enumerate(csv_rows(where, text, 5, "\t")[1:], 2):
        parts = re.split(r"\s*\(([A-D])\)\s*", row[2])
        if parts[1::2] != list("ABCD") or row[4] not in LETTERS[:4]:
            raise LibremoeError(f"{where}: row {number} has not the options (A) to (D) and one of them as its key")
        found.append((row[0], row[1], [part.strip() for part in parts[2::2]], LETTERS.index(row[4])))
    return found


def _jsonl(rows: list[dict[str, Any]]) -> list[Row]:
    """The other published form: {id, question: {stem, choices: [{text, label}]}, answerKey}."""
    found: list[Row] = []
    for row in rows:
        asked = {**need(row, "question", dict), "_where": row["_where"]}
        options = [one for one in need(asked, "choices", list) if isinstance(one, dict)]
        labels, key = [one.get("label") for one in options], need(row, "answerKey")
        if key not in labels:
            raise LibremoeError(f"{row['_where']}: the answer {key[:20]!r} is none of {json.dumps(labels)[:60]}")
        texts = [need({**one, "_where": row["_where"]}, "text") for one in options]
        found.append((str(row.get("id", len(found))), need(asked, "stem"), texts, labels.index(key)))
    return found
