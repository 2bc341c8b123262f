"""An OpenAI-compatible endpoint that says what a function tells it to, and writes down what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]


@dataclass
class Scripted:
    """say(path, body) -> (status, object). asked: every body but those of probes."""

    say: Callable[[str, dict[str, Any]], Reply]
    delay_s: float = 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""


def chat_reply(text: str, **choice: Any) -> Reply:
    return 200, {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop",
                              **choice}], "usage": {"prompt_tokens": 10, "completion_tokens": 3}}


@contextmanager
def scripted(say: Callable[[str, dict[str, Any]], Reply], delay_s: float = 0.0) -> Iterator[Scripted]:
    made = Scripted(say, delay_s)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": "scripted"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                made.asked.append({"path": self.path, **body})
            time.sleep(made.delay_s)
            self._send(*made.say(self.path, body))

        def _send(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # the client was killed
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
