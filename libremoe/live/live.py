"""A question goes to all sources at once, what they send into the archive, and the best of the archive comes back.

The plan is made here, from what a person configured and asked. A URL or an order in a page changes nothing: pages are
opened only where a person names them, or where a search that the person configured lists them as results.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from libremoe.errors import LibremoeError
from libremoe.french import translated
from libremoe.live.addresses import Place, Refused, Resolver, is_literal, is_local, is_public, resolve
from libremoe.live.agreement import agreement
from libremoe.live.archive import Archive, Visit, keywords
from libremoe.live.fetch import DEFAULT, Fetched, Fetcher, Limits, parse, place_of
from libremoe.live.ledger import Ledger
from libremoe.live.parsing import Item, Parsed, Parser
from libremoe.live.reasons import noted
from libremoe.live.sources import ASKED, HOMES, Source, Sources, question
from libremoe.live.values import Excerpt, Findings

FRESH_DAYS = 7
STALE_S = 600.0  # a feed that was read less long ago is not read again for a question
REFRESH_S = 900.0
MAX_EXCERPTS = 8
MAX_OF_PAGE = 2  # excerpts of one page
RESULT_PAGES = 3  # results of a web search that are opened
MAX_PAGE = 20_000  # characters of a page that is opened alone
MAX_QUERY = 200  # characters


@dataclass
class _Notes:
    """For people: what went wrong or was taken out, by source."""

    language: str = "en"
    lines: list[str] = field(default_factory=list)

    def say(self, note: str, **about: object) -> None:
        self.lines.append(noted(note, self.language, **about))

    def stripped(self, name: str, parsed: Parsed) -> None:
        if parsed.stripped:
            self.say("stripped", name=name, n=parsed.stripped)

    def failed(self, name: str, error: object) -> None:
        """error mostly begins with the host, and a source's name is its host unless a person chose another."""
        said = translated(str(error), self.language)
        self.say("failed", name=name, error=said.removeprefix(f"{name} "))


class Live:
    """All of the live mode of one person. Nothing is requested before something is asked.

    folder: where sources.toml, archive.sqlite and ledger.sqlite lie; None keeps all in memory. resolver, limits: for
    tests.
    """

    def __init__(self, folder: Path | None, resolver: Resolver = resolve, limits: Limits = DEFAULT,
                 clock: Callable[[], float] = time.time):
        self.folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._clock = clock
        self._offline = False
        self.sources = Sources(folder / "sources.toml" if folder else None, self._on_own_network)
        self.archive = Archive(folder / "archive.sqlite" if folder else ":memory:", clock)
        self.ledger = Ledger(folder / "ledger.sqlite" if folder else ":memory:", clock)
        self.fetcher = Fetcher(self.ledger, lambda: self.offline, resolver, limits)
        self.parser = Parser()

    def close(self) -> None:
        self.parser.close()
        self.archive.close()
        self.ledger.close()

    @property
    def offline(self) -> bool:
        """Whether no socket may be opened: said for this process, or kept by keep_offline for all."""
        return self._offline or self._kept_offline()

    @offline.setter
    def offline(self, value: bool) -> None:
        """For this process; what is kept holds nevertheless."""
        self._offline = value

    def _kept_offline(self) -> bool:
        return self.folder is not None and (self.folder / "offline").exists()

    def keep_offline(self, value: bool) -> None:
        """The switch as a file, so that it holds for a server that runs and all that start later."""
        if self.folder is None:
            self._offline = value
        elif value:
            (self.folder / "offline").touch()
        else:
            (self.folder / "offline").unlink(missing_ok=True)

    def forget(self, tag: str) -> None:
        """Erases what was asked for one conversation from the ledger; that bytes went to a host stays."""
        self.ledger.forget(tag)

    def before_send(self, url: str, why: str, body: bytes) -> None:
        """For others that send by their own means, such as MCP servers: a line of the ledger. Raises if offline."""
        if self.offline:
            raise Refused("offline: nothing may leave this machine")
        parsed = parse(url)
        line = self.ledger.begin(parsed.host, why, f"POST {parsed} {body.decode('utf-8', 'replace')}")
        self.ledger.finish(line, "sent", len(body), 0)

    async def add(self, url: str, kind: str | None = None, name: str | None = None, key_env: str = "",
                  limit: float = 0.0) -> Source:
        """Adds a source: a URL, or wikipedia, bluesky or x. Where no kind is given the URL is read once to tell."""
        if url in HOMES:
            kind, url = kind or url, HOMES[url]
        if kind is None:
            place = place_of(url)
            local = await asyncio.to_thread(self._on_own_network, place)
            kind = await self._kind_of(url, place if local else None)
        return await asyncio.to_thread(self.sources.add, kind, name, url, key_env, limit)

    def _on_own_network(self, place: Place) -> bool:
        """Whether a place that a person adds is local; decided now, so that a public name cannot become local later."""
        host, port = place
        if is_public(host):
            return False
        if is_local(host) or host == "localhost":
            return True
        if is_literal(host):
            raise Refused(f"{host} is an address that is neither public nor of the own network")
        if self.offline:
            return False
        try:
            found = asyncio.run(_resolved(self.fetcher.resolver, host, port))
        except (OSError, UnicodeError):
            return False  # it may have an address later, and then only a public one
        if found and all(is_local(a) for a in found):
            return True
        if not found or not all(is_public(a) for a in found):
            raise Refused(f"{host} has an address that is neither public nor of the own network: {', '.join(found)}")
        return False

    async def _kind_of(self, url: str, local: Place | None) -> str:
        if self.offline:
            raise LibremoeError("offline: say what this is by --kind, such as --kind feed")
        got = await self.fetcher.get(url, why="add a source", local=local)
        try:
            await self._parse("feed", got)
        except Refused:
            return "page"
        return "feed"

    async def gather(self, asked: str, language: str = "en", deadline_s: float = 10.0, tag: str = "") -> Findings:
        """What the sources and the archive know about a question, within deadline_s. language: en or fr.

        tag: the conversation, so that forget() can erase what was asked for it.
        """
        query = " ".join(keywords(asked))[:MAX_QUERY]
        notes = _Notes(language)
        if not query:
            return Findings(notes=[noted("no_words", language)])
        sources = self.sources.list()
        if self.offline:
            notes.say("offline")
        elif not sources:
            notes.say("no_sources")
        else:
            await self._ask_all(sources, query, language, deadline_s, tag, notes)
        found = await asyncio.to_thread(self.archive.search, query, 4 * MAX_EXCERPTS)
        excerpts = _best(found)
        if not excerpts:
            notes.say("nothing", query=query)
        sorted_out = await asyncio.to_thread(agreement, excerpts)
        fresh = [e for e in excerpts if e.published and self._clock() - e.published < FRESH_DAYS * 86400]
        if excerpts and not fresh:
            newest = max((e.published for e in excerpts if e.published), default=None)
            if newest:
                notes.say("stale_since", date=time.strftime("%Y-%m-%d", time.gmtime(newest)))
            else:
                notes.say("stale")
        return Findings(excerpts, notes.lines, bool(fresh), [*sorted_out.facts], [*sorted_out.opinions],
                        [*sorted_out.conflicts])

    async def _ask_all(self, sources: Sequence[Source], query: str, language: str, deadline_s: float, tag: str,
                       notes: _Notes) -> None:
        """All sources at once; those that are not done by the deadline are left, and named."""
        now = self._clock()
        work: dict[str, Coroutine[Any, Any, object]] = {}
        for source in sources:
            if source.kind in ASKED:
                work[source.name] = self._ask(source, query, language, tag, notes)
                continue
            visit = self.archive.visit(source.name)
            if now - visit.time > STALE_S:
                work[source.name] = self._read(source, notes, tag)
            elif visit.error:
                notes.failed(source.name, visit.error)
        tasks = {asyncio.create_task(job): name for name, job in work.items()}
        if not tasks:
            return
        try:
            done, late = await asyncio.wait(tasks, timeout=deadline_s)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise
        for task in late:
            task.cancel()
            notes.say("late", name=tasks[task], seconds=f"{deadline_s:g}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await asyncio.gather(*late, return_exceptions=True)
        for task in done:
            if error := task.exception():
                if not isinstance(error, LibremoeError):
                    raise error
                notes.failed(tasks[task], error)

    async def _ask(self, source: Source, query: str, language: str, tag: str, notes: _Notes) -> None:
        request = question(source, query, language)
        if request.cost:
            await asyncio.to_thread(self.ledger.reserve, source.name, request.cost, source.limit)
        posts = 0
        try:
            got = await self.fetcher.get(request.url, request.headers, f"search: {source.name}", tag, source.place)
            posts = -1  # answered: what it cost is known when it was read
            parsed = await self._parse(source.kind, got)
            posts = len(parsed.items)
        finally:
            if request.cost and posts >= 0:
                unused = request.cost - posts * source.price
                await asyncio.shield(asyncio.to_thread(self.ledger.give_back, source.name, max(0.0, unused)))
        notes.stripped(source.name, parsed)
        if source.kind == "search":
            await self._open_results(source, parsed, tag, notes)
        else:
            await asyncio.to_thread(self.archive.add, source.name, source.kind, parsed.items, got.fetched_at)

    async def _open_results(self, source: Source, results: Parsed, tag: str, notes: _Notes) -> None:
        """Keeps results as they are listed, then opens the first of them."""
        now = self._clock()
        good = [item for item in results.items if _is_web(item.url)]
        await asyncio.to_thread(self.archive.add, source.name, source.kind, good, now)

        async def page(url: str) -> None:
            try:
                got = await self.fetcher.get(url, why=f"result of {source.name}", tag=tag)
                parsed = await self._parse("page", got)
            except Refused as refused:
                notes.lines.append(translated(str(refused), notes.language))
                return
            notes.stripped(urlsplit(url).hostname or url, parsed)
            await asyncio.to_thread(self.archive.add, source.name, "page", parsed.items, got.fetched_at)

        await asyncio.gather(*(page(item.url) for item in good[:RESULT_PAGES]))

    async def _read(self, source: Source, notes: _Notes, tag: str = "") -> int:
        """Reads a feed or page where it has changed. Returns how much is new. Raises Refused."""
        before = await asyncio.to_thread(self.archive.visit, source.name)
        if before.url != source.url:
            before = Visit(source.url)
        headers = {name: value for name, value in (("If-None-Match", before.etag),
                                                   ("If-Modified-Since", before.modified)) if value}
        late = before.error or f"{place_of(source.url)[0]} did not answer in time"
        visit, new = replace(before, time=self._clock(), error=late), 0  # what is kept where a deadline ends this
        try:
            got = await self.fetcher.get(source.url, headers, f"read: {source.name}", tag, source.place)
            visit = replace(visit, error="")
            if got.status != 304:
                parsed = await self._parse(source.kind, got)
                new = await asyncio.to_thread(self.archive.add, source.name, source.kind, parsed.items, got.fetched_at)
                notes.stripped(source.name, parsed)
                visit = replace(visit, etag=got.headers.get("etag", "")[:300],
                                modified=got.headers.get("last-modified", "")[:100])
        except Refused as refused:
            visit = replace(visit, error=str(refused))
            raise
        finally:
            await asyncio.shield(asyncio.to_thread(self.archive.visited, source.name, visit))
        return new

    async def refresh(self, names: Sequence[str] = ()) -> dict[str, int | str]:
        """Reads feeds and pages (all, or those named). By source: how much is new, or what went wrong."""
        known = [self.sources.get(n) for n in names] or [s for s in self.sources.list() if s.kind not in ASKED]
        notes = _Notes()
        found: dict[str, int | str] = {}

        async def one(source: Source) -> None:
            try:
                if source.kind in ASKED:
                    raise Refused(f"{source.name} is asked by questions; there is nothing to refresh")
                found[source.name] = await self._read(source, notes)
            except LibremoeError as error:
                found[source.name] = str(error)

        await asyncio.gather(*(one(s) for s in known))
        return {s.name: found[s.name] for s in known}

    async def refresher(self, every_s: float = REFRESH_S) -> None:
        """Refreshes until it is cancelled; for a server to run beside its other work."""
        while True:
            if not self.offline:
                await self.refresh()
            await asyncio.sleep(every_s)

    async def open_page(self, url: str, tag: str = "") -> Item:
        """The text of a page that a person named, its beginning where it is long; all of it is kept. Raises Refused."""
        got = await self.fetcher.get(url, why="open a page", tag=tag)
        parsed = await self._parse("page", got)
        await asyncio.to_thread(self.archive.add, "page", "page", parsed.items, got.fetched_at)
        page = parsed.items[0]
        return replace(page, text=page.text[:MAX_PAGE])

    async def _parse(self, kind: str, got: Fetched) -> Parsed:
        return await asyncio.to_thread(self.parser.parse, kind, got.body, got.url, got.content_type)


async def _resolved(resolver: Resolver, host: str, port: int) -> list[str]:
    return await resolver(host, port)


def _is_web(url: str) -> bool:
    try:
        parse(url)
    except Refused:
        return False
    return True


def _best(found: list[Excerpt]) -> list[Excerpt]:
    """The first ones, few of one page, numbered anew."""
    chosen: list[Excerpt] = []
    for one in found:
        if sum(o.url == one.url for o in chosen) < MAX_OF_PAGE and len(chosen) < MAX_EXCERPTS:
            chosen.append(replace(one, number=len(chosen) + 1))
    return chosen
