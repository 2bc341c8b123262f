"""The conversation in the terminal: its commands over a pipe, with a model that is a function."""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeLive, FakeModel, Says, excerpt, words

from libremoe.chat.folder import Belongings
from libremoe.chat.message import Tool, ToolCall
from libremoe.chat.persona import load_personas
from libremoe.chat.store import open_store
from libremoe.chat.terminal import Terminal
from libremoe.chat.tool_box import Entry, ToolBox, local_tools


def talked(lines: list[str], says: Says, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
           live: Any = None, box: ToolBox | None = None) -> tuple[str, Terminal, int]:
    """What the screen shows after these lines."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    own = Belongings(open_store(":memory:"), load_personas(), live, None)
    terminal = Terminal(own, FakeModel(says), "regular", "en", {}, live is not None)  # type: ignore[arg-type]
    terminal.tools = box or ToolBox(local_tools())
    terminal.chosen_tools = terminal.tools.names()
    code = asyncio.run(terminal.talk())
    return capsys.readouterr().out, terminal, code


def test_a_conversation_its_branches_and_files(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                                               tmp_path: Path) -> None:
    count = iter(range(100))
    file = tmp_path / "out.json"
    lines = ["Hello", "/regenerate", "/edit Good evening", "/branches", "/branches 1", "More", "/search evening",
             "/rename Greetings", f"/export {file}", "/new", "Other", "/list", "/open 2", "/copy", "/delete",
             f"/import {file}", "/list", "/persona fun", "/help", "/quit", "never read"]
    out, terminal, code = talked(lines, lambda r: [f"answer{next(count)}"], monkeypatch, capsys)
    assert code == 0 and [f"answer{i}" in out for i in range(6)] == [True] * 5 + [False]
    assert "*  3 Good evening -> answer2" in out and "never read" not in out
    (imported,) = [c for c in terminal.store.conversations() if c.title == "Greetings"]
    turns = terminal.store.turns(imported.id)
    assert [t.text for t in turns] == ["Hello", "answer0", "answer1", "Good evening", "answer2", "More", "answer3"]
    assert turns[5].parent_id == turns[1].id and turns[3].parent_id is None
    assert terminal.persona == "fun" and "/regenerate" in out
    assert all(t.details["prompt_sha256"] for t in turns if t.role == "assistant")


@pytest.mark.parametrize("line", ["/nope", "/open 9", "/branches", "/export x.pdf", "/export /nowhere/at/all.md",
                                  "/edit", "/continue", "/regenerate", "/copy", "/persona nobody", "/tools rm",
                                  "/live maybe", "/import /nowhere", "/search", "/rename", "/delete", "/live on"])
def test_what_is_wrong_is_a_sentence(line: str, monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    out, _, code = talked([line], words("x"), monkeypatch, capsys)
    assert code == 1 and "Traceback" not in out and len(out.strip()) > 10


def test_calls_are_shown_and_nobody_is_there_to_allow_one(monkeypatch: pytest.MonkeyPatch,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    async def run(given: dict[str, Any], tag: str) -> str:
        raise AssertionError("it ran")

    calls = [ToolCall("1", "calculator", '{"expression": "6*7"}'), ToolCall("2", "open_page", "{}")]
    box = ToolBox([*local_tools(), Entry(Tool("open_page"), run, acts=True, reads=True)])
    out, terminal, _ = talked(["Go"], lambda r: ["It is so."] if r.messages[-1].role == "tool" else calls, monkeypatch,
                              capsys, box=box)
    assert "tool: calculator" in out and "\n42\n" in out and "refused" in out and out.count("It is so.") == 1
    assert not terminal.allowed


def test_a_live_answer_shows_where_it_was_read(monkeypatch: pytest.MonkeyPatch,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    live = FakeLive([excerpt(1, "Bern has 134,000 inhabitants.", "Bern")])
    says = words("Bern has 9,000 inhabitants [1]. It is old [4].")
    out, _, _ = talked(["How big is Bern?"], says, monkeypatch, capsys, live=live)
    assert "[1] Bern - https://example.org/1" in out and "not borne out" in out and "[4]" not in out
    assert live.asked == ["How big is Bern?"]
