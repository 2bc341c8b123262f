"""What can be typed with a slash in the terminal's conversation."""

from __future__ import annotations

import base64
import os
import re
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from libremoe.chat.conversation import Conversation, Turn
from libremoe.chat.message import Text
from libremoe.errors import LibremoeError
from libremoe.french import told, translated

if TYPE_CHECKING:
    from libremoe.chat.terminal import Terminal

LISTED = 20  # conversations, hits
_FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


async def obey(terminal: Terminal, line: str) -> bool:
    """Do what a line that begins with a slash says; False where it says to leave. Raises LibremoeError."""
    name, _, rest = line[1:].partition(" ")
    if name in ("quit", "exit"):
        return False
    command = COMMANDS.get(name)
    if command is None:
        raise LibremoeError(f"there is no /{name}; /help lists what there is")
    await command(terminal, rest.strip())
    return True


async def _help(terminal: Terminal, rest: str) -> None:
    """what can be typed"""
    for name, command in COMMANDS.items():
        terminal.say(f"/{name:<11} {told(command.__doc__ or '', terminal.language)}")
    terminal.tell("/quit        leave (also Ctrl-D). Esc or Ctrl-C stops an answer.")


async def _new(terminal: Terminal, rest: str) -> None:
    """begin a new conversation"""
    terminal.conversation = None
    terminal.allowed.clear()
    terminal.tell("(a new conversation)")


async def _list(terminal: Terminal, rest: str) -> None:
    """the last conversations; /open N goes on with one"""
    for i, one in enumerate(terminal.store.conversations(LISTED), 1):
        terminal.say(f"{i:3} {one.title or told('(no title)', terminal.language)}")


async def _open(terminal: Terminal, rest: str) -> None:
    """N: go on with conversation N of /list"""
    terminal.conversation = conversation = _listed(terminal, "open", rest)
    terminal.allowed.clear()
    if conversation.persona in terminal.own.personas:
        terminal.persona = conversation.persona
    for turn in terminal.path():
        terminal.show_turn(turn)


def _listed(terminal: Terminal, command: str, number: str) -> Conversation:
    """The conversation that /list shows with this number."""
    found = terminal.store.conversations(LISTED)
    if not number.isdecimal() or not 1 <= int(number) <= len(found):
        raise LibremoeError(f"/{command} takes a number from 1 to {len(found)}, as /list shows them")
    return found[int(number) - 1]


async def _regenerate(terminal: Terminal, rest: str) -> None:
    """another answer to the last message"""
    asked = next((t for t in reversed(terminal.path()) if t.role == "user"), None)
    if asked is None:
        raise LibremoeError("there is nothing to answer yet")
    await terminal.answer(asked)


async def _edit(terminal: Terminal, rest: str) -> None:
    """[TEXT]: say the last message otherwise; the first wording stays as a branch"""
    asked = next((t for t in reversed(terminal.path()) if t.role == "user"), None)
    if asked is None:
        raise LibremoeError("there is no message to edit yet")
    text = rest or await terminal.edited(asked.text)
    if text and (rest or text != asked.text):
        await terminal.send(text, asked.parent_id, edit=True)


async def _branches(terminal: Terminal, rest: str) -> None:
    """[N]: the branches of this conversation, or go to branch N"""
    conversation = _current(terminal)
    turns = terminal.store.turns(conversation.id)
    parents = {turn.parent_id for turn in turns}
    leaves = [turn for turn in turns if turn.id not in parents]
    if rest:
        if not rest.isdecimal() or not 1 <= int(rest) <= len(leaves):
            raise LibremoeError(f"/branches takes a number from 1 to {len(leaves)}")
        terminal.store.select(conversation.id, leaves[int(rest) - 1].id)
        for turn in terminal.path():
            terminal.show_turn(turn)
        return
    selected = terminal.path()[-1].id
    for i, leaf in enumerate(leaves, 1):
        path = terminal.store.path(conversation.id, leaf.id)
        asked = next((t.text for t in reversed(path) if t.role == "user"), "")
        mark = "*" if leaf.id == selected else " "
        terminal.say(f"{mark}{i:3} {' '.join(asked.split())[:40]} -> {' '.join(_words(leaf).split())[:40]}")


async def _continue(terminal: Terminal, rest: str) -> None:
    """go on with an answer that was stopped or cut"""
    path = terminal.path()
    if len(path) < 2 or path[-1].role != "assistant":
        raise LibremoeError("there is no answer to go on with")
    await terminal.answer(path[-2], path[-1])


async def _atlas(terminal: Terminal, rest: str) -> None:
    """which experts wrote the last answer"""
    from libremoe.chat.screen import atlas_table

    counts = next((t.details["atlas"] for t in reversed(terminal.path()) if "atlas" in t.details), None)
    if counts is None:
        raise LibremoeError("there is no answer of a model with experts yet")
    terminal.console.print(atlas_table(counts, terminal.language), soft_wrap=False)


async def _search(terminal: Terminal, rest: str) -> None:
    """WORDS: where they were said, in all conversations"""
    if not rest:
        raise LibremoeError("/search takes the words to look for")
    hits = terminal.store.search(rest, LISTED)
    order = [one.id for one in terminal.store.conversations(LISTED)]
    for hit in hits:
        place = order.index(hit.conversation_id) + 1 if hit.conversation_id in order else "-"
        terminal.say(f"{place:>3} {hit.title}: {' '.join(hit.snippet.split())}")
    if not hits:
        terminal.tell("(nowhere)")


async def _export(terminal: Terminal, rest: str) -> None:
    """FILE: write this conversation as .md, .json or .html"""
    from libremoe.chat.export import to_html, to_json, to_markdown

    conversation, path = _current(terminal), Path(rest).expanduser()
    write = {".md": to_markdown, ".json": to_json, ".html": to_html}.get(path.suffix.lower())
    if not rest or write is None:
        raise LibremoeError("/export takes a file whose name ends with .md, .json or .html")
    if path.exists():
        raise LibremoeError(f"{path}: there is such a file already; choose another name, or remove it first")
    _write_whole(path, write(conversation, terminal.store.turns(conversation.id)))
    terminal.tell("written: {path}", path=path)


def _write_whole(path: Path, text: str) -> None:
    """The file has all of it or is not there. Raises LibremoeError."""
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    except OSError as error:
        raise LibremoeError(f"{path}: {error.strerror or error}") from error


async def _import(terminal: Terminal, rest: str) -> None:
    """FILE: take in conversations of an exported file (ours, ChatGPT's, Open WebUI's)"""
    from libremoe.chat.importing import read_export

    if not rest:
        raise LibremoeError("/import takes a file: ours (.json), or an export of ChatGPT or Open WebUI")
    try:
        content = Path(rest).expanduser().read_bytes()
    except OSError as error:
        raise LibremoeError(f"{rest}: {error.strerror or error}") from error
    found = read_export(content)
    for conversation, turns in found:
        terminal.store.insert(conversation, turns)
    terminal.tell("conversations taken in: {n}", n=len(found))


async def _persona(terminal: Terminal, rest: str) -> None:
    """[NAME]: the personas, or speak with another one"""
    if rest and rest not in terminal.own.personas:
        raise LibremoeError(f"there is no persona {rest!r}; there are {', '.join(terminal.own.personas)}")
    if rest:
        terminal.persona = rest
        if terminal.conversation is not None:
            terminal.store.set_persona(terminal.conversation.id, rest)
    for name, one in terminal.own.personas.items():
        text = one.description.get(terminal.language) or one.description.get("en", "")
        terminal.say(f"{'*' if name == terminal.persona else ' '} {name:<10} {text}")


async def _live(terminal: Terminal, rest: str) -> None:
    """on | off: whether answers are written from the sources that were added"""
    if rest not in ("", "on", "off"):
        raise LibremoeError("/live takes on or off")
    if rest == "on" and terminal.own.live is None:
        raise LibremoeError("live answers need the extra live: pip install 'libremoe[live]'")
    if rest:
        terminal.live = rest == "on"
        if terminal.own.live is not None:
            terminal.own.live.offline = not terminal.live
    if terminal.live:
        terminal.tell("live is on: questions are sent to the sources")
    else:
        terminal.tell("live is off: nothing leaves")


async def _tools(terminal: Terminal, rest: str) -> None:
    """on | off | NAMES: which tools may be called"""
    known = terminal.tools.names()
    if rest:
        chosen = known if rest == "on" else [] if rest == "off" else rest.replace(",", " ").split()
        if unknown := [name for name in chosen if name not in known]:
            raise LibremoeError(f"there is no tool {unknown[0]!r}; there are {', '.join(known)}")
        terminal.chosen_tools = chosen
    for one in terminal.tools.described():
        asks = told("asks first", terminal.language) if one["acts"] else ""
        mark = "*" if one["name"] in terminal.chosen_tools else " "
        does = translated(one["description"], terminal.language)
        terminal.say(f"{mark} {one['name']:<14} {does} {asks}".rstrip())


async def _copy(terminal: Terminal, rest: str) -> None:
    """[code]: put the last answer, or its last code, on the clipboard"""
    answer = next((t for t in reversed(terminal.path()) if t.role == "assistant"), None)
    if answer is None:
        raise LibremoeError("there is no answer to copy yet")
    text = _words(answer)
    if rest == "code":
        blocks = _FENCE.findall(text)
        if not blocks:
            raise LibremoeError("the last answer has no code")
        text = blocks[-1]
    # OSC 52: the terminal itself takes it (https://invisible-island.net/xterm/ctlseqs/ctlseqs.html)
    if terminal.interactive:
        terminal.console.file.write(f"\033]52;c;{base64.b64encode(text.encode()).decode()}\a")
        terminal.console.file.flush()
    terminal.tell("copied: {n} characters (where the terminal allows it)", n=len(text))


async def _rename(terminal: Terminal, rest: str) -> None:
    """TITLE: give this conversation another title"""
    if not rest:
        raise LibremoeError("/rename takes a title")
    terminal.conversation = terminal.store.rename(_current(terminal).id, rest)


async def _delete(terminal: Terminal, rest: str) -> None:
    """[N]: erase this conversation, or conversation N of /list: no byte of it stays"""
    chosen = _listed(terminal, "delete", rest) if rest else _current(terminal)
    terminal.store.delete(chosen.id)
    if terminal.own.live is not None:
        terminal.own.live.forget(chosen.id)
    if terminal.conversation is not None and terminal.conversation.id == chosen.id:
        terminal.conversation = None
    terminal.tell("(erased: {title})", title=chosen.title or told("(no title)", terminal.language))


def _current(terminal: Terminal) -> Conversation:
    if terminal.conversation is None:
        raise LibremoeError("there is no conversation yet: say something, or /open one")
    return terminal.conversation


def _words(turn: Turn) -> str:
    return "".join(part.text for part in turn.parts if isinstance(part, Text))


COMMANDS: dict[str, Callable[[Terminal, str], Awaitable[None]]] = {
    "help": _help, "new": _new, "list": _list, "open": _open, "search": _search, "regenerate": _regenerate,
    "edit": _edit, "branches": _branches, "continue": _continue, "persona": _persona, "live": _live, "tools": _tools,
    "atlas": _atlas, "copy": _copy, "rename": _rename, "export": _export, "import": _import, "delete": _delete,
}
