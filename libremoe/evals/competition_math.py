r"""MATH, 4-shot: 5,000 competition problems of the test split (Hendrycks et al. 2021, arXiv:2103.03874).

Data as the user supplies it, in the published layout: MATH/test/<subject>/<number>.json, each with problem, level, type
and a solution whose answer stands in \boxed{}; as a folder, a MATH.tar, or one JSON object a line in test.jsonl.
The four shots were written for this project, in the form that is usual since Minerva (arXiv:2206.14858). Answers
are compared by math-verify, which knows that 1/2 is \frac{1}{2}: in a process of its own, since a strange formula may
take for ever (math_worker.py).
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from libremoe.errors import LibremoeError
from libremoe.evals.data import Data, json_lines, json_value, need
from libremoe.evals.task import Answer, Example, Prompt, Score

SHOTS = (
    ("Solve $3x - 7 = 11$ for $x$.",
     "Adding $7$ to both sides gives $3x = 18$. Dividing by $3$ gives $x = 6$.", "6"),
    ("What is the probability that a fair six-sided die shows a prime number?",
     "The primes among $1, \\ldots, 6$ are $2, 3, 5$. That is three of six equally likely results, so the probability "
     "is $\\frac{3}{6} = \\frac{1}{2}$.", "\\frac{1}{2}"),
    ("A right triangle has legs of length $2$ and $4$. How long is its hypotenuse?",
     "By the theorem of Pythagoras its square is $2^2 + 4^2 = 20$, and $\\sqrt{20} = 2\\sqrt{5}$.", "2\\sqrt{5}"),
    ("Find all real $x$ for which $x^2 - 5x + 6 < 0$.",
     "The left side is $(x - 2)(x - 3)$. It is negative where exactly one factor is, which is between the roots.",
     "(2,3)"),
)
TIMEOUT_S = 10.0  # for one comparison
MAX_TEXT = 20_000  # of an answer


class CompetitionMath:
    name, title, metric = "math", "MATH (4-shot)", "equal answers (math-verify)"

    def __init__(self, data: Data):
        self._examples = [_example(id, row) for id, row in _rows(data)]
        self._shots = tuple(
            f"Problem:\n{problem}\n\nSolution:\n{solution} The final answer is $\\boxed{{{result}}}$.\n\n"
            for problem, solution, result in SHOTS)
        self.settings = {"shots": len(SHOTS), "prompt": "Problem, Solution; own shots 1", "scorer": _version()}
        self._comparing = Comparing()

    def examples(self) -> list[Example]:
        return self._examples

    def prompt(self, example: Example) -> Prompt:
        return Prompt(f"Problem:\n{example.fields['problem']}\n\nSolution:\n", shots=self._shots,
                      stop=("\nProblem:", "\n\nProblem"), max_tokens=1024)

    def score(self, example: Example, answer: Answer) -> Score:
        wanted = boxed(example.fields["solution"]) or ""
        said = final_answer(answer.text)
        if not said:
            return Score(0.0, "", wanted, "unreadable")
        outcome = self._comparing.compare(wanted, said)
        return Score(float(outcome == "right"), said, wanted, outcome)


class Comparing:
    """A process that compares two answers; started anew where it took too long."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def compare(self, wanted: str, said: str) -> str:
        """ "right", "wrong", or "timeout". Equal texts are right without asking."""
        if said == wanted:
            return "right"
        if self._process is None or self._process.poll() is not None:
            worker = Path(__file__).with_name("math_worker.py")
            self._process = subprocess.Popen([sys.executable, "-I", str(worker)], stdin=subprocess.PIPE,
                                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                             start_new_session=True)
            if self._line(60.0) != "ready":  # importing sympy takes seconds on a busy machine
                self.close()
                raise LibremoeError("comparing MATH answers needs math-verify: pip install 'libremoe[eval]'")
        stdin = self._process.stdin
        if stdin is None:
            raise AssertionError("the process has no standard input")
        try:
            stdin.write(json.dumps([wanted, said[:MAX_TEXT]]) + "\n")
            stdin.flush()
        except BrokenPipeError:
            self.close()
            return "timeout"
        answer = self._line(TIMEOUT_S)
        if answer not in ("right", "wrong"):
            self.close()
            return "timeout"
        return answer

    def _line(self, timeout_s: float) -> str:
        stdout = self._process.stdout if self._process is not None else None
        if stdout is None or not select.select([stdout], [], [], timeout_s)[0]:
            return ""
        return stdout.readline().strip()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __del__(self) -> None:
        self.close()


def boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} or \fbox{...}, with its braces in pairs; "\boxed 3" too. None: no such."""
    start, command = max((text.rfind(command), command) for command in ("\\boxed", "\\fbox"))
    if start < 0:
        return None
    rest = text[start + len(command):]
    if not rest.startswith("{"):
        return rest.strip().split("$")[0].split()[0] if rest.strip() else None
    depth = 0
    for i, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[1:i].strip()
    return None


def final_answer(text: str) -> str:
    r"""What an answer says: in its last \boxed{}, else after "answer is", else in its last formula."""
    in_box = boxed(text)
    if in_box:
        return in_box
    _, said, rest = text.rpartition("answer is")
    if said:
        line = rest.strip().split("\n")[0].removesuffix(". I hope it is correct.").rstrip(".")
        return line.strip(" :$") or ""
    formulas = text.split("$")[1::2]
    return formulas[-1].strip() if formulas else ""


def _rows(data: Data) -> list[tuple[str, dict[str, Any]]]:
    if data.has("math", "test.jsonl"):
        path, text = data.text("math", "test.jsonl")
        return [(str(i), row) for i, row in enumerate(json_lines(path, text))]
    files = data.members("math", ["MATH/test", "test", "MATH"], ["MATH.tar", "MATH.tar.gz"], ".json")
    tests = {path: text for path, text in files.items() if "train/" not in path}
    rows = []
    for name, content in tests.items():
        row = json_value(name, content)
        if not isinstance(row, dict):
            raise LibremoeError(f"math: {name} is no JSON object")
        rows.append((name.rpartition("test/")[2].removesuffix(".json"), {**row, "_where": name}))
    return rows


def _example(id: str, row: dict[str, Any]) -> Example:
    problem, solution = need(row, "problem"), need(row, "solution")
    if not boxed(solution):
        raise LibremoeError(f"{row['_where']}: the solution has no \\boxed answer")
    return Example(id, {"problem": problem, "solution": solution, "level": row.get("level", "")},
                   str(row.get("type") or row.get("subject") or ""))


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"math-verify {version('math-verify')}"
    except PackageNotFoundError:
        raise LibremoeError("comparing MATH answers needs math-verify: pip install 'libremoe[eval]'") from None
