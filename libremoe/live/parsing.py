"""Hands what strangers sent to parse_worker.py, one process that is used again and killed when it takes too long."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from libremoe.live.addresses import Refused

START_S = 30.0  # imports on a busy machine
MAX_ANSWER = 64 << 20


@dataclass(frozen=True)
class Item:
    """One entry of an answer: visible text only. published: Unix s, None where it does not say."""

    title: str
    url: str
    author: str
    published: float | None
    text: str


@dataclass(frozen=True)
class Parsed:
    """Items, and how many letters were taken out since nobody would have seen them."""

    items: tuple[Item, ...]
    stripped: int = 0


class Parser:
    """Safe from any thread; one text at a time. seconds: for one text, after which the process is killed."""

    def __init__(self, seconds: float = 8.0):
        self.seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def parse(self, kind: str, body: bytes, url: str, content_type: str = "") -> Parsed:
        """kind: feed, page, search, wikipedia, mastodon, bluesky or x. Raises Refused with a sentence."""
        request = {"kind": kind, "body": base64.b64encode(body).decode(), "url": url, "content_type": content_type}
        with self._lock:
            fresh = self._process is None or self._process.poll() is not None
            if fresh:
                self._start()
            answer = self._ask(json.dumps(request).encode() + b"\n", self.seconds + (START_S if fresh else 0.0))
        if answer is None:
            raise Refused(f"{urlsplit(url).hostname}: what it sent could not be read in {self.seconds:g} s")
        if "error" in answer:
            raise Refused(f"{urlsplit(url).hostname}: {answer['error']}")
        return Parsed(tuple(_item(e) for e in answer["entries"]), int(answer["stripped"]))

    def close(self) -> None:
        """Ends the process; the next parse starts another."""
        with self._lock:
            self._kill()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", "libremoe.live.parse_worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={"PATH": "", "LC_ALL": "C.UTF-8"})

    def _ask(self, line: bytes, seconds: float) -> dict[str, Any] | None:
        """One line there and one back; None, and the process is gone, where it dies or the time is over."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("the process was not started")
        killer = threading.Timer(seconds, process.kill)
        killer.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer = process.stdout.readline(MAX_ANSWER)
            if answer.endswith(b"\n"):
                return dict(json.loads(answer))
        except (OSError, ValueError):
            pass  # it died, or wrote what is no answer
        finally:
            killer.cancel()
        self._kill()
        return None

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what could not be written any more
                        pipe.close()


def _item(entry: dict[str, Any]) -> Item:
    published = entry["published"]
    sane = isinstance(published, int | float) and math.isfinite(published) and 0 < published < time.time() + 2 * 86400
    return Item(entry["title"], entry["url"], entry["author"], float(published) if sane else None, entry["text"])
