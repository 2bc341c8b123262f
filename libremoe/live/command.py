"""`libremoe live`: sources, the archive, the ledger and the offline switch, from the command line."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from libremoe.errors import LibremoeError
from libremoe.memory import parse_bytes
from libremoe.progress import size_text

if TYPE_CHECKING:
    from libremoe.live.live import Live

LEAST_ARCHIVE = 1 << 20  # bytes


def run(args: argparse.Namespace) -> int:
    """One action. Returns 0; 1 where a refresh failed for some source."""
    try:
        from libremoe.live.live import Live
    except ImportError as error:
        raise LibremoeError(f"live sources need {error.name}: pip install 'libremoe[live]'") from None
    # where serve and chat keep a person's things, too
    data = args.data or Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "libremoe"
    live = Live(data / "live")
    try:
        return int(_ACTIONS[args.action](live, args))
    finally:
        live.close()


def _show(args: argparse.Namespace, value: Any, lines: list[str]) -> int:
    print(json.dumps(value, ensure_ascii=False) if args.json else "\n".join(lines))
    return 0


def _add(live: Live, args: argparse.Namespace) -> int:
    source = asyncio.run(live.add(args.url, args.kind, args.name, args.key_env, args.limit))
    where = ", on your own network" if source.local else ""
    return _show(args, source.as_dict(), [f"{source.name}: {source.kind} {source.url}{where}"])


def _list(live: Live, args: argparse.Namespace) -> int:
    found, lines = [], []
    for source in live.sources.list():
        visit = live.archive.visit(source.name)
        spent = live.ledger.spent(source.name)
        found.append({**source.as_dict(), "read": visit.time or None, "error": visit.error, "spent": spent})
        said = [f"{source.name}  {source.kind}  {source.url}"]
        said += [f"read {_when(visit.time)}"] if visit.time else []
        said += [visit.error] if visit.error else []
        said += [f"{spent:.2f} of {source.limit:.2f} dollars spent this month"] if source.kind == "x" else []
        lines.append("  ".join(said))
    lines = lines or ["no source yet: libremoe live add URL"]
    return _show(args, found, [*lines, _room(live)])


def _room(live: Live) -> str:
    archive = live.archive
    return f"archive: {archive.count()} texts, {size_text(archive.size())} of at most {size_text(archive.limit)}"


def _archive(live: Live, args: argparse.Namespace) -> int:
    if args.limit is not None:
        limit = parse_bytes(args.limit)
        if limit < LEAST_ARCHIVE:
            raise LibremoeError(f"--limit {args.limit}: an archive needs at least {size_text(LEAST_ARCHIVE)}")
        live.archive.limit = limit
    state = {"texts": live.archive.count(), "bytes": live.archive.size(), "limit": live.archive.limit}
    return _show(args, state, [_room(live)])


def _remove(live: Live, args: argparse.Namespace) -> int:
    live.sources.remove(args.name)
    erased = live.archive.forget(args.name) if args.erase else 0
    return _show(args, {"removed": args.name, "erased": erased},
                 [f"removed {args.name}" + (f", and erased {erased} texts" if args.erase else "")])


def _refresh(live: Live, args: argparse.Namespace) -> int:
    if live.offline:
        raise LibremoeError("offline: libremoe live offline off allows requests again")
    found = asyncio.run(live.refresh(args.names))
    lines = [f"{name}: {new if isinstance(new, str) else f'{new} new'}" for name, new in found.items()]
    _show(args, found, lines or ["no feed or page to read: libremoe live add URL"])
    return 1 if any(isinstance(new, str) for new in found.values()) else 0


def _search(live: Live, args: argparse.Namespace) -> int:
    found = live.archive.search(args.query, max(1, args.limit))
    lines = []
    for e in found:
        when = _when(e.published or e.fetched)
        lines.append(f"[{e.number}] {e.title or e.author}  ({e.source}, {when})  {e.url}")
        lines.append(f"    {' '.join(e.text.split())}")
    return _show(args, [e.as_dict() for e in found], lines or ["nothing in the archive has these words"])


def _ledger(live: Live, args: argparse.Namespace) -> int:
    if args.clear:
        cleared = live.ledger.forget()
        return _show(args, {"erased": cleared}, [f"erased what {cleared} requests asked"])
    found = live.ledger.entries(max(1, args.limit))
    lines = [f"{_when(e.time)}  {e.host}  {e.why}  out {e.bytes_out}  in {e.bytes_in}  {e.status}\n    {e.sent}"
             for e in found]
    return _show(args, [e.as_dict() for e in found], lines or ["nothing has left this machine"])


def _offline(live: Live, args: argparse.Namespace) -> int:
    if args.switch:
        live.keep_offline(args.switch == "on")
    state = "offline: no socket is opened" if live.offline else "online: configured sources may be asked"
    return _show(args, {"offline": live.offline}, [state])


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


_ACTIONS = {"add": _add, "list": _list, "remove": _remove, "refresh": _refresh, "search": _search, "ledger": _ledger,
            "offline": _offline, "archive": _archive}
