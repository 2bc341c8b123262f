"""From what a model wrote to a program: a continuation of the prompt, or a chat's answer with code in it."""

from __future__ import annotations

import re

# Where a continuation has left the function that it was to complete (Chen et al. 2021, arXiv:2107.03374, section 2.1).
ENDS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\nassert", "\n@", "\n```")
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


def completed(prompt: str, text: str, entry_point: str) -> str:
    """The program of a prompt that ends within a function and of an answer to it.

    An answer whose first line is indented goes on in that function, up to where it leaves it. Else the first fenced
    block that defines entry_point counts, or the text from that definition on, after the prompt's imports and helpers.
    """
    first = next((line for line in text.splitlines() if line.strip()), "")
    if first[:1] not in (" ", "\t"):
        for block in (*fenced(text), text):
            if (start := definition(block, entry_point)) is not None:
                code = block if block is not text else block[start:]
                return f"{prompt}\n    pass\n\n{code}\n"
        blocks = fenced(text)
        if blocks:
            return prompt + blocks[0] + "\n"
    return prompt + cut(text, ENDS) + "\n"


def written(text: str) -> str:
    """The program of an answer that brings all its code: its first fenced block, or all of it."""
    blocks = fenced(text)
    return blocks[0] if blocks else text


def fenced(text: str) -> list[str]:
    """What stands between fences of three backticks; the last may be without an end."""
    return _FENCE.findall(text)


def definition(text: str, name: str) -> int | None:
    """Where `def name(` begins a line."""
    found = re.search(rf"^(?:async )?def {re.escape(name)}\s*\(", text, re.MULTILINE)
    return found.start() if found else None


def cut(text: str, ends: tuple[str, ...]) -> str:
    """text up to the first of ends."""
    return text[: min((at for end in ends if (at := text.find(end)) >= 0), default=len(text))]
