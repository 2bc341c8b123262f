"""HellaSwag, 0-shot: how a description of an activity goes on (Zellers et al. 2019, arXiv:1905.07830).

Data as the user supplies it: hellaswag_val.jsonl as published at github.com/rowanz/hellaswag, with ctx_a, ctx_b,
activity_label, endings, label. The texts of wikiHow carry marks such as [title], which become sentence ends.
"""

from __future__ import annotations

import re

from libremoe.errors import LibremoeError
from libremoe.evals import choices
from libremoe.evals.data import Data, json_lines, need
from libremoe.evals.task import Answer, Example, Prompt, Score


class HellaSwag:
    name, title, metric = "hellaswag", "HellaSwag (0-shot)", "accuracy, divided by length"

    def __init__(self, data: Data):
        path, text = data.text("hellaswag", "hellaswag_val.jsonl", "val.jsonl", "validation.jsonl")
        self._examples = []
        for i, row in enumerate(json_lines(path, text)):
            endings, label = need(row, "endings", list), str(row.get("label"))
            if not all(isinstance(end, str) for end in endings) or label not in map(str, range(len(endings))):
                raise LibremoeError(f"{row['_where']}: wants endings that are texts and a label that numbers one")
            begun = f"{need(row, 'ctx_a')} {need(row, 'ctx_b').capitalize()}".strip()
            self._examples.append(Example(str(i), {
                "text": _clean(f"{need(row, 'activity_label')}: {begun}"), "options": [_clean(end) for end in endings],
                "right": int(label)}))
        self.settings = {"shots": 0, "prompt": "activity: text"}

    def examples(self) -> list[Example]:
        return self._examples

    def prompt(self, example: Example) -> Prompt:
        return choices.question(example.fields["text"], example.fields["options"])

    def score(self, example: Example, answer: Answer) -> Score:
        return choices.score(example.fields["options"], example.fields["right"], answer)


def _clean(text: str) -> str:
    return re.sub(r" {2,}", " ", re.sub(r"\[.*?\]", "", text.replace(" [title]", ". "))).strip()
