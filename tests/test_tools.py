"""The tool box: exact where it can be, bounded in size and time, ended by a stop. MCP over a real server's pipes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libremoe import sandbox
from libremoe.chat import mcp_tools
from libremoe.chat.calculator import calculate
from libremoe.chat.mcp_tools import McpServer, ServerConfig, connect, read_config
from libremoe.chat.message import ToolCall
from libremoe.chat.tool_box import MAX_RESULT, ToolBox, local_tools, python_tool
from libremoe.chat.units import _TABLE, convert
from libremoe.errors import LibremoeError

SERVER = str(Path(__file__).with_name("mcp_server.py"))


def run(name: str, arguments: Any, box: ToolBox | None = None) -> str:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return asyncio.run((box or ToolBox(local_tools())).run(ToolCall("c", name, text)))


APPLY = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}
Sum = tuple[str, Fraction | None]  # an expression, and its value; None where something is divided by zero


def _joined(parts: tuple[Sum, str, Sum]) -> Sum:
    (left, a), op, (right, b) = parts
    known = a is not None and b is not None and (op != "/" or b != 0)
    return f"({left} {op} {right})", APPLY[op](a, b) if known else None


NUMBERS = (st.integers(-10**6, 10**6) | st.decimals(-1000, 1000, places=3)).map(lambda n: (f"({n})", Fraction(str(n))))
SUMS = st.recursive(NUMBERS, lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(_joined), max_leaves=8)


@given(SUMS)
def test_arithmetic_is_exact(made: Sum) -> None:
    expression, value = made
    if value is None:
        with pytest.raises(LibremoeError, match="zero"):
            calculate(expression)
        return
    found = Fraction(calculate(expression))
    assert found == value if value.denominator == 1 else abs(found - value) <= abs(value) * Fraction(1, 10**11)


@pytest.mark.parametrize(("expression", "value"), [
    ("0.1+0.2", "0.3"), ("2^10", "1024"), ("7 × 6", "42"), ("10 ÷ 4", "2.5"), ("sqrt(49)", "7"), ("-7 % 3", "2"),
    ("2**200", str(2**200)), ("factorial(20)", "2432902008176640000"), ("round(2.5)", "2"),
    ("max(1/3, 0.3)", "0.333333333333"), ("sin(pi/2)", "1"), ("3 =", "3"), ("1e3", "1000"),
])
def test_values(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize("expression", [
    "9**9**9", "1/0", "__import__('os')", "a.b", "factorial(10**9)", "(" * 400, "10**5000", "[1]", "1e999", "'a'*9**9",
    "lambda: 1", "(-1)**0.5", "exp(10**5)", "round(1, 10**9)", "", "x", "1 if 1 else 2", "10**6000*10**6000*10**6000",
    "-" * 300 + "1", "lcm(10**5000, 3)", "1" * 501, "print(1)", "open('x')", "2 and 3", "1<2", "1j", "True", "0**-1",
])
def test_what_is_no_number_ends_soon(expression: str) -> None:
    began = time.process_time()
    with pytest.raises(LibremoeError):
        calculate(expression)
    assert time.process_time() - began < 5  # a bound against running away, not a measure of speed


@given(st.text(max_size=60))
def test_any_text_is_a_value_or_a_sentence(text: str) -> None:
    with contextlib.suppress(LibremoeError):
        calculate(text)


@given(st.sampled_from(sorted(_TABLE)), st.data(), st.integers(-10**6, 10**6))
def test_units_go_there_and_back(kind: str, data: st.DataObject, value: int) -> None:
    units = [names.split()[0] for names in _TABLE[kind].values()]
    one, other = data.draw(st.sampled_from(units)), data.draw(st.sampled_from(units))
    there = convert(Fraction(value), one, other).split(" ")[0]
    back = Fraction(convert(Fraction(there), other, one).split(" ")[0])
    assert abs(back - value) <= abs(value) * Fraction(1, 10**9)


def test_units_dates_and_clock() -> None:
    assert run("convert_unit", {"value": 3, "unit": "km", "to": "m"}) == "3000 m"
    assert run("convert_unit", {"value": "98,6", "unit": "F", "to": "C"}) == "37 C"
    assert run("add_days", {"date": "2024-02-28", "days": 2}) == "2024-03-01"
    assert run("days_between", {"start": "2024-02-28", "end": "2024-03-01"}) == "2"
    assert run("weekday", {"date": "2026-11-24"}) == "Tuesday"
    assert "UTC+0" in run("clock", {"time_zone": "Europe/Paris"})
    for name, arguments, says in (
        ("convert_unit", {"value": 1, "unit": "km", "to": "kg"}, "cannot"), ("calculator", {}, "expression"),
        ("convert_unit", {"value": 1, "unit": "blob", "to": "kg"}, "not known"), ("calculator", "[1]", "JSON"),
        ("weekday", {"date": "tomorrow"}, "written"), ("clock", {"time_zone": "../../etc/passwd"}, "zone"),
        ("add_days", {"date": "2024-01-01", "days": 10**9}, "outside"), ("rm", {}, "no tool"),
        ("convert_unit", {"value": True, "unit": "m", "to": "m"}, "number"), ("calculator", "[" * 10**5, "JSON"),
    ):
        with pytest.raises(LibremoeError, match=says):
            run(name, arguments)


def _sandbox_works() -> bool:
    try:
        sandbox.find_bwrap()
    except LibremoeError:
        return False
    return True


@pytest.mark.skipif(not _sandbox_works(), reason="no bubblewrap here")
def test_python_runs_in_the_sandbox_and_a_stop_ends_it() -> None:
    box = ToolBox([python_tool()])
    assert run("run_python", {"code": "print(6 * 7)"}, box) == "42"
    assert "ZeroDivisionError" in run("run_python", {"code": "1/0"}, box)

    async def stopped() -> float:
        began = time.monotonic()
        task = asyncio.create_task(box.run(ToolCall("c", "run_python", json.dumps({"code": "while True: pass"}))))
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - began

    assert asyncio.run(stopped()) < 15  # its own limit is 20 s: it was ended, not waited for


# ---- MCP

def test_the_file_of_servers(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    assert read_config(path) == []
    servers = {"a": {"command": "x", "args": ["y"]}, "b": {"url": "http://[::1]/mcp"}}
    path.write_text(json.dumps({"mcpServers": servers}))
    assert [c.name for c in read_config(path)] == ["a", "b"]
    for wrong in ("", "[]", '{"mcpServers": []}', '{"mcpServers": {"a": {}}}',
                  '{"mcpServers": {"a b": {"command": "x"}}}',
                  '{"mcpServers": {"a": {"command": "x", "url": "y"}}}', '{"mcpServers": {"a": {"url": "file:///x"}}}',
                  '{"mcpServers": {"a": {"command": "x", "env": {"A": 1}}}}', "[" * 100_000):
        path.write_text(wrong)
        with pytest.raises(LibremoeError, match="mcp.json"):
            read_config(path)


def test_a_server_over_its_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mcp")
    monkeypatch.setenv("LIBREMOE_SECRET_FOR_TEST", "x")

    def nothing_leaves(url: str, why: str, body: bytes) -> None:
        raise AssertionError("a server over pipes has no address")

    async def work() -> None:
        configs = [ServerConfig("t", sys.executable, (SERVER,)), ServerConfig("gone", "/nowhere/at-all")]
        servers, notes = await connect(configs, nothing_leaves)
        assert [s.config.name for s in servers] == ["t"] and len(notes) == 1 and "gone" in notes[0]
        box = ToolBox([e for s in servers for e in s.tools], [s.close for s in servers])
        try:
            assert "mcp_t_add" in box.names() and box.acts("mcp_t_add") and box.reads("mcp_t_add")

            async def called(name: str, **arguments: Any) -> str:
                return await box.run(ToolCall("c", f"mcp_t_{name}", json.dumps(arguments)))

            assert await called("add", a=2, b=40) == "42"
            assert len(await called("talk", n=MAX_RESULT * 2)) < MAX_RESULT + 100
            assert "LIBREMOE_SECRET_FOR_TEST" not in await called("secrets")
            with pytest.raises(LibremoeError, match="broken|fail"):
                await called("fail")
            with pytest.raises(LibremoeError):
                await called("add", a="no number")
            slow = asyncio.create_task(called("wait", seconds=60))
            await asyncio.sleep(0.3)
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow
            assert await called("add", a=1, b=1) == "2"  # a stop ends the call, not the server
            monkeypatch.setattr(mcp_tools, "CALL_S", 0.3)
            with pytest.raises(LibremoeError, match="longer"):
                await called("wait", seconds=60)
        finally:
            await box.close()

    asyncio.run(work())


@contextlib.contextmanager
def server_by_url() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, SERVER, str(port)], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


def test_a_server_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent to it is announced first, and not sent where that is refused."""
    pytest.importorskip("mcp")
    sent: list[tuple[str, str, bytes]] = []
    offline = False

    def leaves(url: str, why: str, body: bytes) -> None:
        if offline:
            raise LibremoeError("offline: nothing may leave this machine")
        sent.append((url, why, body))

    async def work(url: str) -> None:
        nonlocal offline
        config = ServerConfig("w", url=url, headers={"Authorization": "Bearer key"})
        servers, notes = await connect([config, ServerConfig("gone", url="http://127.0.0.1:9/mcp")], leaves)
        assert [s.config.name for s in servers] == ["w"] and len(notes) == 1 and "gone" in notes[0]
        box = ToolBox([e for s in servers for e in s.tools], [s.close for s in servers])
        try:
            asked = ToolCall("c", "mcp_w_add", json.dumps({"a": 2, "b": 40}))
            assert await box.run(asked) == "42"
            assert all(u == url and why == "MCP server w" for u, why, _ in sent if "9/mcp" not in u)
            assert any(b'"add"' in body and b"40" in body for _, _, body in sent)
            with pytest.raises(LibremoeError, match="broken|fail"):
                await box.run(ToolCall("c", "mcp_w_fail", "{}"))
            before, offline = len(sent), True
            with pytest.raises(LibremoeError):
                await box.run(asked)
            assert len(sent) == before
        finally:
            offline = False
            await box.close()

    with server_by_url() as url:
        asyncio.run(work(url))


def test_a_server_that_never_answers_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mcp")
    monkeypatch.setattr(mcp_tools, "START_S", 0.5)
    server = McpServer(ServerConfig("mute", sys.executable, ("-c", "import time; time.sleep(60)")), lambda *_: None)
    with pytest.raises(LibremoeError, match="did not start"):
        asyncio.run(server.start())
