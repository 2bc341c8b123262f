"""`libremoe serve`: load a model, say what is served and who can reach it, answer until told to stop.

The first SIGTERM or SIGINT drains: what runs is finished, what is new is refused with 503. A second one ends at once.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import gc
import ipaddress
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from libremoe.chat.template import ModelTemplate, find_template, read_template
from libremoe.errors import LibremoeError
from libremoe.server.app import make_app
from libremoe.server.keys import keys_path
from libremoe.server.limits import Access
from libremoe.server.metrics import Metrics
from libremoe.server.protocol import MAX_CONNECTIONS, Protocol
from libremoe.server.service import Service, Settings

if TYPE_CHECKING:
    from libremoe.language_model import LanguageModel

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
BACKLOG = 1024
ACCEPTED_AT_ONCE = 16  # more would hold up everybody else for their time
GC_THRESHOLDS = (700, 10, 200)  # the last of Python's is 10; with a thousand streams a full collection takes 90 ms
KEEP_ALIVE_S = 20


def run(args: argparse.Namespace) -> int:
    """The command. args: path or None, host, port, name, tokenizer, dtype, mmap, max_running, max_waiting, kv_bytes,
    queue_timeout, drain_timeout, chat_template, allow_host, allow_origin, keys_file, no_page, data, database,
    ephemeral, live, allow_python. Returns 0 after a clean end."""
    for flag, value in (("--queue-timeout", args.queue_timeout), ("--drain-timeout", args.drain_timeout),
                        ("--max-waiting", args.max_waiting)):
        if not value >= 0:
            raise LibremoeError(f"{flag} is {value:g}; it must be 0 or more")
    access = access_for(args.host, args.keys_file or keys_path())
    listener = _listen(args.host, args.port)  # before the weights are read: a port in use is known at once
    with listener:
        from libremoe.run import DEFAULT_NAME, default_model, load_for

        if args.path is None:
            args.path, args.name = default_model(), args.name or DEFAULT_NAME
        lm = load_for(args)
        service = make_service(lm, args, access)
        if not args.no_page:
            from libremoe.server.chat_open import open_chat

            service.chat = open_chat(args, lm)
        print(banner(service, args.host, listener.getsockname()[1]), flush=True)
        serve(service, listener, args.drain_timeout)
    return 0


def access_for(host: str, keys_file: Path) -> Access:
    """Raises LibremoeError where others could reach a server that asks nobody for a key."""
    access = Access(keys_file)
    if not access.required and not is_loopback(host):
        raise LibremoeError(
            f"--host {host} lets other machines in, and there is no key: whoever reaches the port could use the model. "
            "Make a key first (libremoe keys add NAME), or serve on 127.0.0.1")
    return access


def is_loopback(host: str) -> bool:
    """Only what certainly is: other names and odd spellings of addresses count as open to others."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        again = "; choose another with --port" if isinstance(error, OSError) and error.errno == errno.EADDRINUSE else ""
        raise LibremoeError(f"cannot listen on {host} port {port}: {reason}{again}") from error


def make_service(lm: LanguageModel, args: argparse.Namespace, access: Access) -> Service:
    """The engine, its thread, and what the routes need to know. Raises LibremoeError without a tokenizer."""
    from libremoe.engine.engine import Engine
    from libremoe.engine.threaded import ThreadedEngine

    tokenizer, config = lm.tokenizer, lm.config
    if tokenizer is None:
        raise LibremoeError("no tokenizer lies with this model: give one with --tokenizer FILE")
    template = _template(args)
    engine = Engine(lm.model, eos_ids=lm.eos_ids, max_running=args.max_running, max_waiting=args.max_waiting,
                    kv_bytes=args.kv_bytes or lm.kv_bytes, step_tokens=max(512, args.max_running),
                    step_s=lm.step_s, draft=lm.draft, kv_dtype=lm.kv_dtype)
    threaded = ThreadedEngine(engine)
    loopback = is_loopback(args.host)
    hosts = (*LOOPBACK_HOSTS, args.host.lower(), *args.allow_host) if loopback or args.allow_host else None
    settings = Settings(queue_timeout_s=args.queue_timeout, hosts=hosts, origins=tuple(args.allow_origin))
    bos_id = config.bos_id if config.bos_id is not None else tokenizer.bos_id
    return Service(
        engine=threaded, tokenizer=tokenizer, model_id=args.name or Path(args.path).resolve().name,
        context_len=engine.max_tokens, vocab_size=config.vocab_size,
        eos_id=config.eos_id if config.eos_id is not None else tokenizer.eos_id, access=access,
        metrics=Metrics(threaded.stats, _expert_stats(lm)), bos_id=bos_id if config.add_bos else None,
        chat_template=ModelTemplate(template, tokenizer) if template is not None else None, settings=settings,
    )


def _expert_stats(lm: LanguageModel) -> Callable[[], dict[str, float]] | None:
    streamed = lm.streamed
    return None if streamed is None else lambda: streamed.stats().counters()


def _template(args: argparse.Namespace) -> str | None:
    """The chat template's text; None for a transcript."""
    if args.chat_template == "transcript":
        return None
    if args.chat_template is not None:
        return read_template(Path(args.chat_template))
    path = Path(args.path)
    return find_template(path) if path.is_dir() else None


def banner(service: Service, host: str, port: int) -> str:
    """What is served, and what is exposed to whom."""
    shown = f"[{host}]" if ":" in host else host
    template = "its own chat template" if service.chat_template else "a transcript (it is used as a base model)"
    if is_loopback(host):
        reach = "only programs on this machine can connect"
    else:
        reach = "every machine that can reach this address can connect, unencrypted; put TLS in front of it"
    key = (f"a key is needed for all but /health ({len(service.access.keys)} in {service.access.path})"
           if service.access.required else "no key is needed")
    return (
        f"libremoe serves {service.model_id!r}: context {service.context_len} tokens; "
        f"chats are rendered by {template}\n"
        f"  OpenAI     base URL http://{shown}:{port}/v1   chat/completions completions responses embeddings models\n"
        f"  Anthropic  base URL http://{shown}:{port}      v1/messages v1/messages/count_tokens\n"
        f"  others     http://{shown}:{port}/ ({'a page to talk' if service.chat else 'fields'}), /docs /tokenize "
        "/detokenize /health /metrics /openapi.json\n"
        f"Exposed: {reach}; {key}. Web pages of other sites may not call"
        + (f", except {', '.join(service.settings.origins)}" if service.settings.origins else "")
        + "."
    )


def serve(service: Service, listener: socket.socket, drain_timeout_s: float) -> None:
    """Answer on a listening socket until a signal says stop; the engine is closed at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2 * MAX_CONNECTIONS)), hard))
    try:
        Server(service, drain_timeout_s).run(sockets=[listener])
    finally:
        service.engine.close()
        if service.chat is not None:
            service.chat.store.close()  # again, where the server ended before its loop could


class Server(uvicorn.Server):
    """uvicorn with limits, and with an end in two steps."""

    def __init__(self, service: Service, drain_timeout_s: float):
        self.service = service
        self.drain_timeout_s = drain_timeout_s
        self._draining: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        super().__init__(
            uvicorn.Config(
                make_app(service),
                loop="libremoe.server.loop:new_loop",
                http=Protocol,
                ws="none",
                lifespan="off",
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=ACCEPTED_AT_ONCE,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=10,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        if self.service.chat is not None:
            await self.service.chat.start()
        await super().startup(sockets)
        for listener in (
            sockets or ()
        ):  # asyncio takes its own number of connections in one turn, the kernel keeps these
            listener.listen(BACKLOG)
        gc.collect()
        gc.freeze()  # what is loaded stays: looking through it again and again would hold up everybody
        gc.set_threshold(*GC_THRESHOLDS)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.service.chat is not None:
            await self.service.chat.close()  # before the connections: the streams of answers end by this
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.service.draining or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        self.service.draining = True
        print(f"libremoe: {signal.Signals(sig).name}: finishing what runs (at most {self.drain_timeout_s:g} s); "
              "once more ends at once", file=sys.stderr, flush=True)
        self._loop.call_soon_threadsafe(self._start_draining)

    def _start_draining(self) -> None:
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        try:
            await self.service.engine.drain(self.drain_timeout_s)
            if self.service.chat_template is not None:
                await self.service.chat_template.close()
        finally:
            self.should_exit = True
