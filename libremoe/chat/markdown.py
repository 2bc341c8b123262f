"""Markdown of answers and messages as safe HTML: one function, `render`.

Text of a model, of a person or of a page is never trusted. It is parsed without raw HTML, and what comes out goes
through an allow-list (nh3) in every case, so nothing above that line has to be right for the result to be safe. There
are no images, links have the schemes http, https and mailto, and code is coloured by classes, not by styles.

Time is bounded: every step of the parser looks at a clock, and where it runs out, or the text is too long, the text
comes back as it was written, escaped. Formulas are MathML, which browsers lay out by themselves.
"""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES
from pygments.util import ClassNotFound

from libremoe.chat import formulas
from libremoe.live.citations import cited_numbers

MAX_CHARACTERS = 200_000  # longer texts are shown as they were written
MAX_CODE = 30_000  # characters of one block that are coloured
MAX_CODE_LINE = 1_000  # and of one of its lines: the time of a lexer grows with them
WIDE_MATH = 60  # a longer formula has a line of its own, which scrolls
MAX_NESTING = 24  # quotes and lists inside each other
DEADLINE_S = 1.0
# A sentence's verdict (live/citations.py), carried through the parser by a character that no text may hold.
VERDICTS = ("supported", "unsupported", "dangling", "uncited")
_MARK = 0xF0000  # the first of them, in a plane for private use; the verdict is added
_MARKS = re.compile(f"[{chr(_MARK)}-{chr(_MARK + len(VERDICTS) - 1)}]")
_UNSEEN = re.compile("[\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufff9-\ufffb\U000e0000-\U000e0fff]")
# As live/citations.py reads them: [1], [2, 3], [4-6], [^7], and the brackets that some models were taught.
_CITED = re.compile(r"\[\^?(\d{1,4}(?:\s?[,;–-]\s?\d{1,4}){0,15})\]|【(\d{1,4})[^】\n]{0,40}】")
_ADDRESS = re.compile(r"""https?://[^\s<>"'`\\{}|^]{1,2000}""")
_LANGUAGE = re.compile(r"[A-Za-z0-9_+#.-]{1,30}")
_STRUCTURE = re.compile(r"[ \t>]*(?:[-+*=_|:~` \t]+|[`~]{3}.*)$")  # a line of marks: nothing may be added to it

TEXT_TAGS = {"a", "blockquote", "br", "code", "del", "div", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre",
             "s", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"}
MATH_TAGS = {"math", "menclose", "mfrac", "mi", "mmultiscripts", "mn", "mo", "mover", "mpadded",
             "mphantom", "mprescripts", "mroot", "mrow", "mspace", "msqrt", "mstyle", "msub", "msubsup", "msup",
             "mtable", "mtd", "mtext", "mtr",
             "munder", "munderover"}
MATH_ATTRIBUTES = {"accent", "accentunder", "columnalign", "columnlines", "columnspacing", "depth", "display",
                   "displaystyle", "fence", "form", "height", "largeop", "linethickness", "lspace", "mathvariant",
                   "maxsize", "minsize", "movablelimits", "notation", "rowlines", "rowspacing", "rspace", "scriptlevel",
                   "separator", "stretchy", "width"}
ATTRIBUTES = {"a": {"class", "href", "title"}, "code": {"class"}, "div": {"class", "tabindex"}, "ol": {"start"},
              "pre": {"class", "data-language", "tabindex"}, "span": {"class", "tabindex"}, "td": {"class"},
               "th": {"class"},
              **{tag: MATH_ATTRIBUTES for tag in MATH_TAGS}}
CODE_CLASSES = set(STANDARD_TYPES.values()) - {""}
CLASSES = {"a": {"cite"}, "code": {"formula"}, "div": {"table", "formula"}, "pre": {"code", "plain"},
           "span": CODE_CLASSES | {"cite", "formula", "verdict", "image", *VERDICTS}, "td": {"left", "center", "right"},
           "th": {"left", "center", "right"}}
SCHEMES = {"http", "https", "mailto"}


class _OutOfTime(Exception):
    pass


def render(text: str, sources: Sequence[Mapping[str, Any]] = (), sentences: Sequence[Mapping[str, Any]] = (),
           anchor: str = "source") -> str:
    """Safe HTML of a Markdown text.

    sources: what [1] may cite: mappings with "number" and, for the title of the link, "title"; [n] becomes a link to
    #{anchor}-n where there is such a source, and is marked where there is none. sentences: mappings with "start", "end"
    (characters of text) and "verdict", as live's citations give them; each is followed by an empty
    <span class="verdict supported"> or the like, which a style sheet or a script gives its look and words.
    """
    text = _UNSEEN.sub(lambda found: f"<U+{ord(found[0]):04X}>", _with_marks(text, sentences))
    if len(text) > MAX_CHARACTERS:
        return _plain(text)
    titles = {int(source["number"]): str(source.get("title") or "") for source in sources}
    env = {"deadline": time.monotonic() + DEADLINE_S, "titles": titles, "anchor": anchor}
    try:
        made = _parser(bool(titles)).render(text, env)
    except (_OutOfTime, RecursionError):
        return _plain(text)
    return _clean(made)


def _plain(text: str) -> str:
    return f'<pre class="plain" tabindex="0">{html.escape(_MARKS.sub("", text))}</pre>'


def _clean(made: str) -> str:
    """The allow-list. Whatever the parser and its plugins made, this is all that may stand in a page."""
    return nh3.clean(made, tags=TEXT_TAGS | MATH_TAGS, attributes=ATTRIBUTES, attribute_filter=_attribute,
                     allowed_classes=None, url_schemes=SCHEMES, link_rel="noopener noreferrer nofollow",
                     set_tag_attribute_values={}, clean_content_tags={"script", "style"})


def _attribute(tag: str, name: str, value: str) -> str | None:
    if name == "href":
        local = re.fullmatch(r"#[a-z0-9-]{1,60}", value)
        return value if local or value.split(":", 1)[0].lower() in SCHEMES else None
    if name == "class":
        return " ".join(one for one in value.split() if one in CLASSES.get(tag, ())) or None
    if name == "data-language":
        return value if _LANGUAGE.fullmatch(value) else None
    if name == "tabindex":
        return "0"
    if name == "start":
        return value if value.isascii() and value.isdigit() and len(value) < 10 else None
    return value


def _with_marks(text: str, sentences: Sequence[Mapping[str, Any]]) -> str:
    """text with a mark behind each sentence; none in a line that has a meaning to Markdown by its marks alone."""
    ends: dict[int, str] = {}
    for sentence in sentences:
        if sentence.get("verdict") in VERDICTS:
            end = min(max(int(sentence["end"]), 0), len(text))
            while end > 0 and text[end - 1].isspace():
                end -= 1
            begins = text.rfind("\n", 0, end) + 1
            line_end = text.find("\n", end)
            line = text[begins : line_end if line_end >= 0 else len(text)]
            if line.lstrip().startswith("|") and text[begins:end].endswith("|"):  # a row's mark stands in its last cell
                end = begins + len(text[begins : end - 1].rstrip())
            if end > begins and not _STRUCTURE.match(line):
                ends[end] = chr(_MARK + VERDICTS.index(sentence["verdict"]))
    pieces, last = [], 0
    for end in sorted(ends):
        pieces += [_MARKS.sub("", text[last:end]), ends[end]]
        last = end
    return "".join([*pieces, _MARKS.sub("", text[last:])])


@cache
def _parser(citing: bool) -> MarkdownIt:
    md = MarkdownIt("commonmark", {"html": False, "maxNesting": MAX_NESTING, "breaks": True})
    md.enable(["table", "strikethrough"])
    md.validateLink = lambda url: url.split(":", 1)[0].lower() in SCHEMES  # type: ignore[method-assign]
    md.block.ruler.before("table", "clock", _clock, {"alt": ["paragraph", "blockquote", "list"]})
    md.inline.ruler.before("text", "clock", _clock)
    md.block.ruler.before("table", "formula", formulas.block, {"alt": ["paragraph", "blockquote", "list"]})
    md.inline.ruler.before("escape", "formula", formulas.inline)
    md.core.ruler.push("verdicts", _verdicts)
    md.core.ruler.push("addresses", _addresses)
    if citing:
        md.disable("reference")  # "[1]: ..." under an answer is a list of sources, and text
        md.inline.ruler.before("link", "citation", _citation)
        md.inline.add_terminator_char("【")
    rules: dict[str, Callable[..., str]] = {
        "fence": _fence, "code_block": _fence, "code_inline": _code_inline, "image": _image, "formula": _formula,
        "citation": _cite, "verdict": _verdict, "heading_open": _heading, "heading_close": _heading,
        "table_open": lambda *_: '<div class="table" tabindex="0"><table>', "table_close": lambda *_: "</table></div>",
        "td_open": _cell, "th_open": _cell,
    }
    for name, rule in rules.items():
        md.add_render_rule(name, rule)
    return md


def _clock(state: Any, *_: Any) -> bool:
    """First in each chain: looks at the time and does nothing else."""
    if time.monotonic() > state.env["deadline"]:
        raise _OutOfTime
    return False


def _formula(renderer: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    token = tokens[at]
    latex = _MARKS.sub("", token.content)
    made = formulas.mathml(latex, token.info) if time.monotonic() <= env["deadline"] else None
    shown = made if made is not None else f'<code class="formula">{html.escape(latex)}</code>'
    if token.block:
        return f'<div class="formula" tabindex="0">{shown}</div>'
    wide = token.info == "block" or len(latex) > WIDE_MATH  # in a line: no div may stand there
    return f'<span class="formula" tabindex="0">{shown}</span>' if wide else shown


# Citations and verdicts


def _citation(state: StateInline, silent: bool) -> bool:
    found = _CITED.match(state.src, state.pos, state.posMax) if state.src[state.pos] in "[【" else None
    if found is None:
        return False
    if not silent:
        state.push("citation", "a", 0).content = found[1] or found[2]
    state.pos = found.end()
    return True


def _cite(renderer: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    links = []
    for number in cited_numbers(f"[{tokens[at].content}]"):
        if number in env["titles"]:
            title = html.escape(env["titles"][number][:300])
            links.append(f'<a class="cite" href="#{html.escape(env["anchor"])}-{number}" title="{title}">{number}</a>')
        else:
            links.append(f'<span class="cite dangling">{number}</span>')
    return "".join(links)


def _verdicts(state: StateCore) -> None:
    """Takes the marks out of the text: each becomes a token of its own."""
    for block in state.tokens:
        if block.children is None:
            continue
        children: list[Token] = []
        for token in block.children:
            if token.type != "text" or not _MARKS.search(token.content):
                children.append(token)
                continue
            for piece in re.split(f"({_MARKS.pattern})", token.content):
                if piece and _MARKS.fullmatch(piece):
                    children.append(Token("verdict", "span", 0, info=VERDICTS[ord(piece) - _MARK]))
                elif piece:
                    children.append(Token("text", "", 0, content=piece))
        block.children = children


def _verdict(renderer: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    return f'<span class="verdict {tokens[at].info}"></span>'


# What CommonMark has not, or has otherwise


def _addresses(state: StateCore) -> None:
    """Plain addresses become links."""
    for block in state.tokens:
        if block.children is None:
            continue
        children: list[Token] = []
        inside = 0
        for token in block.children:
            inside += token.nesting if token.type in ("link_open", "link_close") else 0
            if token.type == "text" and not inside and "://" in token.content:
                children += _linked(token.content)
            else:
                children.append(token)
        block.children = children


def _linked(text: str) -> list[Token]:
    made, last = [], 0
    for found in _ADDRESS.finditer(text):
        address = found[0].rstrip(".,;:!?*_~")
        while address.endswith(")") and address.count(")") > address.count("("):
            address = address[:-1].rstrip(".,;:!?*_~")
        end = found.start() + len(address)
        made += [Token("text", "", 0, content=text[last : found.start()]),
                 Token("link_open", "a", 1, attrs={"href": address}), Token("text", "", 0, content=address),
                 Token("link_close", "a", -1)]
        last = end
    return [*made, Token("text", "", 0, content=text[last:])]


def _heading(renderer: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    """Two levels lower: h1 is the page's and h2 a message's."""
    token = tokens[at]
    return f"<{'/' if token.nesting < 0 else ''}h{min(int(token.tag[1]) + 2, 6)}>"


def _cell(renderer: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    """Alignment by class; markdown-it writes a style, which the page's policy refuses."""
    side = str(tokens[at].attrs.get("style", "")).removeprefix("text-align:")
    return f'<{tokens[at].tag} class="{side}">' if side in ("left", "center", "right") else f"<{tokens[at].tag}>"


def _image(renderer: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    """Nothing is loaded from anywhere: the picture's words, and a link for who wants to look."""
    token = tokens[at]
    address = html.escape(str(token.attrs.get("src", "")))
    words = html.escape(renderer.renderInlineAsText(token.children, options, env) or address)
    return f'<span class="image"><a href="{address}">{words}</a></span>'


def _code_inline(renderer: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    return f"<code>{html.escape(_MARKS.sub('', tokens[at].content))}</code>"


def _fence(renderer: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    code = _MARKS.sub("", tokens[at].content)
    named = _LANGUAGE.match(_MARKS.sub("", tokens[at].info).strip())
    name = named[0].lower() if named else ""
    coloured = _coloured(code, name, env["deadline"]) if name else None
    language = f' data-language="{html.escape(name)}"' if name else ""
    return f'<pre class="code" tabindex="0"{language}><code>{coloured or html.escape(code)}</code></pre>\n'


def _coloured(code: str, name: str, deadline: float) -> str | None:
    """The code in spans of Pygments' short classes; None for a language that it does not know, or too much code."""
    if len(code) > MAX_CODE or max(map(len, code.split("\n"))) > MAX_CODE_LINE:
        return None
    try:
        lexer = get_lexer_by_name(name, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None
    pieces = []
    for kind, piece in lexer.get_tokens(code):
        if time.monotonic() > deadline:
            return None
        while kind not in STANDARD_TYPES:
            kind = kind.parent
        short = STANDARD_TYPES[kind]
        pieces.append(f'<span class="{short}">{html.escape(piece)}</span>' if short else html.escape(piece))
    return "".join(pieces)
