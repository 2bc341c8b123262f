"""The tools that an answer may call: arithmetic, dates, units, live sources, Python in the sandbox, MCP servers.

What a tool may do beyond this process is said of it: `acts` where bytes leave or code runs, so that the person is
asked; `reads` where it brings text that others wrote, after which the model calls nothing more (session.py).
"""

from __future__ import annotations

import asyncio
import datetime
import json
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

from libremoe import sandbox
from libremoe.chat.calculator import calculate
from libremoe.chat.message import Tool, ToolCall
from libremoe.chat.units import convert
from libremoe.errors import LibremoeError

MAX_ARGUMENTS = 100_000  # characters of a call's JSON
MAX_RESULT = 100_000  # characters of a result that are kept
SEARCH_S = 20.0
PYTHON_LIMITS = sandbox.Limits(wall_s=20.0, cpu_s=15, memory_bytes=512 << 20, output_bytes=64 << 10)


@dataclass(frozen=True)
class Entry:
    """A tool and what runs it. run: arguments and the conversation's id in, text out; it raises LibremoeError for what
    is wrong with the arguments. there: whether it is of any use now; always, by default."""

    tool: Tool
    run: Callable[[dict[str, Any], str], Awaitable[str]]
    acts: bool = False
    reads: bool = False
    there: Callable[[], bool] = lambda: True


class ToolBox:
    """Tools by name. close() ends what belongs to them."""

    def __init__(self, entries: Sequence[Entry], closes: Sequence[Callable[[], Awaitable[None]]] = ()):
        self.entries = {entry.tool.name: entry for entry in entries}
        self._closes = closes

    def names(self) -> list[str]:
        return list(self.entries)

    def offered(self, names: Sequence[str]) -> list[Tool]:
        """Those of these names that there are, in the order of the box."""
        return [entry.tool for name, entry in self.entries.items() if name in names and entry.there()]

    def described(self) -> list[dict[str, Any]]:
        """For people: name, description, whether it asks first."""
        return [{"name": name, "description": e.tool.description, "acts": e.acts, "reads": e.reads}
                for name, e in self.entries.items()]

    def acts(self, name: str) -> bool:
        return name not in self.entries or self.entries[name].acts

    def reads(self, name: str) -> bool:
        return name not in self.entries or self.entries[name].reads

    async def run(self, call: ToolCall, tag: str = "") -> str:
        """The result's text. tag: the conversation's id, under which the ledger notes what leaves.

        Raises LibremoeError where the tool is not there, or the call is wrong or fails."""
        entry = self.entries.get(call.name)
        if entry is None:
            raise LibremoeError(f"there is no tool {call.name[:80]!r}")
        found = await entry.run(_arguments(call.arguments), tag)
        return found if len(found) <= MAX_RESULT else found[:MAX_RESULT] + "\n[cut here]"

    async def close(self) -> None:
        for close in self._closes:
            await close()


def _arguments(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if len(text) <= MAX_ARGUMENTS else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise LibremoeError("the arguments are not a JSON object")
    return found


def _tool(name: str, description: str, required: dict[str, str], optional: dict[str, str] | None = None) -> Tool:
    properties = {key: {"type": kind} for key, kind in {**required, **(optional or {})}.items()}
    return Tool(name, description, {"type": "object", "properties": properties, "required": list(required)})


def local_tools() -> list[Entry]:
    """Those that need nothing and touch nothing, by the names and arguments that libremoe's models are trained on."""
    return [
        _local(_tool("calculator", "Works out an arithmetic expression.", {"expression": "string"}), _calculator),
        _local(_tool("convert_unit", "Converts a quantity to another unit.",
                     {"value": "number", "unit": "string", "to": "string"}), _convert),
        _local(_tool("clock", "The date and time now.", {}, {"time_zone": "string"}), _clock),
        _local(_tool("add_days", "The date some days later.", {"date": "string", "days": "integer"}), _add_days),
        _local(_tool("days_between", "Days from one date to another.", {"start": "string", "end": "string"}),
               _days_between),
        _local(_tool("weekday", "The day of the week of a date.", {"date": "string"}), _weekday),
    ]


def _local(tool: Tool, function: Callable[[dict[str, Any]], str]) -> Entry:
    async def run(given: dict[str, Any], tag: str) -> str:
        return function(given)

    return Entry(tool, run)


def _calculator(given: dict[str, Any]) -> str:
    return calculate(_text(given, "expression"))


def _convert(given: dict[str, Any]) -> str:
    value = given.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)) > 100:
        raise LibremoeError("value must be a number")
    try:
        number = Fraction(str(value).replace(",", "."))
        if number.numerator.bit_length() > 4000 or number.denominator.bit_length() > 4000:
            raise ValueError
    except (ValueError, ZeroDivisionError, OverflowError):
        raise LibremoeError(f"value is {value!r}; it must be a number") from None
    return convert(number, _text(given, "unit"), _text(given, "to"))


def _clock(given: dict[str, Any]) -> str:
    name = given.get("time_zone")
    if name is None:
        now = datetime.datetime.now().astimezone()
    else:
        try:
            now = datetime.datetime.now(ZoneInfo(_text(given, "time_zone")))
        except (KeyError, ValueError, OSError):  # what is no zone, and what is no name of one
            raise LibremoeError(f"there is no time zone {str(name)[:40]!r}; one is Europe/Paris") from None
    return now.strftime("%A %Y-%m-%d %H:%M:%S %Z (UTC%z)")


def _add_days(given: dict[str, Any]) -> str:
    days = given.get("days")
    if not isinstance(days, int) or isinstance(days, bool):
        raise LibremoeError("days must be a whole number")
    try:
        return (_date(given, "date") + datetime.timedelta(days=days)).isoformat()
    except OverflowError:
        raise LibremoeError("that date is outside the years 1 to 9999") from None


def _days_between(given: dict[str, Any]) -> str:
    return str((_date(given, "end") - _date(given, "start")).days)


def _weekday(given: dict[str, Any]) -> str:
    return _date(given, "date").strftime("%A")


def _text(given: dict[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not value.strip():
        raise LibremoeError(f"{name} must be a text")
    return value


def _date(given: dict[str, Any], name: str) -> datetime.date:
    text = _text(given, name).strip()
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise LibremoeError(f"{name} is {text[:40]!r}; a date is written 2026-11-24") from None


def live_tools(live: Any, language: str = "en") -> list[Entry]:
    """Search in the person's sources, and open a page. live: libremoe.live.Live."""

    async def search(given: dict[str, Any], tag: str) -> str:
        found = await live.gather(_text(given, "query"), language, SEARCH_S, tag=tag)
        lines = [f"[{one.number}] {one.title}: {' '.join(one.text.split())}" for one in found.excerpts]
        return "\n".join(lines or [*found.notes, "nothing was found"])

    async def open_page(given: dict[str, Any], tag: str) -> str:
        page = await live.open_page(_text(given, "url"), tag=tag)
        return f"{page.title}\n{page.url}\n\n{page.text}"

    return [
        Entry(_tool("search", "Searches the documents and gives numbered excerpts.", {"query": "string"}), search,
              acts=True, reads=True, there=lambda: bool(live.sources.list())),
        Entry(_tool("open_page", "Reads a web page.", {"url": "string"}), open_page, acts=True, reads=True),
    ]


def python_tool() -> Entry:
    """Run Python in the sandbox. The caller has seen the sandbox's self-test pass (tested_sandbox)."""
    tool = _tool("run_python", "Runs a Python program and gives what it prints.", {"code": "string"})
    return Entry(tool, _run_python, acts=True)


def tested_sandbox() -> None:
    """Tries every known way out. Raises LibremoeError where there is no sandbox here, or it does not hold."""
    from libremoe.sandbox import probes

    probes.check()
    leaks = [f"{found.group}: {found.name}" for found in probes.try_all() if not found.stopped]
    if leaks:
        raise LibremoeError(f"the sandbox does not hold here ({leaks[0]}), so Python is not run; "
                            "libremoe sandbox --self-test says more")


async def _run_python(given: dict[str, Any], tag: str) -> str:
    """In a thread of its own, which a stop ends together with the program."""
    code, lock, stopped = _text(given, "code"), threading.Lock(), threading.Event()
    running: list[sandbox.Running] = []

    def work() -> sandbox.Outcome:
        with sandbox.start(code, limits=PYTHON_LIMITS) as program:
            with lock:
                running.append(program)
                if stopped.is_set():
                    program.kill()
            return program.wait()

    try:
        outcome = await asyncio.to_thread(work)
    except asyncio.CancelledError:
        with lock:
            stopped.set()
            for program in running:
                program.kill()
        raise
    parts = [outcome.stdout.decode(errors="replace"), outcome.stderr.decode(errors="replace")]
    if outcome.how != "exited":
        parts.append(f"[ended: {outcome.how}]")
    elif outcome.code:
        parts.append(f"[exit status {outcome.code}]")
    return "\n".join(part.rstrip() for part in parts if part.strip()) or "(it printed nothing)"
