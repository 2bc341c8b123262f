"""WinoGrande, 0-shot: which of two names fills the gap (Sakaguchi et al. 2019, arXiv:1907.10641).

Data as the user supplies it: dev.jsonl as published (sentence with one "_", option1, option2, answer "1" or "2"). The
end of the sentence is scored after each name (partial evaluation, Trinh and Le 2018, arXiv:1806.02847): here as
continuations of what stands before the gap, from which the name's own probability is taken off again.
"""

from __future__ import annotations

from libremoe.errors import LibremoeError
from libremoe.evals.data import Data, json_lines, need
from libremoe.evals.task import Answer, Example, Prompt, Score, choice_score, choose


class WinoGrande:
    name, title, metric = "winogrande", "WinoGrande (0-shot)", "accuracy"

    def __init__(self, data: Data):
        path, text = data.text("winogrande", "dev.jsonl", "winogrande_1.1/dev.jsonl", "validation.jsonl")
        self._examples = []
        for i, row in enumerate(json_lines(path, text)):
            sentence, right = need(row, "sentence"), need(row, "answer")
            if sentence.count("_") != 1 or right not in ("1", "2"):
                raise LibremoeError(f"{row['_where']}: wants a sentence with one _ and the answer 1 or 2")
            options = [need(row, "option1"), need(row, "option2")]
            self._examples.append(Example(str(i), {"sentence": sentence, "options": options, "right": int(right) - 1}))
        self.settings = {"shots": 0, "prompt": "partial evaluation"}

    def examples(self) -> list[Example]:
        return self._examples

    def prompt(self, example: Example) -> Prompt:
        """Four options: each name with the end of the sentence, then each name alone."""
        before, _, after = (part.strip() for part in example.fields["sentence"].partition("_"))
        names = example.fields["options"]
        gap = "" if after[:1] in ",.;:!?'" else " "
        lettered = f"{example.fields['sentence']}\nA. {names[0]}\nB. {names[1]}\nWhich one fills the gap?\nAnswer:"
        lead = " " if before else ""
        options = [f"{lead}{name}{gap}{after}" for name in names] + [f"{lead}{name}" for name in names]
        return Prompt(before, options=tuple(options), lettered=lettered, max_tokens=8)

    def score(self, example: Example, answer: Answer) -> Score:
        chosen = choose(answer)
        if answer.how == "logprobs" and len(answer.logprobs) == 4:
            first, second, name_first, name_second = (p or 0.0 for p in answer.logprobs)
            chosen = int(second - name_second > first - name_first)
        return choice_score(chosen, example.fields["right"], 2)
