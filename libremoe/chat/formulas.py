"""Formulas in Markdown: $..$ and \\(..\\) in a line, $$..$$ and \\[..\\] on their own: rules that find them,
and MathML, which browsers lay out by themselves."""

from __future__ import annotations

import re
from xml.etree.ElementTree import ParseError

from latex2mathml import exceptions
from latex2mathml.converter import convert
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

MAX_MATH = 2_000  # characters of one formula
MAX_MATH_LINES = 100
MAX_MATH_DEPTH = 60  # braces and environments inside each other
# latex2mathml raises its own exceptions and, at formulas it did not foresee, those of Python's containers.
NO_FORMULA: tuple[type[Exception], ...] = (
    *(one for one in vars(exceptions).values() if isinstance(one, type)),
    ValueError, LookupError, TypeError, AttributeError, RuntimeError, StopIteration, ArithmeticError, ParseError)

FORMULAS = {"$$": ("$$", "block"), "$": ("$", "inline"), "\\(": ("\\)", "inline"), "\\[": ("\\]", "block")}


def inline(state: StateInline, silent: bool) -> bool:
    """A rule for what stands in a line."""
    src, at = state.src, state.pos
    opens = next((one for one in FORMULAS if src.startswith(one, at)), None)
    if opens is None:
        return False
    closes, display = FORMULAS[opens]
    begins = at + len(opens)
    end = _closing(src, closes, begins, min(state.posMax, begins + MAX_MATH))
    content = src[begins:end] if end >= 0 else ""
    if not content.strip():
        return False
    if opens == "$" and (content[0].isspace() or content[-1].isspace() or src[end + 1 : end + 2].isdigit()):
        return False  # "$5 and $6" are prices: Pandoc's rule, https://pandoc.org/MANUAL.html#math
    if not silent:
        token = state.push("formula", "math", 0)
        token.content, token.info = content, display
    state.pos = end + len(closes)
    return True


def _closing(src: str, closes: str, begins: int, limit: int) -> int:
    """Where the formula ends: closes, with no backslash before it that takes it away. -1 where there is none."""
    at = src.find(closes, begins, limit + len(closes))
    while at > 0 and closes[0] == "$":
        backslashes = len(src[:at]) - len(src[max(0, at - 20) : at].rstrip("\\")) - max(0, at - 20)
        if backslashes % 2 == 0:
            break
        at = src.find(closes, at + 1, limit + len(closes))
    return at


def block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A rule for blocks: $$ or \\[ at the begin of a line up to the line that ends with its other half."""
    if state.is_code_block(start):
        return False
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
    closes = {"$$": "$$", "\\[": "\\]"}.get(first[:2])
    if closes is None:
        return False
    lines = [first[2:]]
    while not lines[-1].rstrip().endswith(closes):
        line = start + len(lines)
        if line >= end or state.sCount[line] < state.blkIndent or len(lines) > MAX_MATH_LINES:
            return False
        lines.append(state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]])
    content = "\n".join(lines).rstrip()[:-2].strip()
    if not content or closes in content:
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        token.content, token.info, token.block, token.map = content, "block", True, [start, start + len(lines)]
    state.line = start + len(lines)
    return True


def mathml(latex: str, display: str) -> str | None:
    """LaTeX as MathML; None where it is no formula that latex2mathml can read. display: inline or block."""
    depth = deepest = 0
    for part in re.findall(r"\\begin|\\end|\\left|\\right|\\.|[{}^_]", latex, re.DOTALL):
        depth += (part in ("{", "\\begin", "\\left", "^", "_")) - (part in ("}", "\\end", "\\right"))
        deepest = max(deepest, depth)
    if len(latex) > MAX_MATH or deepest > MAX_MATH_DEPTH:
        return None
    try:
        return convert(latex, display=display)
    except NO_FORMULA:
        return None
