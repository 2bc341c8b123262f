"""Help with code, for a command and for editors: complete, explain, write tests, propose a patch as a unified diff.

A model that is asked for a diff miscounts its lines. It is asked for the changed text instead, and the diff is made
here from both texts, so that it applies whatever the model wrote.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from libremoe.chat.events import Ended, Request, TextDelta
from libremoe.chat.message import Message, said
from libremoe.chat.persona import Persona, system_prompt
from libremoe.chat.session import ChatModel, takes_system
from libremoe.errors import LibremoeError

Task = Literal["complete", "explain", "tests", "patch"]
MAX_PATH = 512
CONTEXT_LINES = 3
_FENCED = re.compile(r"^(`{3,})[^\n`]*\n(.*?)(?:^\1`*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
LANGUAGES = {"py": "python", "js": "javascript", "ts": "typescript", "rs": "rust", "go": "go", "c": "c", "h": "c",
             "cpp": "cpp", "cc": "cpp", "hpp": "cpp", "java": "java", "rb": "ruby", "sh": "bash", "sql": "sql",
             "html": "html", "css": "css", "toml": "toml", "json": "json", "yaml": "yaml", "yml": "yaml",
             "md": "markdown"}


@dataclass(frozen=True)
class Asked:
    """What is wanted of which code. path: what the file is called, for the language and the diff's header.

    suffix: what follows the place where the code is to be completed."""

    task: Task
    code: str
    path: str = ""
    language: str = ""
    instruction: str = ""
    suffix: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """The result: text of complete, explain and tests; diff of patch, empty where nothing was changed."""

    text: str = ""
    diff: str = ""
    stats: Mapping[str, Any] = field(default_factory=dict)


async def help_with(asked: Asked, persona: Persona, model: ChatModel) -> AsyncGenerator[TextDelta | Done]:
    """What the model writes, as it comes, and Done last. Raises LibremoeError: wrong fields, or it does not fit."""
    request = _request(asked, persona)
    if not await takes_system(model):
        request = replace(request, messages=[m for m in request.messages if m.role != "system"])
    if await model.count(request) >= model.context_len:
        raise LibremoeError(f"the code is too long for this model's context of {model.context_len} tokens")
    text = ""
    stats: Mapping[str, Any] = {}
    async with aclosing(model.stream(request)) as stream:
        async for event in stream:
            if isinstance(event, TextDelta):
                text += event.text
                yield event
            elif isinstance(event, Ended):
                stats = event.stats
    if asked.task == "patch":
        yield Done(diff=unified_diff(asked.code, changed(asked.code, text), asked.path or "code"), stats=stats)
    elif asked.task == "tests":
        yield Done(text=first_block(text) or text, stats=stats)
    else:
        yield Done(text=text, stats=stats)


def _request(asked: Asked, persona: Persona) -> Request:
    """Raises LibremoeError naming the field that is wrong."""
    if not asked.code.strip() and not asked.instruction.strip():
        raise LibremoeError("code is empty, and there is no instruction: give one of them")
    if asked.task in ("tests", "explain", "patch") and not asked.code.strip():
        raise LibremoeError(f"code is empty: {asked.task} needs some")
    if asked.task == "patch" and not asked.instruction.strip():
        raise LibremoeError("instruction is empty: say what the patch is to change")
    if re.search(r"[\x00-\x1f\x7f]", asked.path) or len(asked.path) > MAX_PATH:
        raise LibremoeError(f"path must be at most {MAX_PATH} characters, none of them a control character")
    language = asked.language or LANGUAGES.get(asked.path.rpartition(".")[2].lower(), "")
    system = said("system", system_prompt(persona, "en").text)
    sampling = {**persona.sampling, **asked.sampling}
    named = f" of {asked.path}" if asked.path else ""
    fence = fence_for(asked.code + asked.suffix)
    shown = f"{fence}{language}\n{asked.code.removesuffix(chr(10))}\n{fence}"
    if asked.task == "complete":
        after = f"\nIt is followed by:\n{fence}{language}\n{asked.suffix}\n{fence}" if asked.suffix.strip() else ""
        wanted = f"Write the code{named}. {asked.instruction}".strip() + after
        return Request([system, said("user", wanted)], sampling={**sampling, "stop": (f"\n{fence}",)},
                       prefix=f"{fence}{language}\n{asked.code}")
    wanted = {
        "explain": f"Explain this code{named}. {asked.instruction}",
        "tests": f"Write tests for this code{named}, in one block of code. {asked.instruction}",
        "patch": f"Change this code{named}, and answer with all of it, changed, in one block. {asked.instruction}",
    }[asked.task]
    messages: list[Message] = [system, said("user", f"{wanted.strip()}\n\n{shown}")]
    return Request(messages, sampling=sampling)


def fence_for(text: str) -> str:
    """A fence that does not occur in the text."""
    return "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))


def first_block(answer: str) -> str:
    """The first fenced block, without its fences; "" where there is none. One that was cut off counts."""
    found = _FENCED.search(answer)
    return found[2] if found else ""


def changed(code: str, answer: str) -> str:
    """The code that the answer proposes, with the line ends of the code that was given; the code itself where the
    answer has none."""
    block = first_block(answer)
    if not block.strip():
        return code
    new = block.replace("\r\n", "\n").removesuffix("\n")
    new += "\n" if code.endswith("\n") or not code else ""
    return new.replace("\n", "\r\n") if "\r\n" in code and "\n" not in code.replace("\r\n", "") else new


def unified_diff(old: str, new: str, path: str) -> str:
    """As git writes it, so that `git apply` and `patch -p1` take it; "" where nothing differs."""
    if old == new:
        return ""
    old_lines, new_lines = _lines(old), _lines(new)
    lines = difflib.unified_diff(old_lines, new_lines, f"a/{path}", f"b/{path}", n=CONTEXT_LINES)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _lines(text: str) -> list[str]:
    """Ended by line feeds and by nothing else: str.splitlines knows more ends than git does."""
    parts = text.split("\n")
    return [part + "\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])
