"""MBPP, 3-shot, pass@1: short Python programs from a sentence and three assertions.

Austin et al. 2021 (arXiv:2108.07732); prompt and split as there: tasks 11 to 510 are asked, tasks 2 to 4 are the shots.
MBPP+ has more tests for 378 of the tasks, and its own selection (Liu et al. 2023, arXiv:2305.01210). Code runs as in
humaneval.py.
"""

from __future__ import annotations

import ast
from typing import Any

from libremoe.errors import LibremoeError
from libremoe.evals.code import written
from libremoe.evals.data import Data, json_lines, need
from libremoe.evals.grader import grade
from libremoe.evals.task import Answer, Example, Prompt, Score
from libremoe.sandbox import Limits, probes

SHOTS = (2, 3, 4)
# Their tests build objects of a class that the answer defines before it is called, which cannot cross to the tests.
LEFT_OUT = (367, 927)


class MBPP:
    name, title, metric = "mbpp", "MBPP (3-shot, pass@1)", "share of programs that pass their tests"
    files = ("mbpp", "mbpp.jsonl")
    asked = range(11, 511)
    limits = Limits(wall_s=15.0, cpu_s=10)

    def __init__(self, data: Data):
        """Raises SandboxError where model-written code cannot be run safely, and what Data raises."""
        path, text = data.text(*self.files)
        rows = {self._id(row): row for row in json_lines(path, text)}
        missing = [str(i) for i in SHOTS if i not in rows]
        if missing:
            raise LibremoeError(f"{path}: the tasks of the shots are not there: {', '.join(missing)}")
        self._rows = {i: row for i, row in rows.items() if i in self.asked and i not in (*SHOTS, *LEFT_OUT)}
        self._shots = tuple(f"{self._question(rows[i])}{rows[i]['code'].strip()}\n[DONE]\n" for i in SHOTS)
        probes.check()
        self.settings = {"shots": len(SHOTS), "prompt": "as published", "left_out": list(LEFT_OUT),
                         "wall_s": self.limits.wall_s, "memory_bytes": self.limits.memory_bytes}

    def examples(self) -> list[Example]:
        return [Example(str(i), {"row": row}) for i, row in sorted(self._rows.items())]

    def prompt(self, example: Example) -> Prompt:
        return Prompt(self._question(example.fields["row"]), "", self._shots, stop=("[DONE]", "\n[BEGIN]"),
                      max_tokens=512)

    def score(self, example: Example, answer: Answer) -> Score:
        row = example.fields["row"]
        tests, setup = self._tests(row)
        verdict = grade(written(answer.text), tests, setup=f"{setup}\n{_imports(row['code'])}",
                        names=_defined(row["code"]), limits=self.limits)
        return Score(float(verdict.outcome == "passed"), verdict.said, "", verdict.outcome)

    def _id(self, row: dict[str, Any]) -> int:
        for name, kind in (("code", str), ("test_list", list)):
            need(row, name, kind)
        return int(need(row, "task_id", int))

    def _question(self, row: dict[str, Any]) -> str:
        tests = "\n".join(row["test_list"])
        return (f"You are an expert Python programmer, and here is your task: {self._text(row)} Your code should pass "
                f"these tests:\n\n{tests}\n[BEGIN]\n")

    def _text(self, row: dict[str, Any]) -> str:
        return str(need(row, "text"))

    def _tests(self, row: dict[str, Any]) -> tuple[str, str]:
        return "\n".join(row["test_list"]), str(row.get("test_setup_code", ""))


class MBPPPlus(MBPP):
    name, title = "mbpp+", "MBPP+ (3-shot, pass@1)"
    files = ("mbpp", "MbppPlus-OriginFmt.jsonl")
    asked = range(1, 1000)
    limits = Limits(wall_s=60.0, cpu_s=50, memory_bytes=4 << 30)

    def _id(self, row: dict[str, Any]) -> int:
        need(row, "code"), need(row, "test")
        if not str(need(row, "task_id", (str, int))).isdigit():
            raise LibremoeError(f"{row['_where']}: task_id is no number")
        # The file has lists as the text of a Python literal.
        row["test_list"] = ast.literal_eval(row["test_list"]) if isinstance(row["test_list"], str) else row["test_list"]
        return int(row["task_id"])

    def _text(self, row: dict[str, Any]) -> str:
        return str(need(row, "prompt"))

    def _tests(self, row: dict[str, Any]) -> tuple[str, str]:
        return row["test"], ""


def _imports(code: str) -> str:
    """What the reference program imports: some tests use it."""
    return "\n".join(ast.unparse(node) for node in _body(code) if isinstance(node, (ast.Import, ast.ImportFrom)))


def _defined(code: str) -> list[str]:
    """What the reference program defines: by these names the tests call the answer."""
    return [node.name for node in _body(code) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


def _body(code: str) -> list[ast.stmt]:
    try:
        return ast.parse(code).body
    except (SyntaxError, ValueError) as error:
        raise LibremoeError(f"a reference program of MBPP is no Python: {error}") from error
