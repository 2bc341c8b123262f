"""What the answers of each kind of source look like, and the text in them. Runs in parse_worker.py only: all of it is
given bytes from strangers.

Each function takes the body and the URL it came from and returns entries: dicts with title, url, author, published
(Unix s or None) and text, or html to be made text. Shapes as documented by the projects: SearXNG's search API,
MediaWiki's action API (formatversion=2), Mastodon's statuses, Bluesky's app.bsky.feed.searchPosts, X API v2's recent
search.
"""

from __future__ import annotations

import calendar
import html
import json
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

Entries = list[dict[str, Any]]
MOST = 100  # entries of one answer that are looked at
MAX_TEXT = 200_000  # characters of one entry
MAX_TITLE = 300
_HIDING = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?![.\d])|"
                     r"opacity\s*:\s*0(?![.\d])", re.IGNORECASE)


def entries(kind: str, body: bytes, url: str, content_type: str) -> Entries:
    """kind: as in sources.py, or "page". Raises ValueError where the body is not of this shape."""
    if kind == "feed":
        return _feed(body, url, content_type)
    if kind == "page":
        return _page(body, url, content_type)
    try:
        data = json.loads(body)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    shape = {"search": _search, "wikipedia": _wikipedia, "mastodon": _mastodon, "bluesky": _bluesky, "x": _x}[kind]
    found = shape(data, url)
    for entry in found:
        if "html" in entry:
            entry["text"], entry["hidden"] = _text_of(str(entry.pop("html")))
    return [e for e in found if isinstance(e.get("text"), str) and e["text"].strip()]


def _feed(body: bytes, url: str, content_type: str) -> Entries:
    import feedparser

    parsed = feedparser.parse(body, response_headers={"content-type": content_type, "content-location": url})
    if not parsed.entries and not parsed.version:
        raise ValueError("this is no RSS or Atom feed")
    found = []
    for item in parsed.entries[:MOST]:
        contents = [c.get("value", "") for c in item.get("content", [])]
        text, hidden = _text_of(max(contents, key=len, default="") or item.get("summary", ""))
        title = _text_of(item.get("title", ""))[0]
        day = item.get("published_parsed") or item.get("updated_parsed")
        found.append({
            "title": title, "url": urljoin(url, item.get("link", "")) or url, "author": item.get("author", ""),
            "published": float(calendar.timegm(day)) if day else None, "text": text or title, "hidden": hidden})
    return found


def _page(body: bytes, url: str, content_type: str) -> Entries:
    if content_type.startswith(("text/plain", "text/markdown")):
        return [{"title": "", "url": url, "author": "", "published": None, "text": body.decode("utf-8", "replace")}]
    import trafilatura
    from lxml import etree

    try:
        tree = trafilatura.load_html(body)
    except (ValueError, etree.LxmlError):
        tree = None
    if tree is None:
        raise ValueError("this is no page that can be read")
    hidden = _drop_hidden(tree)
    found: Any = trafilatura.bare_extraction(tree, url=url, include_comments=False, with_metadata=True)
    if found is None or not found.text:
        raise ValueError("no text was found on this page")
    return [{"title": found.title or "", "url": url, "author": found.author or "", "published": _time(found.date),
             "text": found.text, "hidden": hidden}]


def _drop_hidden(tree: Any) -> int:
    """Takes out elements that a browser would not show, and says how many letters they had."""
    hidden = 0
    for element in list(tree.iter()):
        if not isinstance(element.tag, str) or element.getparent() is None:
            continue
        style = element.get("style", "")
        if ("hidden" in element.attrib or element.tag in ("template", "script", "style", "noscript")
                or element.get("aria-hidden") == "true" or _HIDING.search(style)):
            if element.tag not in ("script", "style", "noscript"):
                hidden += len("".join(element.itertext()).strip())
            _drop(element)
    return hidden


def _drop(element: Any) -> None:
    """Removes an element and keeps the text after it."""
    parent, tail = element.getparent(), element.tail or ""
    before = element.getprevious()
    if before is not None:
        before.tail = (before.tail or "") + tail
    else:
        parent.text = (parent.text or "") + tail
    parent.remove(element)


def _text_of(markup: str) -> tuple[str, int]:
    """The text that a piece of HTML shows, and how many letters it hides."""
    markup = markup[:MAX_TEXT]
    if "<" not in markup:
        return html.unescape(markup).strip(), 0
    from lxml import etree
    from lxml import html as lxml_html

    try:
        tree = lxml_html.fragment_fromstring(markup, create_parent="div")
    except (etree.LxmlError, ValueError):
        return html.unescape(re.sub(r"<[^>]*>", " ", markup)).strip(), 0
    hidden = _drop_hidden(tree)
    for element in tree.iter("br", "p", "div", "li", "h1", "h2", "h3", "h4", "tr"):
        element.tail = "\n" + (element.tail or "")
    return tree.text_content().strip(), hidden


def _time(written: Any) -> float | None:
    """Unix time of an ISO date or a number; None where it is neither."""
    if isinstance(written, int | float) and not isinstance(written, bool):
        return float(written)
    try:
        day = datetime.fromisoformat(str(written).strip().replace("Z", "+00:00"))
    except ValueError:
        return None
    return (day if day.tzinfo else day.replace(tzinfo=UTC)).timestamp()


def _list(data: Any, *keys: str) -> list[dict[str, Any]]:
    """What lies at a path of keys, where it is a list: its objects."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return [item for item in data if isinstance(item, dict)][:MOST] if isinstance(data, list) else []


def _at(data: Any, *keys: str) -> str:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, str) else ""


def _object(data: Any, what: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"this is no answer of {what}")
    return data


def _search(data: Any, url: str) -> Entries:
    if "results" not in _object(data, "a SearXNG search (is its JSON format enabled?)"):
        raise ValueError("this is no answer of a SearXNG search")
    return [{"title": _at(r, "title"), "url": _at(r, "url"), "author": "", "published": _time(r.get("publishedDate")),
             "text": html.unescape(_at(r, "content"))} for r in _list(data, "results")]


def _wikipedia(data: Any, url: str) -> Entries:
    pages = _list(_object(data, "MediaWiki's API"), "query", "pages")
    pages.sort(key=lambda p: p.get("index", 0) if isinstance(p.get("index"), int) else 0)
    host = urlsplit(url).netloc
    return [{"title": _at(p, "title"), "url": _at(p, "fullurl") or f"https://{host}/wiki/{_at(p, 'title')}",
             "author": "", "published": _time(p.get("touched")), "text": _at(p, "extract")} for p in pages]


def _post(author: str, url: str, published: Any) -> dict[str, Any]:
    """A post has no title: it is shown by the name of who wrote it."""
    return {"title": author, "url": url, "author": author, "published": _time(published)}


def _mastodon(data: Any, url: str) -> Entries:
    statuses = _list(data, "statuses") if isinstance(data, dict) else _list({"all": data}, "all")
    return [_post(_at(s, "account", "acct"), _at(s, "url") or _at(s, "uri"), s.get("created_at"))
            | {"html": _at(s, "content")} for s in statuses]


def _bluesky(data: Any, url: str) -> Entries:
    found = []
    for post in _list(_object(data, "Bluesky's search"), "posts"):
        handle, key = _at(post, "author", "handle"), _at(post, "uri").rpartition("/")[2]
        found.append(_post(handle, f"https://bsky.app/profile/{handle}/post/{key}", _at(post, "record", "createdAt"))
                     | {"text": _at(post, "record", "text")})
    return found


def _x(data: Any, url: str) -> Entries:
    names = {_at(u, "id"): _at(u, "username") for u in _list(_object(data, "X's API"), "includes", "users")}
    found = []
    for post in _list(data, "data"):
        name = names.get(_at(post, "author_id"), "")
        url = f"https://x.com/{name or 'i'}/status/{_at(post, 'id')}"
        found.append(_post(name, url, _at(post, "created_at")) | {"text": _at(post, "text")})
    return found
