"""Tools of MCP servers (https://modelcontextprotocol.io), from a file in the form that other applications use:

    {"mcpServers": {"files": {"command": "mcp-files", "args": ["/home/me/notes"]},
                    "wiki": {"url": "http://127.0.0.1:9000/mcp", "headers": {"Authorization": "Bearer ..."}}}}

A server is a program of the person's choice; what it answers is bounded in size and time, and is others' text. One that
does not start is left out, and said. Bytes to a server by URL go through `before_send`, where the ledger notes them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libremoe.chat.message import Tool
from libremoe.chat.tool_box import Entry
from libremoe.errors import LibremoeError

MAX_FILE_BYTES = 1 << 20
MAX_SERVERS = 16
MAX_TOOLS = 64  # of one server
MAX_DESCRIPTION = 1000  # characters
MAX_SCHEMA = 20_000  # characters of a tool's JSON schema
START_S = 20.0
CALL_S = 60.0
STOP_S = 5.0
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
BeforeSend = Callable[[str, str, bytes], None]  # URL, why, body; raises LibremoeError where nothing may leave

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerConfig:
    """One entry of the file: a command, or a URL."""

    name: str
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


def read_config(path: Path) -> list[ServerConfig]:
    """The servers of a file; none where there is no file. Raises LibremoeError naming the file and the field."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise LibremoeError(f"{path}: is longer than {MAX_FILE_BYTES} bytes")
        entries = json.loads(content)["mcpServers"]
        if not isinstance(entries, dict) or len(entries) > MAX_SERVERS:
            raise LibremoeError(f"{path}: mcpServers must be an object of at most {MAX_SERVERS} servers")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LibremoeError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LibremoeError(f'{path}: must be JSON as {{"mcpServers": {{"files": {{"command": "..."}}}}}}') from None
    return [_config(path, name, entry) for name, entry in entries.items()]


def _config(path: Path, name: str, entry: Any) -> ServerConfig:
    where = f"{path}: mcpServers.{name[:40]}"
    if not _NAME.fullmatch(name):
        raise LibremoeError(f"{where}: a name has letters, digits, - and _, at most 32")
    if not isinstance(entry, dict) or ("command" in entry) == ("url" in entry):
        raise LibremoeError(f"{where} must have either a command or a url")
    texts = {k: entry.get(k, "") for k in ("command", "url")}
    maps = {k: entry.get(k, {}) for k in ("env", "headers")}
    args = entry.get("args", [])
    if not all(isinstance(t, str) for t in texts.values()) or not isinstance(args, list) or not all(
            isinstance(a, str) for a in args):
        raise LibremoeError(f"{where}: command and url are texts, args is a list of texts")
    if not all(isinstance(m, dict) and all(isinstance(v, str) for v in m.values()) for m in maps.values()):
        raise LibremoeError(f"{where}: env and headers are objects of texts")
    if texts["url"] and not texts["url"].startswith(("http://", "https://")):
        raise LibremoeError(f"{where}: url must begin with http:// or https://")
    return ServerConfig(name, texts["command"], tuple(args), maps["env"], texts["url"], maps["headers"])


class McpServer:
    """One connected server. Its connection lives in a task of its own, as the library's scopes ask for."""

    def __init__(self, config: ServerConfig, before_send: BeforeSend):
        self.config, self.before_send = config, before_send
        self.tools: list[Entry] = []
        self._client: Any = None
        self._ready: asyncio.Future[None] | None = None
        self._end = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect and ask for its tools. Raises LibremoeError where that fails or takes longer than START_S."""
        self._ready = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live())
        try:
            async with asyncio.timeout(START_S):
                await asyncio.shield(self._ready)
        except TimeoutError:
            await self.close()
            raise LibremoeError(f"the MCP server {self.config.name} did not start within {START_S:g} s") from None

    async def close(self) -> None:
        self._end.set()
        if self._task is not None:
            _, pending = await asyncio.wait({self._task}, timeout=STOP_S)
            for task in pending:
                task.cancel()

    async def _live(self) -> None:
        import anyio
        from mcp import MCPError

        try:
            async with self._connection() as client:
                found = (await client.list_tools()).tools[:MAX_TOOLS]
                self.tools = [entry for tool in found if (entry := self._entry(tool)) is not None]
                self._client = client
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(None)
                await self._end.wait()
        except (OSError, ValueError, RuntimeError, MCPError, LibremoeError, anyio.BrokenResourceError,
                anyio.ClosedResourceError, ExceptionGroup) as error:
            if self._ready is not None and not self._ready.done():
                self._ready.set_exception(LibremoeError(
                    f"the MCP server {self.config.name} could not be started: {_first(error)}"))
            else:
                log.warning("the MCP server %s ended: %s", self.config.name, type(_first(error)).__name__)
        finally:
            self._client = None
            if self._ready is not None and not self._ready.done():
                self._ready.cancel()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        try:
            from mcp import Client, StdioServerParameters
            from mcp.client.streamable_http import streamable_http_client
        except ImportError:
            raise LibremoeError("MCP servers need the extra mcp: pip install 'libremoe[mcp]'") from None
        if self.config.command:
            server = StdioServerParameters(command=self.config.command, args=list(self.config.args),
                                           env={**_plain_environment(), **self.config.env})
            async with Client(server, read_timeout_seconds=CALL_S) as client:
                yield client
            return
        import httpx2

        async def note(request: httpx2.Request) -> None:
            self.before_send(str(request.url), f"MCP server {self.config.name}", await request.aread())

        async with httpx2.AsyncClient(headers=dict(self.config.headers), timeout=CALL_S, trust_env=False,
                                      event_hooks={"request": [note]}) as http, Client(
                streamable_http_client(self.config.url, http_client=http), read_timeout_seconds=CALL_S) as client:
            yield client

    def _entry(self, tool: Any) -> Entry | None:
        """A tool of the server as one of ours; None where its schema is too long or its name cannot be written."""
        schema = tool.input_schema
        name = f"mcp_{self.config.name}_{tool.name}"
        if len(json.dumps(schema)) > MAX_SCHEMA or not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name):
            return None
        description = " ".join((tool.description or "").split())[:MAX_DESCRIPTION]

        async def run(given: dict[str, Any], tag: str) -> str:
            return await self._call(tool.name, given)

        return Entry(Tool(name, description, schema), run, acts=True, reads=True)

    async def _call(self, name: str, given: dict[str, Any]) -> str:
        import anyio
        from mcp import MCPError

        if self._client is None:
            raise LibremoeError(f"the MCP server {self.config.name} has ended")
        try:
            async with asyncio.timeout(CALL_S):
                result = await self._client.call_tool(name, given)
        except TimeoutError:
            raise LibremoeError(f"{name} took longer than {CALL_S:g} s") from None
        except (OSError, ValueError, RuntimeError, MCPError, anyio.BrokenResourceError,
                anyio.ClosedResourceError) as error:
            raise LibremoeError(f"{name} failed: {error}") from error
        text = "\n".join(part.text for part in result.content if getattr(part, "type", "") == "text")
        if result.is_error:
            raise LibremoeError(text[:2000] or f"{name} failed")
        return text or "(no text)"


def _plain_environment() -> dict[str, str]:
    """What a program needs to run, and no secrets of ours."""
    needed = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER")
    return {name: os.environ[name] for name in needed if name in os.environ}


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def connect(configs: Sequence[ServerConfig], before_send: BeforeSend) -> tuple[list[McpServer], list[str]]:
    """Those that start, all at once, and a sentence about each that does not."""
    servers = [McpServer(config, before_send) for config in configs]
    results = await asyncio.gather(*(server.start() for server in servers), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, LibremoeError):
            raise result
    up = [server for server, result in zip(servers, results, strict=True) if result is None]
    return up, [str(result) for result in results if result is not None]
