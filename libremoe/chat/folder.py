"""Where a person's things are kept, and how they are opened: conversations, own personas, sources, tools.

    DIR/chat.db   DIR/personas/*.toml   DIR/live/   DIR/mcp.json
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from libremoe.chat.mcp_tools import McpServer, connect, read_config
from libremoe.chat.persona import Persona, load_personas
from libremoe.chat.tool_box import ToolBox, live_tools, local_tools, python_tool, tested_sandbox
from libremoe.errors import LibremoeError

if TYPE_CHECKING:
    from libremoe.chat.store import Store


def data_folder() -> Path:
    """$XDG_DATA_HOME/libremoe (https://specifications.freedesktop.org/basedir-spec/)."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "libremoe"


@dataclass
class Belongings:
    """What a person has. folder None: all in memory."""

    store: Store
    personas: Mapping[str, Persona]
    live: Any  # libremoe.live.Live
    folder: Path | None
    allow_python: bool = False

    async def tools(self) -> tuple[ToolBox, list[str]]:
        """The tool box, MCP servers started, and a sentence about each that did not start."""
        entries = local_tools() + (live_tools(self.live) if self.live is not None else [])
        if self.allow_python:
            entries.append(python_tool())
        servers: list[McpServer] = []
        notes: list[str] = []
        if self.folder is not None:
            servers, notes = await connect(read_config(self.folder / "mcp.json"), self._before_send)
        for server in servers:
            entries += server.tools
        return ToolBox(entries, [server.close for server in servers]), notes

    def _before_send(self, url: str, why: str, body: bytes) -> None:
        if self.live is None:
            raise LibremoeError("nothing may leave this machine: there are no live sources here")
        self.live.before_send(url, why, body)


def open_belongings(args: argparse.Namespace) -> Belongings:
    """args: data, database, ephemeral, live, allow_python. Raises LibremoeError where one of them cannot be opened."""
    from libremoe.chat.store import open_store

    if args.ephemeral and (args.database or args.data):
        raise LibremoeError("--ephemeral keeps nothing: leave out --data and --database, or leave it out")
    if args.allow_python:
        print("libremoe: trying every way out of the sandbox, half a minute", file=sys.stderr, flush=True)
        tested_sandbox()
    folder = None if args.ephemeral else args.data or data_folder()
    if folder is not None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise LibremoeError(f"--data {folder}: {error.strerror or error}") from error
    live = _open_live(folder, args.live)
    personas = load_personas(folder / "personas" if folder is not None else None)
    store = open_store(":memory:" if folder is None else args.database or folder / "chat.db")
    return Belongings(store, personas, live, folder, args.allow_python)


def _open_live(folder: Path | None, allowed: bool) -> Any:
    """The sources, which send nothing unless allowed; None where what they need is not installed."""
    try:
        from libremoe.live import Live
    except ImportError:
        if allowed:
            raise LibremoeError("--live needs the extra live: pip install 'libremoe[live]'") from None
        return None
    live = Live(folder / "live" if folder is not None else None)
    live.offline = not allowed
    return live
