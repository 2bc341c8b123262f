"""Tools for models that were never trained to call any: how they are told (instructions), forced (grammar), and
understood.

A call is written as one line, in the form that several open models were trained on:

    <tool_call>{"name": "get_weather", "arguments": {"city": "Bern"}}</tool_call>

Finding calls in a stream is CallParser's work: text before a call goes out at once, a call when it is complete.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from typing import Any

from libremoe.chat.message import Text, Tool, ToolCall, ToolChoice

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_PARTIAL = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"]*)"\s*,\s*"arguments"\s*:\s*')


def instructions(tools: Sequence[Tool], choice: ToolChoice) -> str:
    """What a transcript says about the tools that may be used; "" where there are none."""
    if not tools or choice.mode == "none":
        return ""
    lines = [
        "The assistant can use the tools below. To use one, it answers with one line and nothing else:",
        f'{OPEN}{{"name": "the tool", "arguments": {{...}}}}{CLOSE}',
        "The tool's result follows, and then the assistant answers. The tools, one a line, in JSON:",
    ]
    lines += [json.dumps(describe(tool)["function"], ensure_ascii=False) for tool in tools]
    return "\n".join(lines)


def describe(tool: Tool) -> dict[str, Any]:
    """A tool as chat templates and the OpenAI API write it."""
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def call_text(call: ToolCall) -> str:
    """A call as the model would have written it."""
    return f'{OPEN}{{"name": {json.dumps(call.name)}, "arguments": {call.arguments or "{}"}}}{CLOSE}'


def call_grammar(tools: Sequence[Tool], choice: ToolChoice) -> str | None:
    """A Lark grammar (llguidance's dialect) that admits nothing but calls; None where the model is free.

    https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
    """
    if choice.mode in ("none", "auto"):
        return None
    wanted = [tool for tool in tools if choice.mode == "required" or tool.name == choice.name]
    names = [f"call_{i}" for i in range(len(wanted))]
    rules = [f"start: {' | '.join(names)}"]
    for name, tool in zip(names, wanted, strict=True):
        head = json.dumps(f'{OPEN}{{"name": {json.dumps(tool.name)}, "arguments": ')
        rules.append(f"{name}: {head} {name}_arguments {json.dumps('}' + CLOSE)}")
        rules.append(f"{name}_arguments: %json {json.dumps(compact(tool.parameters))}")
    return "\n".join(rules)


def compact(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, without the freedom of white space in which a small model gets lost."""
    return {**schema, "x-guidance": {"whitespace_flexible": False}}


class CallParser:
    """Splits a streamed answer into text and calls. White space after a call says nothing and is dropped."""

    def __init__(self, *, parallel: bool = True):
        self.parallel = parallel
        self.held = ""  # may be the beginning of OPEN, or is what follows OPEN
        self.inside = False
        self.after_call = False
        self.calls = 0

    def push(self, text: str) -> list[Text | ToolCall]:
        """What is now certain, in order."""
        self.held += text
        parts: list[Text | ToolCall] = []
        while (at := self.held.find(mark := CLOSE if self.inside else OPEN)) >= 0:
            before, self.held = self.held[:at], self.held[at + len(mark) :]
            parts += self._call(before, CLOSE) if self.inside else self._text(before)
            self.inside = not self.inside
        if not self.inside:
            cut = len(self.held) - _overlap(self.held, OPEN)
            shown, self.held = self.held[:cut], self.held[cut:]
            parts += self._text(shown)
        return parts

    def finish(self) -> list[Text | ToolCall]:
        """The end of the answer: a call that lacks its closing mark counts, cut off or not, if its arguments have
        begun."""
        held, self.held = self.held, ""
        return self._call(held, "") if self.inside else self._text(held)

    def _text(self, text: str) -> list[Text | ToolCall]:
        if self.after_call:
            text = text.lstrip()
        self.after_call = self.after_call and not text
        return [Text(text)] if text else []

    def _call(self, text: str, mark: str) -> list[Text | ToolCall]:
        name, arguments = _read_call(text)
        if name is None:
            self.after_call = False
            return [Text(OPEN + text + mark)]
        self.after_call = True
        if self.calls and not self.parallel:
            return []
        self.calls += 1
        return [ToolCall(f"call_{uuid.uuid4().hex[:24]}", name, arguments)]


def _read_call(text: str) -> tuple[str | None, str]:
    """(name, arguments as JSON text); name is None where the text is no call."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        begin = _PARTIAL.match(text)  # cut off by max_tokens: what there is of the arguments
        return (begin[1], text[begin.end() :]) if begin else (None, "")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None, ""
    arguments = call.get("arguments", call.get("parameters", {}))
    return call["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of text are the beginning of mark."""
    for n in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:n]):
            return n
    return 0
