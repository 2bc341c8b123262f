"""A conversation as a file: JSON (all of it, readable by importing.py), Markdown, or one HTML page without scripts.

Markdown and the page show the selected path, then the other versions of turns, so that nothing is left out.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from libremoe.chat.conversation import Conversation, Turn, conversation_as_dict, path_to, turn_as_dict
from libremoe.chat.markdown import render
from libremoe.chat.message import Text, ToolCall

FORMAT = "libremoe conversations 1"

_WORDS = {
    "en": {"user": "You", "assistant": "Answer", "system": "System", "tool": "Tool", "sources": "Sources",
           "others": "Other versions", "untitled": "Conversation", "call": "Call of", "result": "Result",
           "stopped": "stopped", "failed": "failed", "writing": "being written", "instead": "in place of turn"},
    "fr": {"user": "Vous", "assistant": "Réponse", "system": "Système", "tool": "Outil", "sources": "Sources",
           "others": "Autres versions", "untitled": "Conversation", "call": "Appel de", "result": "Résultat",
           "stopped": "arrêtée", "failed": "échouée", "writing": "en cours", "instead": "à la place du tour"},
}


def to_json(conversation: Conversation, turns: Sequence[Turn]) -> str:
    """The whole tree with all details."""
    return all_to_json([(conversation, turns)])


def all_to_json(conversations: Iterable[tuple[Conversation, Sequence[Turn]]]) -> str:
    """Many conversations in one file: {"format", "conversations": [{...Conversation's fields, "turns": [...]}]}."""
    value = {"format": FORMAT, "conversations": [
        {**conversation_as_dict(conversation), "turns": [turn_as_dict(turn) for turn in turns]}
        for conversation, turns in conversations]}
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1)
    return text if _encodable(text) else json.dumps(value, allow_nan=False, indent=1)


def to_markdown(conversation: Conversation, turns: Sequence[Turn]) -> str:
    """For reading. Texts stand as they were written; code fences that they leave open are closed."""
    words = _WORDS.get(conversation.language, _WORDS["en"])
    blocks = [f"# {_escaped(conversation.title) or words['untitled']}", f"{_date(conversation.created)}"]
    path, others = _parted(conversation, turns)
    for number, turn in enumerate(path, 1):
        blocks += _markdown_turn(f"## {number}. {words[turn.role]}", turn, words)
    if others:
        blocks.append(f"# {words['others']}")
    for number, turn in others:
        blocks += _markdown_turn(f"## {words[turn.role]}, {words['instead']} {number}", turn, words)
    text = "\n\n".join(blocks) + "\n"
    return text if _encodable(text) else text.encode("utf-8", "replace").decode()


def to_html(conversation: Conversation, turns: Sequence[Turn]) -> str:
    """One page: no script, nothing that it loads, and a policy that allows neither."""
    language = conversation.language if conversation.language in _WORDS else "en"
    words = _WORDS[language]
    title = _shown(conversation.title or words["untitled"])
    path, others = _parted(conversation, turns)
    body = [_html_turn(f"t{i}", f"{i}. {words[turn.role]}", turn, words) for i, turn in enumerate(path, 1)]
    if others:
        body.append(f"<h1>{words['others']}</h1>")
    body += [_html_turn(f"o{i}", f"{words[turn.role]}, {words['instead']} {number}", turn, words)
             for i, (number, turn) in enumerate(others, 1)]
    return (f'<!doctype html>\n<html lang="{language}"><head><meta charset="utf-8">\n'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
            f'<meta name="viewport" content="width=device-width"><title>{title}</title>\n'
            f'<style>{_STYLE}</style></head>\n'
            f'<body><main>\n<h1 dir="auto">{title}</h1>\n<p class="small">{_date(conversation.created)}</p>\n'
            + "\n".join(body) + "\n</main></body></html>\n")


def _parted(conversation: Conversation, turns: Sequence[Turn]) -> tuple[list[Turn], list[tuple[int, Turn]]]:
    """The selected path, and all other turns, each with the number of the turn whose place it takes."""
    path = path_to(turns, conversation.leaf_id)
    shown = {turn.id for turn in path}
    depth: dict[str | None, int] = {None: 0}
    others = []
    for turn in turns:
        depth[turn.id] = depth.get(turn.parent_id, 0) + 1
        if turn.id not in shown:
            others.append((depth[turn.id], turn))
    return path, others


# --- Markdown ---

def _markdown_turn(heading: str, turn: Turn, words: Mapping[str, str]) -> list[str]:
    state = f" ({words[turn.state]})" if turn.state != "done" else ""
    blocks = [f"{heading}{state}"]
    for part in turn.parts:
        if isinstance(part, Text):
            blocks.append(_closed(part.text))
        elif isinstance(part, ToolCall):
            blocks.append(f"{words['call']} `{part.name.replace('`', ' ')}`\n\n{_fenced(part.arguments)}")
        else:
            blocks.append(f"{words['result']}\n\n{_fenced(part.text)}")
    if turn.details.get("error"):
        blocks.append(f"> {_escaped(' '.join(str(turn.details['error']).split()))}")
    sources = [f"- \\[{s['number']}\\] {_escaped(s['title'])} <{s['url']}> {s['fetched']}".rstrip()
               for s in _sources(turn)]
    return blocks + ([f"{words['sources']}\n\n" + "\n".join(sources)] if sources else [])


def _escaped(text: str) -> str:
    """Markdown that shows just this text."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", text)


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any in the text."""
    fence = "`" * (1 + max([2, *(len(run) for run in re.findall(r"`+", text))]))
    return f"{fence}\n{text}\n{fence}"


def _closed(text: str) -> str:
    """The text, with the fence of a last code block that is left open."""
    fence = ""
    for line in text.splitlines():
        match = re.match(r" {0,3}(`{3,}|~{3,})(.*)", line)
        if match and not fence:
            fence = match[1]
        elif match and match[1].startswith(fence) and not match[2].strip():
            fence = ""
    return f"{text}\n{fence}" if fence else text


# --- HTML ---

_STYLE = """
:root { color-scheme: light dark }
body { font: 1rem/1.55 system-ui, sans-serif; margin: 0 }
main { max-width: 46rem; margin: auto; padding: 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1rem; margin: 2rem 0 .3rem } .small { font-size: .85rem; opacity: .75 }
pre { overflow: auto; padding: .7rem; border: 1px solid #8886; border-radius: .4rem; white-space: pre-wrap }
table { border-collapse: collapse } td, th { border: 1px solid #8886; padding: .2rem .5rem }
div.table { overflow: auto }
.verdict.unsupported::after { content: " (?)"; color: #c33 } .dangling { color: #c33 }
.user { border-left: .25rem solid #8886; padding-left: .8rem }
"""


def _html_turn(anchor: str, heading: str, turn: Turn, words: Mapping[str, str]) -> str:
    sources = _sources(turn)
    state = f" ({words[turn.state]})" if turn.state != "done" else ""
    made = [f'<section class="{turn.role}" id="{anchor}"><h2>{escape(heading + state)}</h2>']
    # Spans of sentences count from the beginning of all the text of an answer, so its texts are rendered as one.
    for is_text, parts in groupby(turn.parts, key=lambda part: isinstance(part, Text)):
        if is_text:
            text = "\n".join(part.text for part in parts if isinstance(part, Text))
            sentences = _sentences(turn) if len(turn.parts) == 1 else []
            made.append(f'<div dir="auto">{render(text, sources, sentences, f"{anchor}-source")}</div>')
            continue
        for part in parts:
            if isinstance(part, ToolCall):
                made.append(f"<p class=\"small\">{words['call']} <code>{_shown(part.name)}</code></p>"
                            f"<pre>{_shown(part.arguments)}</pre>")
            else:
                made.append(f"<p class=\"small\">{words['result']}</p><pre>{_shown(part.text)}</pre>")
    if turn.details.get("error"):
        made.append(f"<p>{_shown(str(turn.details['error']))}</p>")
    if sources:
        items = "".join(f'<li id="{anchor}-source-{s["number"]}" value="{s["number"]}">{_link(s)} {s["fetched"]}</li>'
                        for s in sources)
        made.append(f'<div class="small"><p>{words["sources"]}</p><ol>{items}</ol></div>')
    model = " · ".join(str(turn.details[name]) for name in ("model", "persona") if turn.details.get(name))
    made.append(f'<p class="small">{_date(turn.created)}{" · " + _shown(model) if model else ""}</p></section>')
    return "".join(made)


def _link(source: Mapping[str, Any]) -> str:
    title = _shown(source["title"] or source["url"])
    if source["url"].lower().startswith(("http://", "https://")):
        return f'<a href="{_shown(source["url"])}" rel="noopener noreferrer nofollow">{title}</a>'
    return title


def _shown(text: str) -> str:
    return escape(_spelled(text))


def _spelled(text: str) -> str:
    """What would reorder or hide text is spelled out."""
    unseen = "[\u202a-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e0fff]"
    return re.sub(unseen, lambda found: f"<U+{ord(found[0]):04X}>", text)


# --- both ---

def _sources(turn: Turn) -> list[dict[str, Any]]:
    """What the answer cites: number, title, url, fetched (a date or empty). details may be of an import: anything."""
    found = turn.details.get("sources")
    sources = []
    for source in found if isinstance(found, list) else []:
        if isinstance(source, dict) and isinstance(source.get("number"), int):
            fetched = source.get("fetched")
            title, url = (_spelled(str(source.get(name) or "")) for name in ("title", "url"))
            sources.append({"number": source["number"], "title": " ".join(title.split()),
                            "url": re.sub(r"[\s<>]", "", url),
                            "fetched": _date(fetched) if isinstance(fetched, int | float) else ""})
    return sources


def _sentences(turn: Turn) -> list[dict[str, Any]]:
    found = turn.details.get("sentences")
    return [s for s in (found if isinstance(found, list) else []) if isinstance(s, dict)
            and isinstance(s.get("end"), int) and isinstance(s.get("verdict"), str)]


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds)) if 0 < seconds < 2**37 else ""


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
