"""The conversation in the terminal: its commands over a pipe, with a model that is a function."""

from __future__ import annotations

import asyncio
import io
import itertools
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pyte
import pytest
from fakes import FakeLive, FakeModel, Says, excerpt, words
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_toolkit.input import create_pipe_input
from rich.console import Console

from libremoe import cli
from libremoe.chat import keys
from libremoe.chat.events import Request
from libremoe.chat.folder import Belongings
from libremoe.chat.message import Tool, ToolCall
from libremoe.chat.persona import load_personas
from libremoe.chat.screen import Screen, harmless
from libremoe.chat.store import open_store
from libremoe.chat.terminal import Terminal
from libremoe.chat.tool_box import Entry, ToolBox, local_tools
from libremoe.live.values import Conflict, Fact, Findings, Opinion


def talked(lines: list[str], says: Says, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
           live: Any = None, box: ToolBox | None = None, n_experts: int = 0) -> tuple[str, Terminal, int]:
    """What the screen shows after these lines."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    own = Belongings(open_store(":memory:"), load_personas(), live, None)
    terminal = Terminal(own, FakeModel(says), "regular", "en", {}, live is not None, n_experts)  # type: ignore[arg-type]
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


def test_what_is_there_is_erased_and_written_over_by_intent_only(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """/delete N takes the one that /list shows, and a wrong N none at all; an export takes no other file's place."""
    theirs = tmp_path / "notes.md"
    theirs.write_text("mine")
    lines = ["One", "/new", "Two", "/delete 3", f"/export {theirs}", "/delete 2", "Still here"]
    out, terminal, _ = talked(lines, words("x"), monkeypatch, capsys)
    assert "/delete takes a number from 1 to 2" in out and "(erased: One)" in out
    (left,) = terminal.store.conversations()
    assert [t.text for t in terminal.store.turns(left.id)] == ["Two", "x", "Still here", "x"]
    assert theirs.read_text() == "mine" and "there is such a file already" in out


@pytest.mark.parametrize("line", ["/nope", "/open 9", "/branches", "/export x.pdf", "/export /nowhere/at/all.md",
                                  "/edit", "/continue", "/regenerate", "/copy", "/persona nobody", "/tools rm",
                                  "/live maybe", "/import", "/import /nowhere", "/search", "/rename", "/delete",
                                  "/delete 9", "/live on"])
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


class Disagreeing(FakeLive):
    async def gather(self, question: str, language: str = "en", deadline_s: float = 10.0, tag: str = "") -> Findings:
        return Findings(list(self.excerpts), [], True, [Fact("It is 900 m long.", (1, 2))],
                        [Opinion("It is too dear.", ("Ana", "Bob"), None, 2, (3,))],
                        [Conflict(((1, "40", "It cost 40 million."), (2, "60", "It cost 60 million.")))])


def test_facts_opinions_and_conflicts_stand_apart(monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    live = Disagreeing([excerpt(i, "The bridge is 900 m long.") for i in (1, 2, 3)])
    out, _, _ = talked(["And the bridge?"], words("It is 900 m long [1]."), monkeypatch, capsys, live=live)
    assert "agreed by independent sources [1, 2]: It is 900 m long.\n" in out
    assert "an opinion [3], of Ana, Bob: It is too dear.\n" in out
    assert "contradict each other: [1] 40: It cost 40 million.; [2] 60: It cost 60 million.\n" in out


def shown_on_a_terminal(pieces: Sequence[str], height: int = 24) -> str:
    """All that was written to it, without what was replaced: escape sequences are carried out."""
    made = io.StringIO()
    screen = Screen(Console(file=made, force_terminal=True, width=60, height=height, color_system=None))
    for piece in pieces:
        screen.add(piece)
    screen.end()
    stream = pyte.Stream(seen := pyte.Screen(60, 200))
    stream.feed(made.getvalue().replace("\n", "\r\n"))
    return "\n".join(line.rstrip() for line in seen.display).rstrip()


ANSWER = """# Ferries

They are **old**, and there are *three*:

- one
- two

```python
def f():

    return "```"
```

| a | b |
|---|---|
| 1 | 2 |

The end"""


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, len(ANSWER)), max_size=30))
def test_an_answer_looks_the_same_however_it_arrives(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(ANSWER)]
    arrived = [ANSWER[a:b] for a, b in itertools.pairwise(places)]
    assert shown_on_a_terminal(arrived) == shown_on_a_terminal([ANSWER])


def test_an_answer_is_rendered_and_nothing_is_lost() -> None:
    shown = shown_on_a_terminal(list(ANSWER))
    assert "**" not in shown and "|---" not in shown and "old" in shown and "The end" in shown
    assert "    return" in shown and " • one" in shown
    long = "\n".join(f"- entry {i}" for i in range(60))  # a block that is higher than the screen
    assert all(f"entry {i}" in shown_on_a_terminal(list(long), height=10) for i in range(60))


def test_what_a_terminal_obeys_is_taken_out() -> None:
    assert harmless("a\x1b]0;title\x07b\x9bc\u202ed\r\te\n") == "a]0;titlebcd\te\n"
    assert "\x1b]" not in shown_on_a_terminal(["\x1b]0;x\x07"])


@pytest.mark.parametrize("key", ["\x1b", "\x03"])
def test_a_key_stops_an_answer_and_keeps_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Belongings(open_store(":memory:"), load_personas(), None, None)
    terminal = Terminal(own, Slow(lambda r: ["word "] * 1000), "regular", "en", {}, False)  # type: ignore[arg-type]
    with create_pipe_input() as pipe:
        monkeypatch.setattr(keys, "create_input", lambda: pipe)
        terminal.interactive = True

        async def work() -> None:
            asyncio.get_running_loop().call_later(0.3, pipe.send_text, key)
            await terminal.send("Go on for ever")

        asyncio.run(asyncio.wait_for(work(), 30))
    assert terminal.conversation is not None
    last = terminal.store.path(terminal.conversation.id)[-1]
    assert last.state == "stopped" and last.details["finish_reason"] == "stopped"
    assert last.text.startswith("word ") and len(last.text) < 5000


class Slow(FakeModel):
    async def stream(self, request: Request) -> AsyncGenerator[Any]:
        async with aclosing(super().stream(request)) as events:
            async for event in events:
                await asyncio.sleep(0.01)
                yield event


def test_the_atlas(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out, _, code = talked(["/atlas"], words("x"), monkeypatch, capsys)
    assert code == 1 and "no answer" in out
    out, terminal, code = talked(["Go", "/atlas"], words("one two three four"), monkeypatch, capsys, n_experts=8)
    assert code == 0 and "experts of the last answer" in out
    counts = terminal.path()[-1].details["atlas"]
    assert len(counts) == 1 and sum(counts[0]) == 8 and counts[0][7] == 4  # a fake's: one layer, expert 7 always
    assert "50 █" in out


def test_what_keeps_it_from_starting_is_said_in_french_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for language, said in (("fr", "ce fichier ou ce dossier n’existe pas"), ("en", "no such file or folder")):
        assert cli.main(["chat", str(tmp_path / "none"), "--lang", language, "--ephemeral"]) == 2
        assert said in capsys.readouterr().err
