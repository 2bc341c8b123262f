"""The sources that a person configured, in sources.toml, and the request that asks each of them something."""

from __future__ import annotations

import json
import os
import re
import threading
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote, urlencode

from libremoe.errors import LibremoeError
from libremoe.live.addresses import Place
from libremoe.live.fetch import place_of

Kind = Literal["feed", "search", "wikipedia", "mastodon", "bluesky", "x", "page"]
KINDS: tuple[str, ...] = get_args(Kind)
ASKED = ("search", "wikipedia", "mastodon", "bluesky", "x")  # a question is sent to them; feeds and pages are only read
HOMES = {"wikipedia": "https://{language}.wikipedia.org/w/api.php", "bluesky": "https://api.bsky.app",
         "x": "https://api.x.com"}
MOST_POSTS = 20
# What X asks for one post that is read, in US dollars; a person's own price goes into sources.toml.
X_PRICE = 0.005


@dataclass(frozen=True)
class Source:
    """One source. local: it is on this machine or a private network, and its host and port may be reached although.

    url: of a feed or page; of the others their base; {language} in it becomes en or fr. key_env: the name of the
    environment variable with the key, never the key. limit: US dollars a month; 0: nothing may be spent. price: of a
    post.
    """

    name: str
    kind: str
    url: str
    local: bool = False
    key_env: str = ""
    limit: float = 0.0
    price: float = X_PRICE

    def as_dict(self) -> dict[str, Any]:
        """For JSON. It holds no key."""
        return asdict(self)

    @property
    def place(self) -> Place | None:
        """The place on the own network that requests to this source may reach; None: none."""
        return place_of(self.url) if self.local else None


@dataclass(frozen=True)
class Question:
    """A GET that asks a source. cost: in dollars at worst."""

    url: str
    headers: Mapping[str, str]
    cost: float = 0.0


def question(source: Source, query: str, language: str) -> Question:
    """The request for a few words. Raises LibremoeError where the key that a source needs is not there."""
    base = source.url.replace("{language}", language).rstrip("/")
    key = os.environ.get(source.key_env, "") if source.key_env else ""
    if source.key_env and not key:
        raise LibremoeError(f"{source.name}: the environment variable {source.key_env} with its key is not set")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if source.kind == "search":
        return Question(f"{base}/search?{urlencode({'q': query, 'format': 'json', 'language': language})}", headers)
    if source.kind == "wikipedia":
        return Question(f"{base}?{urlencode(_wikipedia(query))}", headers)
    if source.kind == "mastodon":
        return Question(_mastodon(base, query, bool(key)), headers)
    if source.kind == "bluesky":
        asked = {"q": query, "limit": MOST_POSTS, "sort": "latest"}
        return Question(f"{base}/xrpc/app.bsky.feed.searchPosts?{urlencode(asked)}", headers)
    if source.kind == "x":
        asked = {"query": f"{query} -is:retweet lang:{language}", "max_results": MOST_POSTS,
                 "tweet.fields": "created_at,author_id", "expansions": "author_id", "user.fields": "username"}
        return Question(f"{base}/2/tweets/search/recent?{urlencode(asked)}", headers, MOST_POSTS * source.price)
    return Question(source.url, headers)


def _wikipedia(query: str) -> dict[str, str | int]:
    return {"action": "query", "format": "json", "formatversion": 2, "generator": "search", "gsrsearch": query,
            "gsrlimit": 3, "prop": "extracts|info", "exintro": 1, "explaintext": 1, "exlimit": 3, "inprop": "url"}


def _mastodon(base: str, query: str, with_key: bool) -> str:
    """Without a key instances show tags, not a search: the longest word is asked for."""
    if with_key:
        return f"{base}/api/v2/search?{urlencode({'q': query, 'type': 'statuses', 'limit': MOST_POSTS})}"
    tag = max(re.findall(r"\w+", query), key=len, default="news")
    return f"{base}/api/v1/timelines/tag/{quote(tag, safe='')}?limit={MOST_POSTS}"


class Sources:
    """sources.toml, read again whenever it is asked, so that a running server sees what the command line added.

    path: None keeps them in memory. on_own_network: tells of a place whether it is local; asked when a person adds it.
    """

    def __init__(self, path: Path | None, on_own_network: Callable[[Place], bool]):
        self.path = path
        self._on_own_network = on_own_network
        self._lock = threading.Lock()
        self._kept: Sequence[Source] = []

    def list(self) -> Sequence[Source]:
        """In the order in which they were added."""
        if self.path is None or not self.path.exists():
            return [*self._kept]
        try:
            tables = tomllib.loads(self.path.read_text(encoding="utf-8")).get("source", [])
            return [_read(table, self.path) for table in tables]
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise LibremoeError(f"{self.path}: {error}; mend it, or remove it and add the sources again") from None

    def get(self, name: str) -> Source:
        found = next((s for s in self.list() if s.name == name), None)
        if found is None:
            known = ", ".join(s.name for s in self.list()) or "none"
            raise LibremoeError(f"there is no source {name!r}; there are: {known}")
        return found

    def add(self, kind: str, name: str | None = None, url: str | None = None, key_env: str = "", limit: float = 0.0,
            price: float = X_PRICE) -> Source:
        """Adds one and returns it; may ask a name server, so not from an event loop's thread.

        Raises LibremoeError where the name is taken or this can be no source.
        """
        url = url or HOMES.get(kind)
        if url is None:
            raise LibremoeError(f"a source of kind {kind!r} needs its URL")
        place = place_of(url.replace("{language}", "en"))
        label = kind if url == HOMES.get(kind) else re.sub(r"[^\w.-]", ".", place[0].removeprefix("www."))[:50]
        _check(Source(name or label, kind, url, False, key_env, float(limit), float(price)))
        local = self._on_own_network(place)
        with self._lock:
            known = self.list()
            taken = {s.name for s in known}
            if name in taken:
                raise LibremoeError(f"there is a source {name!r} already; remove it, or give another --name")
            free = next(n for i in range(1, len(known) + 2) if (n := label if i == 1 else f"{label}-{i}") not in taken)
            source = Source(name or free, kind, url, local, key_env, float(limit), float(price))
            self._write([*known, source])
        return source

    def remove(self, name: str) -> None:
        with self._lock:
            self.get(name)
            self._write([s for s in self.list() if s.name != name])

    def _write(self, sources: Sequence[Source]) -> None:
        self._kept = [*sources]
        if self.path is None:
            return
        text = "# Sources of the live mode; `libremoe live add` and `remove` write this file.\n"
        for source in sources:  # strings, booleans and numbers are written alike in TOML and JSON
            text += "\n[[source]]\n" + "".join(f"{n} = {json.dumps(v)}\n" for n, v in source.as_dict().items())
        temporary = self.path.with_suffix(".part")
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)


def _read(table: Any, path: Path) -> Source:
    fields = {f: type(getattr(Source("", "", ""), f)) for f in Source.__dataclass_fields__}
    if not isinstance(table, dict) or {"name", "kind", "url"} - set(table) or set(table) - set(fields):
        raise LibremoeError(f"{path}: each [[source]] has name, kind and url, and at most {', '.join(fields)}")
    values: dict[str, Any] = dict(table)
    for name, value in values.items():
        if fields[name] is float and type(value) is int:
            values[name] = float(value)
    for name, value in values.items():
        if type(value) is not fields[name]:
            raise LibremoeError(f"{path}: {name} = {value!r} is not of the right kind ({fields[name].__name__})")
    source = Source(**values)
    _check(source)
    return source


def _check(source: Source) -> None:
    if source.kind not in KINDS:
        raise LibremoeError(f"{source.name}: {source.kind!r} is none of {', '.join(KINDS)}")
    if not re.fullmatch(r"[\w.-]{1,60}", source.name):
        raise LibremoeError(f"{source.name[:60]!r} is no name: letters, digits, '.', '-' and '_', at most 60")
    place_of(source.url.replace("{language}", "en"))
    if source.kind == "x" and not source.key_env:
        raise LibremoeError(f"{source.name}: X answers only with a key; name its environment variable by --key-env")
