"""Many at once: how much of it one turn of the event loop takes, in which order, and what is refused before it costs
anything."""

from __future__ import annotations

import asyncio
import select
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from serving import served, stub

from libremoe.engine.sequence import Output
from libremoe.engine.threaded import DELIVERED_AT_ONCE, _Mail
from libremoe.server.errors import anthropic_body, invalid
from libremoe.server.loop import READY_AT_ONCE, new_loop
from libremoe.server.protocol import has_left


def test_a_turn_takes_few_ready_connections_and_none_waits_for_ever() -> None:
    pairs = [socket.socketpair() for _ in range(5 * READY_AT_ONCE)]
    turns: list[set[int]] = [set()]

    def read(number: int) -> None:
        turns[-1].add(number)  # nothing is received: the connection stays ready

    async def work() -> None:
        loop = asyncio.get_running_loop()
        for number, (ours, theirs) in enumerate(pairs):
            theirs.send(b"x")
            loop.add_reader(ours, read, number)
        while len(set().union(*turns)) < len(pairs):
            turns.append(set())
            await asyncio.sleep(0)
        for ours, _ in pairs:
            loop.remove_reader(ours)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(asyncio.wait_for(work(), 20))
    assert max(map(len, turns)) == READY_AT_ONCE
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_outputs_reach_each_stream_in_order_and_few_in_one_turn() -> None:
    """A second step's outputs, in another order, arrive while the first's are still being handed out."""
    count = 3 * DELIVERED_AT_ONCE
    got: list[tuple[int, int]] = []
    turns: list[int] = []

    def stream(number: int) -> Any:
        return SimpleNamespace(deliver=lambda output: got.append((number, output.token)))

    async def work() -> None:
        mail = _Mail(asyncio.get_running_loop())
        streams = [stream(number) for number in range(count)]
        mail.add([(each, Output(0, 1)) for each in streams])
        turns.append(len(got))
        mail.add([(each, Output(0, 2)) for each in reversed(streams)])
        while len(got) < 2 * count:
            turns.append(len(got))
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(work(), 20))
    assert got == [(n, 1) for n in range(count)] + [(n, 2) for n in reversed(range(count))]
    assert max(after - before for before, after in zip(turns, turns[1:], strict=False)) == DELIVERED_AT_ONCE


def test_a_full_queue_refuses_before_the_body_has_come() -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"):
        with (
            served(stub(max_waiting=0)) as running,
            socket.create_connection(("127.0.0.1", running.port)) as connection,
        ):
            connection.settimeout(20)
            connection.sendall(b"POST " + path.encode() + b" HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n"
                               b"content-type: application/json\r\n\r\n")
            said = connection.recv(2000).lower()
            assert b" 503 " in said and b"retry-after: 1" in said
            connection.sendall(b"x" * 100 + b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")  # the same connection
            while b" 200 " not in said:
                assert (more := connection.recv(2000)), said
                said += more


@pytest.mark.skipif(not hasattr(select, "POLLRDHUP"), reason="only Linux tells before what was sent has been read")
def test_who_has_left_is_known_before_the_request_is_read() -> None:
    ours, theirs = socket.socketpair()
    transport: Any = SimpleNamespace(get_extra_info=lambda _: ours)
    theirs.send(b"GET / HTTP/1.1\r\n")
    assert not has_left(transport)
    theirs.close()
    assert has_left(transport)
    ours.close()


def test_an_anthropic_error_names_its_field_once() -> None:
    wrong = anthropic_body(invalid("max_tokens: Field required", "max_tokens"))
    assert wrong["error"]["message"] == "max_tokens: Field required"
    assert anthropic_body(invalid("there is no such model", "model"))["error"]["message"].startswith("model: ")
