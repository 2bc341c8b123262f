"""BIG-Bench Hard, 3-shot with chain of thought: 27 tasks of reasoning (Suzgun et al. 2022, arXiv:2210.09261).

The shots are the authors' own, read from the data (cot-prompts/<task>.txt). The answer is what follows "the answer is",
compared without regard to case and final stops.
"""

from __future__ import annotations

import re

from libremoe.errors import LibremoeError
from libremoe.evals.data import Data, json_value, need
from libremoe.evals.task import Answer, Example, Prompt, Score


class BBH:
    name, title, metric = "bbh", "BIG-Bench Hard (3-shot)", "exact match"

    def __init__(self, data: Data):
        files = data.members("bbh", ["."], ["bbh.tar.gz", "bbh.tar"], ".json")
        prompts = {_stem(path): text for path, text in data.members("bbh", ["."], ["bbh.tar.gz", "bbh.tar"],
                                                                    ".txt").items()}
        self._heads: dict[str, str] = {}
        self._examples = []
        for path, text in files.items():
            task, found = _stem(path), json_value(path, text)
            if not isinstance(found, dict) or task not in prompts:
                raise LibremoeError(f"bbh: {path} is no object with examples, or has no cot-prompts/{task}.txt")
            # a note to crawlers stands above a line of dashes
            self._heads[task] = prompts[task].partition("-----\n")[2].lstrip("\n") or prompts[task]
            for i, row in enumerate(need({**found, "_where": path}, "examples", list)):
                if not isinstance(row, dict):
                    raise LibremoeError(f"{path}: example {i} is no object")
                row = {**row, "_where": f"{path}: example {i}"}
                self._examples.append(Example(f"{task}/{i}", {"input": need(row, "input"),
                                                              "target": need(row, "target")}, task))
        self.settings = {"shots": 3, "prompt": "cot-prompts"}

    def examples(self) -> list[Example]:
        return self._examples

    def prompt(self, example: Example) -> Prompt:
        question = f"\n\nQ: {example.fields['input']}\nA: Let's think step by step.\n"
        return Prompt(question, self._heads[example.group].rstrip("\n"), stop=("\n\nQ:", "\nQ:"), max_tokens=1024)

    def score(self, example: Example, answer: Answer) -> Score:
        said, wanted = extracted(answer.text), _plain(example.fields["target"])
        return Score(float(said == wanted), said, wanted, "right" if said == wanted else "wrong" if said else
                     "unreadable")


def extracted(text: str) -> str:
    """What follows the last "answer is"; "" where nothing does."""
    found = re.findall(r"answer is:?\s*(.+)", text, re.IGNORECASE)
    return _plain(found[-1]) if found else ""


def _plain(text: str) -> str:
    return " ".join(text.strip().strip("*$").removesuffix(".").casefold().split())


def _stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]
