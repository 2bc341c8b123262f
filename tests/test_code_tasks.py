"""HumanEval and MBPP: reference programs pass, negated tests fail, and an answer becomes the right program."""

import ast
import gzip
import json
from pathlib import Path

import pytest
from eval_data import PUBLISHED

from libremoe.evals import humaneval, mbpp
from libremoe.evals.code import completed, written
from libremoe.evals.data import Data
from libremoe.evals.task import Answer, open_task
from libremoe.sandbox import SandboxError

ITEMS = [
    {"task_id": "HumanEval/0", "entry_point": "double", "prompt": 'def double(x: int) -> int:\n    """ Twice x. """\n',
     "canonical_solution": "    return 2 * x\n",
     "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n"},
    {"task_id": "HumanEval/1", "entry_point": "undo",
     "prompt": "def shift(s: str) -> str:\n    return s[1:] + s[:1]\n\n\n"
               "def undo(s: str) -> str:\n    \"\"\" Undo shift. \"\"\"\n",
     "canonical_solution": "    return s[-1:] + s[:-1]\n",
     "test": "def check(candidate):\n    for s in ('', 'ab', 'xyz'):\n        assert candidate(shift(s)) == s\n"},
]
ROWS = [{"task_id": i, "text": f"Write a function to add {i} to x.", "code": f"def add_{i}(x):\r\n  return x + {i}",
         "test_setup_code": "", "test_list": [f"assert add_{i}(1) == {1 + i}", f"assert add_{i}(-{i}) == 0"]}
        for i in (2, 3, 4, 11, 12, 600)]


@pytest.fixture
def data(tmp_path: Path) -> Data:
    for folder, name, rows in (("humaneval", "HumanEval.jsonl", ITEMS), ("mbpp", "mbpp.jsonl", ROWS)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Data(tmp_path)


def answer(text: str) -> Answer:
    return Answer("generated", text)


class Negated(ast.NodeTransformer):
    def visit_Assert(self, node: ast.Assert) -> ast.Assert:
        node.test = ast.UnaryOp(ast.Not(), node.test)
        return node


def negated(source: str) -> str:
    return ast.unparse(ast.fix_missing_locations(Negated().visit(ast.parse(source))))


def test_reference_answers_pass_and_others_do_not(data: Data) -> None:
    task = open_task("humaneval", data)
    for example, row in zip(task.examples(), ITEMS, strict=True):
        assert task.score(example, answer(row["canonical_solution"])).value == 1
        assert task.score(example, answer("    return None\n")).outcome == "wrong"
        assert task.score(example, answer("    return (\n")).outcome == "syntax error"
        example.fields["test"] = negated(row["test"])
        assert task.score(example, answer(row["canonical_solution"])).outcome == "wrong"


def test_a_helper_of_the_prompt_cannot_be_replaced(data: Data) -> None:
    task = open_task("humaneval", data)
    cheat = "```\ndef undo(s):\n    return s\n\ndef shift(s):\n    return s\n```"
    assert "def shift(s):" in completed(str(ITEMS[1]["prompt"]), cheat, "undo")
    assert task.score(task.examples()[1], answer(cheat)).outcome == "wrong"


@pytest.mark.parametrize("text", [
    "    return 2 * x\n", "    return 2 * x\n\n\ndef next(x):\n    return (", "    return 2 * x\n# the end (",
    "\n    return 2 * x", "    return 2 * x\n```\nThat is (",
    "```python\ndef double(x):\n    return 2 * x\n```\nIt doubles.",
    "Sure! Here:\n\n```python\nfrom typing import List\n\ndef double(x: int) -> int:\n    return x + x\n```\nTest:\n"
    "```python\nassert double(1) == 3\n```", "def double(x):\n    return 2 * x\n", "```\n    return 2 * x\n```",
    "An example:\n```\nprint(double(2))\n```\nThe function:\n```py\ndef double(x):\n    return x * 2",
])
def test_answers_become_programs(text: str) -> None:
    space: dict[str, object] = {}
    exec(completed(ITEMS[0]["prompt"], text, "double"), space)
    assert space["double"](21) == 42  # type: ignore[operator]


def test_mbpp_asks_its_split_with_three_shots(data: Data) -> None:
    task = open_task("mbpp", data)
    examples = task.examples()
    assert [example.id for example in examples] == ["11", "12"]
    prompt = task.prompt(examples[0])
    text = prompt.text()
    assert text.count("[BEGIN]") == 4 and text.count("[DONE]") == 3
    assert text.endswith("assert add_11(-11) == 0\n[BEGIN]\n")
    assert task.score(examples[0], answer("def add_11(x):\n    return x + 11\n")).value == 1
    assert task.score(examples[0], answer("```python\ndef add_11(x):\n    return x + 11\n```")).value == 1
    assert task.score(examples[0], answer("def add_11(x):\n    return x + 12\n")).outcome == "wrong"
    assert task.score(examples[0], answer("def other(x):\n    return x\n")).outcome == "exception"
    assert written("no fence") == "no fence"


def test_without_bubblewrap_the_task_is_refused(data: Data, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for name in ("humaneval", "mbpp"):
        with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
            open_task(name, data)


needs_data = pytest.mark.skipif(PUBLISHED is None, reason="the published files are not beside the repository")


def _rows(*parts: str) -> list[dict[str, object]]:
    assert PUBLISHED is not None
    with gzip.open(PUBLISHED.joinpath(*parts)) as file:
        return [json.loads(line) for line in file]


@needs_data
@pytest.mark.parametrize("which", [pytest.param(slice(0, 164, 8), id="every eighth"),
                                   pytest.param(slice(0, 164), id="all", marks=pytest.mark.soak)])
def test_humaneval_canonical_solutions_pass_and_fail_negated(which: slice) -> None:
    assert PUBLISHED is not None
    task = humaneval.HumanEval(Data(PUBLISHED))
    for example, row in list(zip(task.examples(), _rows("humaneval", "HumanEval.jsonl.gz"), strict=True))[which]:
        solution = answer(str(row["canonical_solution"]))
        assert task.score(example, solution).value == 1, example.id
        example.fields["test"] = negated(example.fields["test"])
        assert task.score(example, solution).outcome == "wrong", example.id


@needs_data
@pytest.mark.soak
@pytest.mark.parametrize("made", [humaneval.HumanEvalPlus, mbpp.MBPP, mbpp.MBPPPlus])
def test_reference_programs_of_the_other_sets_pass(made: type) -> None:
    assert PUBLISHED is not None
    task = made(Data(PUBLISHED))
    rows = {str(row["task_id"]): row for row in _rows(made.files[0], f"{made.files[1]}.gz")}
    failed = []
    for example in task.examples():
        row = rows[example.id]
        score = task.score(example, answer(str(row.get("canonical_solution", row.get("code")))))
        failed += [(example.id, score)] if score.value != 1 else []
    assert failed == []
