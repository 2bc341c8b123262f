"""Tokens per second with 1, 4, 16 and 64 clients, beside llama.cpp's server where there is one:

    python bench/serve.py MODEL.gguf [--llama-server PATH] [--json]
    python bench/serve.py MODEL --gguf SAME.gguf --llama-server PATH       # where libremoe reads another form of it

Starts `libremoe serve` and llama.cpp's server one after the other and sends both the same streamed, greedy completions
over loopback. For each number of clients: tokens/s of all, time to the first token and time between tokens, p50 and
p99, and libremoe's tokens/s as a multiple of llama.cpp's. Each client sends its next request when its last has ended.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORDS = ("river", "stone", "wind", "light", "paper", "garden", "music", "winter", "bread", "silver", "mountain",
         "letter", "harbour", "candle", "forest", "window", "summer", "copper", "bridge", "valley")
START_TIMEOUT_S = 600.0


@dataclass
class Timed:
    """One request. Times in seconds; gaps: between the tokens that follow the first."""

    first_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    tokens: int = 0
    failed: bool = False


async def ask(port: int, model: str, prompt: str, max_tokens: int) -> Timed:
    found = Timed()
    body = json.dumps({"model": model, "prompt": prompt, "max_tokens": max_tokens, "stream": True, "temperature": 0,
                       "ignore_eos": True, "stream_options": {"include_usage": True}}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        began = last = time.perf_counter()
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
                     b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        found.failed = b" 200 " not in await reader.readline()
        while line := await reader.readline():
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("usage"):
                found.tokens = event["usage"]["completion_tokens"]
            if event.get("choices"):
                now = time.perf_counter()
                if found.first_s:
                    found.gaps_s.append(now - last)
                else:
                    found.first_s = now - began
                last = now
    finally:
        writer.close()
    found.tokens = found.tokens or len(found.gaps_s) + 1  # servers that tell no usage: an event a token
    return found


async def level(port: int, model: str, clients: int, requests: int, n_prompt: int, n_answer: int) -> dict[str, Any]:
    async def client(number: int) -> list[Timed]:
        rng = random.Random(f"{clients}/{number}")  # prompts share no beginning: no prefix cache helps
        return [await ask(port, model, " ".join(rng.choices(WORDS, k=n_prompt)), n_answer) for _ in range(requests)]

    began = time.perf_counter()
    found = [timed for each in await asyncio.gather(*map(client, range(clients))) for timed in each]
    seconds = time.perf_counter() - began
    gaps = [gap for timed in found for gap in timed.gaps_s]
    firsts = [timed.first_s for timed in found]
    return {
        "clients": clients,
        "failed": sum(t.failed for t in found),
        "tokens_per_s": sum(t.tokens for t in found) / seconds,
        "first_token_p50_ms": 1000 * percentile(firsts, 0.5),
        "first_token_p99_ms": 1000 * percentile(firsts, 0.99),
        "between_tokens_p50_ms": 1000 * percentile(gaps, 0.5),
        "between_tokens_p99_ms": 1000 * percentile(gaps, 0.99),
    }


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def started(command: list[str], port: int) -> Iterator[None]:
    """A server process, from when it answers /v1/models until the block ends."""
    environment = {**os.environ, "LIBREMOE_KEYS": str(Path(tempfile.gettempdir()) / "no-keys-for-benchmarks.json")}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        try:
            began = time.monotonic()
            while not answers(port):
                if process.poll() is not None or time.monotonic() - began > START_TIMEOUT_S:
                    said.seek(0)
                    raise SystemExit(f"{' '.join(command)} does not answer; it said:\n"
                                     + said.read().decode(errors="replace")[-2000:])
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def answers(port: int) -> bool:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/v1/models")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def servers(args: argparse.Namespace, port: int) -> dict[str, list[str]]:
    """Name -> command of each server that is there. llama.cpp divides its context among its slots."""
    model, slots, context = str(args.model), str(args.slots), str(args.context * args.slots)
    found = {"libremoe": [sys.executable, "-m", "libremoe.cli", "serve", model, "--port", str(port), "--name", "bench",
                          "--max-running", slots]}
    gguf = args.gguf or (args.model if args.model.suffix == ".gguf" else None)
    llama_server = args.llama_server or shutil.which("llama-server")
    if gguf is not None and llama_server is not None:
        found["llama.cpp"] = [str(llama_server), "-m", str(gguf), "--host", "127.0.0.1", "--port", str(port),
                              "-np", slots, "-c", context, "-t", str(args.threads), "--alias", "bench"]
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="what libremoe serves (default: the file of --gguf)")
    parser.add_argument("--gguf", type=Path, help="what llama.cpp serves (default: the model, if it is a .gguf file)")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server (default: llama-server in PATH, if any)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, default=2, help="of each client, one after the other (default 2)")
    parser.add_argument("--prompt-words", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--slots", type=int, default=64, help="answers that each server computes at once (default 64)")
    parser.add_argument("--context", type=int, default=1024, help="tokens of context for each of llama.cpp's slots")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of llama.cpp (default: all CPUs)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.model = args.model or args.gguf
    if args.model is None:
        parser.error("name a model: MODEL, or --gguf FILE")
    if args.llama_server is not None and args.gguf is None and args.model.suffix != ".gguf":
        parser.error("llama.cpp reads GGUF only: name the same weights with --gguf FILE")
    for path in (args.model, args.gguf, args.llama_server):
        if path is not None and not path.exists():
            parser.error(f"{path} does not exist")
    return args


def main() -> None:
    args = arguments()
    found: dict[str, list[dict[str, Any]]] = {}
    for name in servers(args, 0):
        port = free_port()
        with started(servers(args, port)[name], port):
            asyncio.run(level(port, "bench", 1, 1, args.prompt_words, args.max_tokens))  # warm
            found[name] = [asyncio.run(level(port, "bench", n, args.requests, args.prompt_words, args.max_tokens))
                           for n in args.clients]
    for ours, theirs in zip(found["libremoe"], found.get("llama.cpp", []), strict=False):
        ours["times_llama_cpp"] = ours["tokens_per_s"] / max(theirs["tokens_per_s"], 1e-9)
    print(json.dumps(found) if args.json else table(found))


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        f"{'server':10} {'clients':>7} {'tokens/s':>9} {'first token ms':>20} {'between tokens ms':>20} {'failed':>6}",
        f"{'':27} {'p50':>11} {'p99':>8} {'p50':>11} {'p99':>8}",
    ]
    for name, levels in found.items():
        for at in levels:
            ratio = f"  {at['times_llama_cpp']:.2f} x llama.cpp" if "times_llama_cpp" in at else ""
            lines.append(f"{name:10} {at['clients']:7} {at['tokens_per_s']:9.1f} {at['first_token_p50_ms']:11.1f} "
                         f"{at['first_token_p99_ms']:8.1f} {at['between_tokens_p50_ms']:11.1f} "
                         f"{at['between_tokens_p99_ms']:8.1f} {at['failed']:6}{ratio}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
