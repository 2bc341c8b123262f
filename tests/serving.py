"""A server in a thread of the test's process, on a free port of loopback: over the stub engine, or a tiny real
model."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import tiny
from stub_engine import StubEngine

from libremoe.chat.template import ModelTemplate
from libremoe.chat.tool_box import ToolBox, local_tools
from libremoe.config import ModelConfig
from libremoe.engine.engine import Engine
from libremoe.engine.threaded import ThreadedEngine
from libremoe.server.chat_state import Chat
from libremoe.server.limits import Access
from libremoe.server.metrics import Metrics
from libremoe.server.serve import LOOPBACK_HOSTS, Server
from libremoe.server.service import Service, Settings
from libremoe.tiny import byte_tokenizer
from libremoe.tokenizer import Tokenizer, open_tokenizer

VOCAB = 512
CONTEXT = 4096
MODEL = "tiny"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
GENEROUS_S = 20.0  # nothing in the tests takes so long, however busy the machine
CLIENT = httpx2.Client(timeout=GENEROUS_S)  # making one takes longer than most requests


@cache
def tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(byte_tokenizer(VOCAB))
        return open_tokenizer(path)


@dataclass
class Running:
    service: Service
    url: str
    port: int
    server: Server


def service(engine: Any, *, context_len: int, keys: Path | None = None, template: str | None = None,
            model_id: str = MODEL, **settings: Any) -> Service:
    return Service(
        engine=engine, tokenizer=tokenizer(), model_id=model_id, context_len=context_len, vocab_size=VOCAB, eos_id=2,
        access=Access(keys), metrics=Metrics(engine.stats), settings=Settings(**{"hosts": LOOPBACK_HOSTS} | settings),
        chat_template=ModelTemplate(template, tokenizer()) if template is not None else None,
    )


@contextmanager
def served(engine: Any, **options: Any) -> Iterator[Running]:
    """options: keys, template, chat (chatting()), and those of Settings."""
    chat = options.pop("chat", None)
    made = service(engine, **{"context_len": CONTEXT} | options)
    made.chat = chat
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        port = listener.getsockname()[1]
        server = Server(made, 5.0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield Running(made, f"http://127.0.0.1:{port}", port, server)
        finally:
            server.should_exit = server.force_exit = True
            thread.join(10)
            engine.close()


@contextmanager
def serving_command(folder: Path, *arguments: str) -> Iterator[str]:
    """`libremoe serve` as a process of its own; gives its address. folder: for its keys, of which there are none."""
    command = [sys.executable, "-m", "libremoe.cli", "serve", "--port", "0", "--ephemeral", *arguments]
    environment = {**os.environ, "LIBREMOE_KEYS": str(folder / "keys.json")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            banner = [process.stdout.readline() for _ in range(5)]
            yield banner[1].split("base URL ")[1].split("/v1")[0]
        finally:
            process.terminate()
            assert process.wait(60) == 0


def chatting(where: Path | str = ":memory:", **fields: Any) -> Chat:
    """What the page's routes work with, over a store of its own."""
    from libremoe.chat.persona import load_personas
    from libremoe.chat.store import open_store

    box = ToolBox(local_tools())
    return Chat(**{"store": open_store(where), "personas": load_personas(), "tools": box, "n_experts": 8} | fields)


def stub(**options: Any) -> StubEngine:
    return StubEngine(**{"context_len": CONTEXT} | options)


def tiny_engine(config: ModelConfig = tiny.GROK, **options: Any) -> ThreadedEngine:
    """A Grok of two layers with a byte tokenizer's vocabulary, which says noise, but always the same."""
    config = dataclasses.replace(config, vocab_size=VOCAB, context_len=CONTEXT)
    return ThreadedEngine(Engine(tiny.model(config), **options))


def post(running: Running, path: str, body: Any, **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return CLIENT.post(running.url + path, content=content,
                       headers={"content-type": "application/json"} | headers)


def wait_until(true: Any, timeout_s: float = GENEROUS_S) -> float:
    """Seconds until true() holds."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > timeout_s:
            raise TimeoutError("it never came true")
        time.sleep(0.005)
    return time.monotonic() - began
