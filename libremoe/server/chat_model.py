"""The served engine as the model of a session: the same way from messages to text that the OpenAI routes take."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from libremoe.chat.events import Ended, Experts, Request, TextDelta
from libremoe.chat.message import Text, ToolCall, ToolChoice
from libremoe.errors import LibremoeError
from libremoe.server.errors import ApiError
from libremoe.server.generate import start
from libremoe.server.keys import Key
from libremoe.server.service import Service
from libremoe.server.turn import Asked, parts_of, prepare


class ServiceModel:
    """A ChatModel over a Service. key: whose quota an answer counts against. counters: of streamed experts."""

    def __init__(self, service: Service, key: Key | None = None,
                 counters: Callable[[], dict[str, float]] | None = None):
        self.service, self.key, self.counters = service, key, counters
        self.name, self.context_len = service.model_id, service.context_len

    async def count(self, request: Request) -> int:
        prompt = await self.service.chat_prompt(request.messages, request.tools, ToolChoice(), request.prefix)
        return len(prompt.ids)

    async def stream(self, request: Request) -> AsyncGenerator[TextDelta | ToolCall | Experts | Ended]:
        """Raises LibremoeError where the server refuses or fails; ApiError's message is the sentence."""
        sampling = dict(request.sampling)
        asked = Asked(request.messages, request.tools, ToolChoice(), max_tokens=sampling.pop("max_tokens", None),
                      stop=sampling.pop("stop", ()), sampling=sampling, prefix=request.prefix, experts=request.experts)
        before = self.counters() if self.counters is not None else {}
        began = time.monotonic()
        first_s, n_experts, finish = 0.0, 0, "stop"
        try:
            turn = await prepare(self.service, asked)
            generation = await start(self.service, [turn.job], self.key)
            async with generation, aclosing(parts_of(turn, generation)) as pieces:
                async for piece in pieces:
                    first_s = first_s or time.monotonic() - began
                    for layers in piece.experts:
                        text = "".join(part.text for part in piece.parts if isinstance(part, Text))
                        yield Experts(n_experts, layers, text)
                        n_experts += 1
                    for part in piece.parts:
                        yield TextDelta(part.text) if isinstance(part, Text) else part
                    finish = piece.finish_reason or finish
        except ApiError as error:
            raise LibremoeError(error.message) from error
        stats = {"tokens": generation.completion_tokens, "prompt_tokens": generation.prompt_tokens,
                 "first_token_s": round(first_s, 4), "seconds": round(time.monotonic() - began, 4)}
        if self.counters is not None:
            after = self.counters()
            stats |= {f"expert_{name}": after[name] - before[name] for name in ("hits", "misses")}
        yield Ended(finish, stats, turn.template)
