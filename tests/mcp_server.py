"""A small MCP server for tests: adds, waits, fails, and talks too much. Over its pipes, or on a port of loopback."""

import asyncio
import os
import sys

from mcp.server import MCPServer

server = MCPServer("test")


@server.tool()
def add(a: int, b: int) -> str:
    """Adds two numbers."""
    return str(a + b)


@server.tool()
async def wait(seconds: float) -> str:
    """Waits."""
    await asyncio.sleep(seconds)
    return "waited"


@server.tool()
def fail() -> str:
    """Fails."""
    raise ValueError("broken on purpose")


@server.tool()
def talk(n: int) -> str:
    """Says a lot."""
    return "x" * n


@server.tool()
def secrets() -> str:
    """Which variables of the environment it has."""
    return ",".join(sorted(os.environ))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run("stdio")
