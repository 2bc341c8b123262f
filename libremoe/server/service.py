"""What all routes share: the model's name, tokenizer and template, the limits, and the way from a request to token
ids."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from libremoe.chat.message import Message, Tool, ToolChoice
from libremoe.chat.template import ModelTemplate, Prompt, transcript_prompt
from libremoe.chat.tools import call_grammar
from libremoe.server.errors import ApiError, invalid
from libremoe.server.limits import Access
from libremoe.server.logins import Logins
from libremoe.server.metrics import Metrics

if TYPE_CHECKING:
    from libremoe.constrain import Grammars, TokenConstraint
    from libremoe.engine.threaded import ThreadedEngine
    from libremoe.server.chat_state import Chat
    from libremoe.tokenizer import Tokenizer

SHORT_TEXT = 2000  # characters that are tokenised at once; longer texts go to a thread so that nobody else waits


@dataclass(frozen=True)
class Settings:
    """What the person who starts the server decides."""

    max_body_bytes: int = 4 << 20
    body_timeout_s: float = 60.0
    ping_s: float = 5.0  # a silent stream says that it lives this often
    send_timeout_s: float = 60.0  # a client that does not read for so long loses its stream
    queue_timeout_s: float = 120.0  # a request that has not begun by then is refused
    default_max_tokens: int = 2048  # of a chat that does not say; less where the context ends before
    hosts: tuple[str, ...] | None = None  # allowed in the Host header; None: any
    origins: tuple[str, ...] = ()  # web pages of elsewhere that may call


@dataclass
class Service:
    """One served model. engine is a ThreadedEngine, or in tests something with its methods."""

    engine: ThreadedEngine
    tokenizer: Tokenizer
    model_id: str
    context_len: int
    vocab_size: int
    eos_id: int | None
    access: Access
    metrics: Metrics
    bos_id: int | None = None  # put in front of texts where the model expects it (the Llama family does)
    chat_template: ModelTemplate | None = None
    logins: Logins = field(default_factory=Logins)  # of browsers, where keys are on
    chat: Chat | None = None  # the conversations of the page; None: the server has no page
    settings: Settings = field(default_factory=Settings)
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    _grammars: Grammars | None = None
    _grammars_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def fingerprint(self) -> str:
        return f"libremoe-{self.model_id}"

    def check_model(self, name: str | None) -> None:
        """Raises ApiError 404 where a request names another model; a request that names none means this one."""
        if name is not None and name != self.model_id:
            raise ApiError(
                404,
                f"there is no model {name[:80]!r} here; this server has {self.model_id!r}",
                param="model",
                code="model_not_found",
            )

    async def encode(self, text: str) -> list[int]:
        """Ids of a text to be continued, BOS in front where the model expects it. Control pieces stay text."""
        ids = await self._in_thread_if_long(text, self.tokenizer.encode_untrusted)
        return ids if self.bos_id is None else [self.bos_id, *ids]

    async def chat_prompt(self, messages: Sequence[Message], tools: Sequence[Tool], choice: ToolChoice,
                          prefix: str = "") -> Prompt:
        """The conversation as ids, by the model's own template or as a transcript. prefix: the answer's beginning."""
        if self.chat_template is not None:
            return await self.chat_template.prompt(messages, tools, choice, prefix)
        size = len(prefix) + sum(len(m.text) for m in messages) + sum(len(t.description) + 500 for t in tools)

        def render() -> Prompt:
            return transcript_prompt(messages, self.tokenizer, bos_id=self.bos_id, context_len=self.context_len,
                                     tools=tools, choice=choice, prefix=prefix)

        return render() if size < SHORT_TEXT else await asyncio.to_thread(render)

    async def _in_thread_if_long(self, text: str, work: Callable[[str], list[int]]) -> list[int]:
        return work(text) if len(text) < SHORT_TEXT else await asyncio.to_thread(work, text)

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raises ApiError 400 naming the first id that the model does not have."""
        if ids and max(ids) >= self.vocab_size:
            bad = next(i for i in ids if i >= self.vocab_size)
            raise invalid(f"token id {bad} is outside the vocabulary of {self.vocab_size}", param)

    def max_tokens(self, asked: int | None, n_prompt: int, default: int) -> int:
        """How many tokens an answer may have. Raises ApiError 400 with the numbers where they do not fit."""
        left = self.context_len - n_prompt
        wanted = asked if asked is not None else max(1, min(default, left))
        if n_prompt == 0:
            raise invalid("the prompt is empty: there is nothing to continue", "prompt")
        if wanted > left:
            raise invalid(
                f"this model's context is {self.context_len} tokens; the prompt has {n_prompt} and "
                f"max_tokens is {wanted}, "
                f"{n_prompt + wanted} together",
                "max_tokens" if left > 0 else "prompt",
                "context_length_exceeded",
            )
        return wanted

    async def grammars(self) -> Grammars:
        """The vocabulary's tables for constrained decoding, made when they are first needed."""
        async with self._grammars_lock:
            if self._grammars is None:
                from libremoe.constrain import Grammars

                self._grammars = await asyncio.to_thread(Grammars, self.tokenizer, self.eos_id, self.vocab_size)
        return self._grammars

    async def constraint(self, tools: Sequence[Tool], choice: ToolChoice, schema: dict[str, Any] | None,
                         n: int = 1) -> list[TokenConstraint] | None:
        """One constraint for each of n answers: forced tool calls come before the JSON schema. None where all is
        free."""
        lark = call_grammar(tools, choice)
        if lark is None and schema is None:
            return None
        grammars = await self.grammars()

        def make() -> list[TokenConstraint]:
            if lark is not None:
                return [grammars.lark(lark) for _ in range(n)]
            return [grammars.json_schema(schema or {}) for _ in range(n)]

        return await asyncio.to_thread(make)

    def token_text(self, token: int) -> str:
        """A token as logprobs show it; bytes that are no whole characters as bytes:\\xe2\\x82, as OpenAI writes
        them."""
        if token >= self.tokenizer.vocab_size:
            return f"<|{token}|>"
        content = self.tokenizer.token_bytes(token)
        if content is None:
            return self.tokenizer.piece(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def token_bytes(self, token: int) -> list[int] | None:
        content = self.tokenizer.token_bytes(token) if token < self.tokenizer.vocab_size else None
        return list(content) if content is not None else None
