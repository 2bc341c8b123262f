"""ARC-Challenge, 0-shot: grade-school science questions (Clark et al. 2018, arXiv:1803.05457). Options of three to
five, written out after "Answer:"."""

from __future__ import annotations

from typing import Any

from libremoe.errors import LibremoeError
from libremoe.evals import choices
from libremoe.evals.data import Data, json_lines, need
from libremoe.evals.task import Answer, Example, Prompt, Score


class ARC:
    name, title, metric = "arc_challenge", "ARC-Challenge (0-shot)", "accuracy, divided by length"

    def __init__(self, data: Data):
        path, text = data.text("arc_challenge", "test.jsonl", "ARC-Challenge-Test.jsonl")
        self._examples = [_example(i, row) for i, row in enumerate(json_lines(path, text))]
        self.settings = {"shots": 0, "prompt": "Question, Answer"}

    def examples(self) -> list[Example]:
        return self._examples

    def prompt(self, example: Example) -> Prompt:
        shown = f"Question: {example.fields['question']}"
        return choices.question(f"{shown}\nAnswer:", example.fields["options"], shown)

    def score(self, example: Example, answer: Answer) -> Score:
        return choices.score(example.fields["options"], example.fields["right"], answer)


def _example(i: int, row: dict[str, Any]) -> Example:
    """Both forms: choices beside the question ({text: [...], label: [...]}), and inside it ({stem, choices: [...]})."""
    asked = row.get("question")
    found = asked.get("choices") if isinstance(asked, dict) else need(row, "choices", dict)
    stem = need({**asked, "_where": row["_where"]}, "stem") if isinstance(asked, dict) else need(row, "question")
    if isinstance(found, dict):
        options, labels = (need({**found, "_where": row["_where"]}, name, list) for name in ("text", "label"))
    elif isinstance(found, list) and all(isinstance(each, dict) for each in found):
        options, labels = ([need({**each, "_where": row["_where"]}, name) for each in found]
                           for name in ("text", "label"))
    else:
        raise LibremoeError(f"{row['_where']}: the field 'choices' is of the type {type(found).__name__}")
    key = need(row, "answerKey")
    if key not in labels or len(options) != len(labels) or not all(isinstance(text, str) for text in options):
        raise LibremoeError(f"{row['_where']}: the answer {key[:20]!r} is none of the labels {str(labels)[:60]}")
    return Example(f"{i}/{row.get('id', '')}", {"question": stem, "options": options, "right": labels.index(key)})
