"""French is whole: what the terminal says and what its commands and the page's routes refuse is in one table."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from libremoe.chat.commands import COMMANDS
from libremoe.chat.persona import load_personas, policy
from libremoe.chat.tool_box import ToolBox, local_tools, python_tool
from libremoe.french import table, told, translated

PACKAGE = Path(__file__).parent.parent / "libremoe"
SAID = {"tell", "told"}
REFUSING = {"LibremoeError", "ApiError", "NotFound", "NotSaved", "Refused", "Closing", "invalid", "_refuse"}
REFUSE = ("chat/commands.py", "chat/session.py", "chat/store.py", "chat/conversation.py", "chat/databases.py",
          "chat/folder.py", "chat/local_model.py", "chat/terminal.py", "chat/template.py", "chat/mcp_tools.py",
          "chat/persona.py", "chat/code.py", "chat/code_command.py", "chat/importing.py", "chat/keys.py",
          "live/addresses.py", "live/command.py", "live/fetch.py", "live/ledger.py", "live/live.py", "live/parsing.py",
          "live/sources.py", "server/answers.py", "server/app.py", "server/chat_api.py", "server/chat_more.py",
          "server/chat_state.py", "server/limits.py", "server/body.py", "server/service.py", "server/sse.py")


def sentence(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return None
    names = iter("abcdefgh")
    return "".join(str(part.value) if isinstance(part, ast.Constant) else f"{{{next(names)}}}" for part in node.values)


def sentences(names: set[str], file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            asked = node.args[1:] if called == "ApiError" else node.args  # its status comes first
            if called in names and asked and (text := sentence(asked[0])) is not None:
                yield text


def sentences_of_databases() -> Iterator[str]:
    """What a failure of the database becomes is returned, and raised elsewhere."""
    for node in ast.walk(ast.parse((PACKAGE / "chat/databases.py").read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == "_sentence":
            for last in ast.walk(node):
                if isinstance(last, ast.Return) and last.value and (text := sentence(last.value)) is not None:
                    yield text


def sentences_of_notes() -> set[str]:
    return {version.note for persona in load_personas().values() for version in (*persona.versions, *policy())}


def test_every_sentence_is_in_the_table() -> None:
    said = {text for name in ("terminal", "commands", "screen") for text in sentences(
        SAID, PACKAGE / f"chat/{name}.py")}
    refused = {text for name in REFUSE for text in sentences(REFUSING, PACKAGE / name)}
    refused |= set(sentences_of_databases())
    refused |= set(sentences({"ValueError"}, PACKAGE / "live/shapes.py"))  # they come out of the reader as Refused
    refused |= {text for text in sentences(REFUSING, PACKAGE / "chat/tool_box.py") if "sandbox" in text}
    said |= {str(one["description"]) for one in ToolBox([*local_tools(), python_tool()]).described()}
    said |= sentences_of_notes() | set(sentences(SAID, PACKAGE / "server/chat_more.py"))
    helps = {command.__doc__ or "" for command in COMMANDS.values()}
    # a file name and what the system says of it; a field and what is wrong with it: no words of ours
    assert (said | refused | helps) - set(table()) <= {"{a}: {b}", ""}
    assert len(said) > 20 and len(refused) > 40


def test_the_terminal_says_nothing_but_by_the_table() -> None:
    for name in ("terminal", "commands"):
        for text in sentences({"say"}, PACKAGE / f"chat/{name}.py"):
            assert not re.search(r"[a-z]{2}", re.sub(r"{\w}", "", text)), text


def test_typography_and_values() -> None:
    for english, french in table().items():
        assert sorted(re.findall(r"{\w+}", english)) == sorted(re.findall(r"{\w+}", french)), english
        assert not re.search(r"[ \u00a0][;!?»]|«[ \u00a0]| :|\w[;!?»]|[a-zé]:(?![\w/])", french.replace(
            "Authorization:", "").replace("Content-Type:", "")), french


@pytest.mark.parametrize(("english", "french"), [
    ("there is nothing to answer yet", "il n’y a encore rien à quoi répondre"),
    ("there is no persona 'x{b}'; there are a, b", "il n’y a pas de personnage 'x{b}'\u202f; il y a a, b"),
    ("this answer failed: the server is shutting down", "cette réponse a échoué\u00a0: le serveur s’arrête"),
    ("of no table", "of no table")])
def test_errors_are_put_into_french(english: str, french: str) -> None:
    assert translated(english, "fr") == french and translated(english, "en") == english


def test_values_are_not_filled_in_twice() -> None:
    assert told("searching: {query}", "en", query="{query} {n}") == "searching: {query} {n}"
