"""PIQA, 0-shot: which of two ways reaches an everyday goal (Bisk et al. 2020, arXiv:1911.11641). The validation split,
since the answers of the test split are not public."""

from __future__ import annotations

from libremoe.errors import LibremoeError
from libremoe.evals import choices
from libremoe.evals.data import Data, json_lines, need
from libremoe.evals.task import Answer, Example, Prompt, Score


class PIQA:
    name, title, metric = "piqa", "PIQA (0-shot)", "accuracy, divided by length"

    def __init__(self, data: Data):
        path, text = data.text("piqa", "valid.jsonl")
        rows = json_lines(path, text)
        beside, labels = data.text("piqa", "valid-labels.lst")
        rights = labels.split()
        if len(rights) != len(rows) or not set(rights) <= {"0", "1"}:
            raise LibremoeError(f"{beside}: wants a 0 or 1 for each of the {len(rows)} rows of {path.name}")
        self._examples = [
            Example(str(i), {"goal": need(row, "goal"), "options": [need(row, "sol1"), need(row, "sol2")],
                             "right": int(right)})
            for i, (row, right) in enumerate(zip(rows, rights, strict=True))]
        self.settings = {"shots": 0, "prompt": "Question, Answer"}

    def examples(self) -> list[Example]:
        return self._examples

    def prompt(self, example: Example) -> Prompt:
        shown = f"Question: {example.fields['goal']}"
        return choices.question(f"{shown}\nAnswer:", example.fields["options"], shown)

    def score(self, example: Example, answer: Answer) -> Score:
        return choices.score(example.fields["options"], example.fields["right"], answer)
