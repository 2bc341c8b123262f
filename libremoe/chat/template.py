"""A conversation as the token ids that a model continues.

Two ways. A base model (Grok-1 as released is one) gets a transcript: who is speaking, a few example turns, the
conversation, and "Assistant:". A model that brings a chat template gets its own, rendered in a limited process
(template_worker.py). In both, what people wrote is plain text: control pieces spelled in it never become control ids.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from libremoe.chat.message import Message, Text, Tool, ToolCall, ToolChoice, ToolResult, said
from libremoe.chat.tools import call_text, describe, instructions
from libremoe.errors import CheckpointError, LibremoeError
from libremoe.tokenizer import Tokenizer

LABELS = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
STOPS = ("\nUser:", "\nSystem:", "\nTool:", "\nAssistant:")
INTRODUCTION = (
    "This is a conversation between a User and an Assistant. The Assistant answers in a helpful, truthful and "
    "concise way, and says so when it does not know."
)
EXAMPLES = (
    said("user", "How many legs do two spiders have?"),
    said("assistant", "Sixteen: a spider has eight legs, and 2 x 8 = 16."),
    said("user", "Make this sentence polite: Give me the report."),
    said("assistant", "Could you please give me the report when you have a moment?"),
    said("user", "What did I have for breakfast?"),
    said("assistant", "I cannot know that: you have not told me."),
)
RENDER_TIMEOUT_S = 5.0  # the first request also waits for the process to start
MAX_LINE_BYTES = 128 << 20  # a rendered conversation as JSON; the worker bounds the text itself
MAX_TEMPLATE_BYTES = 1 << 20
_LABEL_LINE = re.compile(r"^(?=(?:User|Assistant|System|Tool):)", re.MULTILINE)


@dataclass(frozen=True)
class Prompt:
    """What the engine is given, and how to read the answer."""

    ids: list[int]
    stop: tuple[str, ...]  # stop strings of the template, beside those of the request
    template: Literal["transcript", "model"]  # said in every reply


def transcript(messages: Sequence[Message], tools: Sequence[Tool] = (), choice: ToolChoice | None = None,
               examples: Sequence[Message] = EXAMPLES) -> str:
    """The text that a base model continues with the assistant's answer.

    A line of a message that begins like a speaker's label is indented by a space, so that nobody can speak for another.
    """
    system = [m.text for m in messages if m.role == "system"]
    known = instructions(tools, choice or ToolChoice())
    head = "\n\n".join([INTRODUCTION, *system, *([known] if known else [])])
    turns = [*examples, *(m for m in messages if m.role != "system")]
    blocks = [_LABEL_LINE.sub(" ", head)]
    blocks += [f"{LABELS[turn.role]}: {_LABEL_LINE.sub(' ', _turn_text(turn))}" for turn in turns]
    return "\n\n".join(blocks) + "\n\nAssistant:"


def _turn_text(turn: Message) -> str:
    return "\n".join(call_text(p) if isinstance(p, ToolCall) else p.text for p in turn.parts).strip()


def transcript_prompt(messages: Sequence[Message], tokenizer: Tokenizer, *, bos_id: int | None, context_len: int,
                      tools: Sequence[Tool] = (), choice: ToolChoice | None = None, prefix: str = "") -> Prompt:
    """bos_id: put in front where the model expects it (the Llama family does, Grok-1 does not). prefix: the beginning
    of the answer, which is to be continued.

    The example turns are left out where the transcript would take more than half of the context.
    """
    begun = " " + _LABEL_LINE.sub(" ", prefix.lstrip()) if prefix.strip() else ""
    ids = tokenizer.encode_untrusted(transcript(messages, tools, choice) + begun)
    if len(ids) > context_len // 2:
        ids = tokenizer.encode_untrusted(transcript(messages, tools, choice, examples=()) + begun)
    return Prompt(ids if bos_id is None else [bos_id, *ids], STOPS, "transcript")


class Trim:
    """Takes the white space around a streamed answer away: in a transcript it is the transcript's, not the answer's."""

    def __init__(self, *, started: bool = False):
        """started: the beginning of the answer is in the prompt, so white space that follows it belongs to it."""
        self.started = started
        self.space = ""  # at the end of what came so far, and dropped if nothing follows

    def push(self, text: str) -> str:
        if not self.started:
            text = text.lstrip()
            self.started = bool(text)
        text = self.space + text
        kept = text.rstrip()
        self.space = text[len(kept) :]
        return kept


def find_template(folder: Path) -> str | None:
    """The chat template beside a model: chat_template.jinja, or tokenizer_config.json's chat_template, as text.

    Raises CheckpointError where the file is damaged or too large.
    """
    jinja, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if jinja.is_file():
        return read_template(jinja)
    if not config.is_file():
        return None
    try:
        found = json.loads(read_template(config)).get("chat_template")
        if isinstance(found, list):  # several, by name
            found = {entry["name"]: entry["template"] for entry in found}.get("default")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(config, f"is no tokenizer_config.json: {error}") from error
    return found if isinstance(found, str) else None


def read_template(path: Path) -> str:
    """The text of a template file. Raises CheckpointError where it is too long or no text."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEMPLATE_BYTES + 1)
    except OSError as error:
        raise CheckpointError(path, error.strerror or str(error)) from error
    if len(content) > MAX_TEMPLATE_BYTES:
        raise CheckpointError(path, f"is longer than {MAX_TEMPLATE_BYTES} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(path, "is not UTF-8") from error


class ModelTemplate:
    """A model's own chat template. One process renders for all requests; it is started when needed and killed when
    late."""

    def __init__(self, template: str, tokenizer: Tokenizer):
        self.template = template
        self.tokenizer = tokenizer
        self.specials = special_pieces(tokenizer)
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = (),
                     choice: ToolChoice | None = None, prefix: str = "") -> Prompt:
        """prefix: the beginning of the answer, which is to be continued.

        Raises LibremoeError where the template refuses the conversation, or takes too long."""
        marks = _Marks()
        values = {
            "messages": [_template_message(m, marks) for m in messages],
            "tools": [describe(t) for t in tools] if tools and (choice is None or choice.mode != "none") else None,
            "add_generation_prompt": True,
            "bos_token": self._piece(self.tokenizer.bos_id),
            "eos_token": self._piece(self.tokenizer.eos_id),
        }
        text = await self._render(values) + (marks.hide(prefix, stripped=prefix) if prefix.strip() else "")
        ids = await asyncio.to_thread(encode_marked, text, marks, self.tokenizer, self.specials)
        return Prompt(ids, (), "model")

    def _piece(self, token: int | None) -> str:
        return self.tokenizer.piece(token) if token is not None else ""

    async def _render(self, values: dict[str, Any]) -> str:
        line = json.dumps({"template": self.template, "values": values}).encode() + b"\n"
        async with self._lock:
            try:
                async with asyncio.timeout(RENDER_TIMEOUT_S):
                    reply = json.loads(await self._ask(line))
            except (TimeoutError, OSError, ValueError) as error:
                await self._kill()
                raise LibremoeError(f"the model's chat template could not be rendered within {RENDER_TIMEOUT_S:g} s "
                                    "and its memory limit") from error
            except asyncio.CancelledError:
                await self._kill()  # its answer would be taken for the next one's
                raise
        if "error" in reply:
            raise LibremoeError(f"the model's chat template refuses this conversation: {reply['error']}")
        return reply["text"]

    async def _ask(self, line: bytes) -> bytes:
        if self._process is None:
            worker = str(Path(__file__).with_name("template_worker.py"))
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", worker, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL, limit=MAX_LINE_BYTES, env={},
            )
        process = self._process
        if process.stdin is None or process.stdout is None:
            raise OSError("the template process has no pipes")
        process.stdin.write(line)
        await process.stdin.drain()
        return await process.stdout.readline()

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

    async def close(self) -> None:
        await self._kill()


class _Marks:
    """Stands in for people's texts while a template is rendered, so that they can be told from the template's own
    text."""

    def __init__(self) -> None:
        self.nonce = secrets.token_hex(8)
        self.texts: list[str] = []

    def hide(self, text: str, stripped: str | None = None) -> str:
        """stripped: the text without the white space that a template would take away."""
        if not text.strip():
            return text
        self.texts.append(text.strip() if stripped is None else stripped)  # templates cannot strip a mark
        return f"\ue000{self.nonce}:{len(self.texts) - 1}\ue001"

    def split(self, rendered: str) -> list[tuple[str, bool]]:
        """Pieces of the rendered text: (text, whether people wrote it)."""
        parts = re.split(f"\ue000{self.nonce}:([0-9]+)\ue001", rendered)
        return [(self.texts[int(p)], True) if i % 2 else (p, False) for i, p in enumerate(parts)]


def _template_message(message: Message, marks: _Marks) -> dict[str, Any]:
    text = "\n".join(p.text for p in message.parts if isinstance(p, Text | ToolResult))
    out: dict[str, Any] = {"role": message.role, "content": marks.hide(text)}
    if message.tool_calls:
        out["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": _arguments(c, marks)}}
            for c in message.tool_calls
        ]
    results = [p for p in message.parts if isinstance(p, ToolResult)]
    if results:
        out["tool_call_id"] = results[0].call_id
    return out


def _arguments(call: ToolCall, marks: _Marks) -> Any:
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        return marks.hide(call.arguments)
    if isinstance(arguments, dict):
        return {k: marks.hide(v) if isinstance(v, str) else v for k, v in arguments.items()}
    return arguments


def special_pieces(tokenizer: Tokenizer) -> dict[str, int]:
    """Spelling of each control piece -> its id."""
    ids = (i for i in range(tokenizer.vocab_size) if tokenizer.is_special(i))
    return {tokenizer.piece(i): i for i in ids if len(tokenizer.piece(i)) > 1}


def encode_marked(rendered: str, marks: _Marks, tokenizer: Tokenizer, specials: dict[str, int]) -> list[int]:
    """Ids of a rendered conversation: control pieces in the template's own text become their ids, people's never.

    Between two control pieces, text is encoded in one go, as the model was trained on it.
    """
    ids: list[int] = []
    run = ""
    cut = (
        re.compile("(" + "|".join(map(re.escape, sorted(specials, key=len, reverse=True))) + ")") if specials else None
    )
    for text, by_people in marks.split(rendered):
        if by_people or cut is None:
            run += text
            continue
        for piece in cut.split(text):
            if piece in specials:
                ids += _encode_run(run, tokenizer, after_special=bool(ids))
                ids.append(specials[piece])
                run = ""
            else:
                run += piece
    return ids + _encode_run(run, tokenizer, after_special=bool(ids))


def _encode_run(text: str, tokenizer: Tokenizer, *, after_special: bool) -> list[int]:
    # SentencePiece puts a space in front of a text; after a control piece the template's own space is that one.
    if after_special and text.startswith(" ") and adds_space(tokenizer):
        text = text[1:]
    return tokenizer.encode_untrusted(text) if text else []


def adds_space(tokenizer: Tokenizer) -> bool:
    """Whether encoding puts a space in front of a text (SentencePiece's dummy prefix)."""
    ids = tokenizer.encode_untrusted("a")
    return b"".join(tokenizer.token_bytes(i) or b"" for i in ids).startswith(b" ")
