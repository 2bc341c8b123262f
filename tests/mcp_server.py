"""A small MCP server over stdio for tests: adds, waits, fails, and talks too much."""

import asyncio
import os

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
    server.run("stdio")
