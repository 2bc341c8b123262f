"""Reads feeds, pages and API answers in a process of its own with little memory; parsing.py starts and kills it.

It can open no connection, start no program and write no file, whatever a parser is made to try. One JSON object a line
in, one out.
"""

from __future__ import annotations

import base64
import json
import resource
import sys
from typing import Any

from libremoe.live.clean import tidy, visible
from libremoe.live.shapes import MAX_TEXT, MAX_TITLE, entries

MEMORY_BYTES = 1 << 30
_FORBIDDEN = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "subprocess.Popen", "os.exec",
              "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.remove", "os.rename", "os.mkdir", "os.rmdir")


def _forbid(event: str, args: tuple[Any, ...]) -> None:
    if event in _FORBIDDEN:
        raise PermissionError(f"{event} has no place where pages are read")
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        raise PermissionError("no file is written where pages are read")


def answer(line: str) -> dict[str, Any]:
    """{"entries": [...], "stripped": letters taken out because nobody sees them} or {"error": a sentence}."""
    request = json.loads(line)
    try:
        found = entries(request["kind"], base64.b64decode(request["body"]), request["url"], request["content_type"])
    except MemoryError:
        return {"error": "needs too much memory"}
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, OSError) as error:
        return {"error": (str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")[:300]}
    stripped, out = 0, []
    for entry in found:
        stripped += int(entry.get("hidden", 0))
        clean = {}
        for name, most in (("title", MAX_TITLE), ("author", MAX_TITLE), ("text", MAX_TEXT)):
            text, removed = visible(str(entry.get(name) or ""))
            clean[name] = tidy(text)[:most] if name == "text" else " ".join(text.split())[:most]
            stripped += removed
        out.append({**clean, "url": str(entry.get("url") or "")[:4096], "published": entry.get("published")})
    return {"entries": out, "stripped": stripped}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import feedparser  # noqa: F401  imported before the doors close
    import lxml.html  # noqa: F401
    import trafilatura  # noqa: F401

    sys.addaudithook(_forbid)
    for line in sys.stdin:
        print(json.dumps(answer(line)), flush=True)


if __name__ == "__main__":
    main()
