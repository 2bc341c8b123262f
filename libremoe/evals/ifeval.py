"""IFEval: prompts whose instructions a program can check (Zhou et al. 2023, arXiv:2311.07911).

The checks are libremoe's own, after the paper's table of instructions (ifeval_checks.py): scores stand close to, and
are not, those of the authors' code, which splits sentences with NLTK and tells languages with langdetect. The score is
the share of prompts of which every instruction is followed, strictly; beside it, by instruction, and loosely (an
answer also counts without its first line, its last line or its asterisks).
"""

from __future__ import annotations

from libremoe.errors import LibremoeError
from libremoe.evals.data import Data, json_lines, need
from libremoe.evals.ifeval_checks import CHECKS, follows
from libremoe.evals.task import Answer, Example, Prompt, Score


class IFEval:
    name, title, metric = "ifeval", "IFEval (own checks)", "prompts followed strictly"

    def __init__(self, data: Data):
        path, text = data.text("ifeval", "input_data.jsonl", "ifeval_input_data.jsonl")
        self._examples = []
        for i, row in enumerate(json_lines(path, text)):
            ids, arguments = need(row, "instruction_id_list", list), need(row, "kwargs", list)
            unknown = [str(id) for id in ids if id not in CHECKS]
            if unknown or len(ids) != len(arguments) or not all(isinstance(each, dict) for each in arguments):
                raise LibremoeError(f"{row['_where']}: wants known instructions with an object of arguments each, not "
                                    f"{', '.join(unknown)[:60] or 'another number of them'}")
            given = [{k: v for k, v in each.items() if v is not None} for each in arguments]
            for id, each in zip(ids, given, strict=True):
                try:
                    follows(id, each, "Any text.")
                except (KeyError, TypeError, ValueError, AttributeError):
                    raise LibremoeError(f"{row['_where']}: {id} has wrong arguments {str(each)[:60]}") from None
            self._examples.append(Example(f"{i}/{row.get('key', '')}", {
                "prompt": need(row, "prompt"), "instructions": list(zip(ids, given, strict=True))}))
        self.settings = {"shots": 0, "prompt": "as it is", "checks": "own 1"}

    def examples(self) -> list[Example]:
        return self._examples

    def prompt(self, example: Example) -> Prompt:
        return Prompt(example.fields["prompt"], max_tokens=1280)

    def score(self, example: Example, answer: Answer) -> Score:
        asked = example.fields["instructions"]
        strict = [follows(id, arguments, answer.text) for id, arguments in asked]
        variants = _variants(answer.text)
        loose = [any(follows(id, arguments, text) for text in variants) for id, arguments in asked]
        also = {
            "instructions followed strictly": (float(sum(strict)), float(len(strict))),
            "prompts followed loosely": (float(all(loose)), 1.0),
            "instructions followed loosely": (float(sum(loose)), float(len(loose))),
        }
        broken = ", ".join(id for (id, _), good in zip(asked, strict, strict=True) if not good)
        return Score(float(all(strict)), f"broken: {broken}" if broken else "all followed",
                     ", ".join(id for id, _ in asked), "right" if all(strict) else "wrong", also)


def _variants(text: str) -> list[str]:
    lines = text.split("\n")
    cut = [text, "\n".join(lines[1:]), "\n".join(lines[:-1]), "\n".join(lines[1:-1])]
    return [one.strip() for one in cut] + [one.replace("*", "").strip() for one in cut]
