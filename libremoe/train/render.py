"""A document as token ids and targets.

Text ends with [EOS]. A conversation is written as chat_template.jinja beside this file writes it when the model is
served; here it is done without Jinja, a few hundred times faster, and tests/test_train_data.py joins the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libremoe.chat.message import Message, Tool, ToolCall
from libremoe.errors import LibremoeError
from libremoe.tokenizer import Tokenizer

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
TOOLS = "<|control5|>"
TURNS = {"user": "<|control2|>", "assistant": "<|control3|>", "tool": "<|control4|>"}


@dataclass(frozen=True)
class Document:
    """Plain text, or a conversation with the tools that it may use. ends: whether text ends here, or is continued in
    the next document (a chapter is cut into pieces)."""

    text: str = ""
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    ends: bool = True

    def all_text(self) -> str:
        """All that was written by anyone, one paragraph each: for counting, and for looking for evaluation items."""
        return self.text or "\n".join(_turn_text(m) for m in self.messages)


@dataclass(frozen=True)
class Rendered:
    """ids: T tokens. targets: T flags, whether the token is to be learned where only answers are."""

    ids: list[int]
    targets: list[bool]


class Renderer:
    """Renders for one tokenizer. Raises LibremoeError where it lacks the official control pieces."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        known = {tokenizer.piece(i): i for i in range(min(tokenizer.vocab_size, 1024)) if tokenizer.is_special(i)}
        missing = [piece for piece in (TOOLS, *TURNS.values()) if piece not in known]
        if missing or tokenizer.eos_id is None:
            raise LibremoeError(f"the tokenizer lacks {', '.join(missing) or 'an end piece'}: train it with "
                                "`libremoe train tokenizer`, which keeps the official special ids")
        self.eos_id: int = tokenizer.eos_id
        self.controls = {role: known[piece] for role, piece in TURNS.items()} | {"tools": known[TOOLS]}

    def render(self, document: Document) -> Rendered:
        """The whole document. Text: every token but the first is a target. Conversation: the answers and their end."""
        if not document.messages:
            ids = self.tokenizer.encode_untrusted(document.text) + [self.eos_id] * document.ends
            return Rendered(ids, [i > 0 for i in range(len(ids))])
        return self._conversation(document.messages, document.tools)

    def _conversation(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Rendered:
        ids: list[int] = []
        targets: list[bool] = []
        for kind, text in _runs(messages, tools):
            answer = kind == "assistant"
            part = self.tokenizer.encode_untrusted(text) if text else []
            part += [self.eos_id] * answer
            ids += [self.controls[kind], *part]
            targets += [False, *([answer] * len(part))]
        return Rendered(ids, targets)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """The ids that the model continues with an answer."""
        return [*self._conversation(messages, tools).ids, self.controls["assistant"]]

    def cut(self, rendered: Rendered, max_tokens: int) -> Rendered | None:
        """The turns that fit, ended by an answer; None where not even the first answer does."""
        if len(rendered.ids) <= max_tokens:
            return rendered
        ends = [i for i in range(max_tokens) if rendered.ids[i] == self.eos_id]
        return Rendered(rendered.ids[: ends[-1] + 1], rendered.targets[: ends[-1] + 1]) if ends else None


def _runs(messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[tuple[str, str]]:
    if tools:
        yield "tools", "\n".join(_tool_line(tool) for tool in tools)
    for message in messages:
        if message.role != "system":  # left out, as the template does
            yield message.role, _turn_text(message)


def _turn_text(message: Message) -> str:
    parts = [message.text.strip()] if message.text.strip() else []
    return "\n".join([*parts, *(_call_line(call) for call in message.tool_calls)])


def _tool_line(tool: Tool) -> str:
    names = ", ".join(tool.parameters.get("properties", {}))
    return f"{_plain(tool.name)}({_plain(names)}){': ' + _plain(tool.description) if tool.description else ''}"


def _call_line(call: ToolCall) -> str:
    arguments = json.loads(call.arguments)
    if isinstance(arguments, dict):
        parts = [f"{_plain(_json(k))}: {_value(v)}" for k, v in arguments.items()]
        shown = "{" + ", ".join(parts) + "}"
    else:
        shown = _plain(_json(arguments))
    return f'<tool_call>{{"name": {_plain(_json(call.name))}, "arguments": {shown}}}</tool_call>'


def _value(value: Any) -> str:
    """A served template gets a stand-in for each string, which keeps its text as it is: no escapes, no space around."""
    return f'"{value.strip()}"' if isinstance(value, str) and value.strip() else _plain(_json(value))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _plain(text: str) -> str:
    """As the template's macro: what the template itself prints must not spell a control piece either."""
    text = text.replace("<|", "< |")
    for name in ("PAD", "BOS", "EOS", "UNK"):
        text = text.replace(f"[{name}]", f"[ {name}]")
    return text
