"""HumanEval, 0-shot, pass@1: complete a Python function from its docstring (Chen et al. 2021, arXiv:2107.03374).

HumanEval+ asks the same and tests far more (Liu et al. 2023, arXiv:2305.01210). What the model writes runs in a sandbox
and apart from its tests (grader.py); without a sandbox the task is refused. One answer an item, greedy: pass@1 is the
share that passes.
"""

from __future__ import annotations

from libremoe.evals.code import ENDS, completed
from libremoe.evals.data import Data, json_lines, need
from libremoe.evals.grader import grade
from libremoe.evals.task import Answer, Example, Prompt, Score
from libremoe.sandbox import Limits, probes

# One test of HumanEval+ as released (2023) hands its arguments over in the wrong order, so that nothing can pass it.
_PLUS_32 = ("assert _poly(*candidate(*inp), inp) <= 0.0001", "assert abs(_poly(*inp, candidate(*inp))) <= 0.0001")


class HumanEval:
    name, title, metric = "humaneval", "HumanEval (0-shot, pass@1)", "share of functions that pass their tests"
    files = ("humaneval", "HumanEval.jsonl")
    limits = Limits(wall_s=15.0, cpu_s=10)

    def __init__(self, data: Data):
        """Raises SandboxError where model-written code cannot be run safely, and what Data raises."""
        path, text = data.text(*self.files)
        self._rows = json_lines(path, text)
        for row in self._rows:
            for name in ("task_id", "prompt", "entry_point", "test"):
                need(row, name)
        probes.check()
        self.settings = {"shots": 0, "prompt": "as published", "wall_s": self.limits.wall_s,
                         "memory_bytes": self.limits.memory_bytes}

    def examples(self) -> list[Example]:
        return [Example(row["task_id"], {k: row[k] for k in ("prompt", "entry_point", "test")}) for row in self._rows]

    def prompt(self, example: Example) -> Prompt:
        return Prompt(example.fields["prompt"], stop=ENDS, chat_stop=(), max_tokens=512)

    def score(self, example: Example, answer: Answer) -> Score:
        prompt, entry_point = example.fields["prompt"], example.fields["entry_point"]
        program = completed(prompt, answer.text, entry_point)
        tests = f"{example.fields['test'].replace(*_PLUS_32)}\ncheck({entry_point})\n"
        # The prompt is the setup of the tests: some use helpers that it defines, and must not use the model's.
        verdict = grade(program, tests, setup=f"{prompt}\n    pass\n", names=(entry_point,), limits=self.limits)
        return Score(float(verdict.outcome == "passed"), verdict.said, "", verdict.outcome)


class HumanEvalPlus(HumanEval):
    name, title = "humaneval+", "HumanEval+ (0-shot, pass@1)"
    files = ("humanevalplus", "HumanEvalPlus-OriginFmt.jsonl")
    limits = Limits(wall_s=60.0, cpu_s=50)
