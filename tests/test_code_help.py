"""Help with code: a patch applies whatever the model wrote, and the editors' endpoint says the same as the command."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeModel, read, words
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import CLIENT, Running, post, served, stub

from libremoe.chat.code import Asked, Done, changed, fence_for, first_block, help_with, unified_diff
from libremoe.chat.persona import load_personas
from libremoe.errors import LibremoeError

CODE = "def add(a, b):\n    return a - b\n"
LINES = st.lists(st.sampled_from(["a", "b", "", "x = 1", "\t", "é", "a\u2028b", "c\x0cd", "-", "+", "\\"]), max_size=12)
TEXTS = st.tuples(LINES, st.booleans()).map(lambda t: "\n".join(t[0]) + ("\n" if t[1] and t[0] else ""))


def helped(says: Any, **fields: Any) -> tuple[Done, FakeModel]:
    async def work() -> Done:
        return [e async for e in help_with(Asked(**fields), load_personas()["coder"], model)][-1]  # type: ignore[misc]

    model = FakeModel(says)
    return asyncio.run(work()), model


def applied(folder: Path, path: str, old: str, diff: str) -> str:
    """What git makes of it."""
    (folder / path).write_bytes(old.encode())
    (folder / "patch").write_bytes(diff.encode())
    for check in (["--check"], []):
        subprocess.run(["git", "apply", "--whitespace=nowarn", *check, "patch"], cwd=folder, check=True,
                       capture_output=True)
    return (folder / path).read_bytes().decode()


@settings(max_examples=40, deadline=None)
@given(TEXTS, TEXTS)
def test_a_diff_applies(tmp_path_factory: pytest.TempPathFactory, old: str, new: str) -> None:
    diff = unified_diff(old, new, "f.py")
    assert bool(diff) == (old != new)
    if diff and old and new:  # a file that is made or emptied needs git's own header
        assert applied(tmp_path_factory.mktemp("repo"), "f.py", old, diff) == new


def test_a_patch_is_made_from_the_block_that_the_model_wrote(tmp_path: Path) -> None:
    fixed = CODE.replace("-", "+")
    for answer in (f"Here:\n```python\n{fixed}```\nIt adds now.", f"````py\n{fixed}````", f"```\n{fixed.rstrip()}"):
        done, model = helped(lambda r, a=answer: [a], task="patch", code=CODE, path="m.py", instruction="add")
        assert applied(tmp_path, "m.py", CODE, done.diff) == fixed
        assert "return a - b" in read(model.requests[0]) and "```python" in read(model.requests[0])
    done, _ = helped(words("I would not change it."), task="patch", code=CODE, instruction="x")
    assert done.diff == ""


def test_line_ends_and_the_last_one_stay() -> None:
    assert changed("a\r\nb\r\n", "```\na\nc\n```") == "a\r\nc\r\n"
    assert changed("a\nb", "```\na\nc\n```") == "a\nc"
    assert fence_for("x ```` y") == "`````" and first_block("````\na\n```\nb\n````") == "a\n```\nb\n"


def test_the_other_tasks() -> None:
    done, model = helped(words("a + b"), task="complete", code="def add(a, b):\n    return ", path="m.py")
    assert done.text == "a + b" and model.requests[0].prefix == "```python\ndef add(a, b):\n    return "
    assert model.requests[0].sampling["stop"] == ("\n```",)
    done, _ = helped(words("It subtracts."), task="explain", code=CODE)
    assert done.text == "It subtracts."
    done, _ = helped(lambda r: ["Sure\n```python\ndef test(): ...\n```"], task="tests", code=CODE)
    assert done.text == "def test(): ...\n"


@pytest.mark.parametrize(("fields", "says"), [
    ({"task": "explain", "code": " "}, "code"), ({"task": "patch", "code": CODE}, "instruction"),
    ({"task": "tests", "code": CODE, "path": "a\nb"}, "path"), ({"task": "explain", "code": "x " * 5000}, "too long"),
])
def test_what_is_wrong_is_a_sentence(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(LibremoeError, match=says):
        helped(words("x"), **fields)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with served(stub(tokens_per_s=2000)) as running:
        yield running


def test_the_endpoint_for_editors(running: Running) -> None:
    body = {"task": "explain", "code": CODE, "max_tokens": 12}
    whole = post(running, "/api/code", body).json()
    assert whole["text"] and whole["stats"]["tokens"] == 12
    with CLIENT.stream("POST", f"{running.url}/api/code", json={**body, "stream": True}) as found:
        events = [json.loads(line[6:]) for line in found.iter_lines() if line.startswith("data: ")]
    assert "".join(e["text"] for e in events if e["type"] == "delta") == whole["text"] == events[-1]["text"]
    assert post(running, "/api/code", {"task": "patch", "code": CODE, "instruction": "x", "max_tokens": 8}).json()[
        "diff"] == ""
    for wrong in ({"task": "write", "code": "x"}, {"task": "patch", "code": CODE}, {"task": "explain", "code": ""}):
        assert post(running, "/api/code", wrong).status_code == 400
