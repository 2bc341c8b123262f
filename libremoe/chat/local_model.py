"""A model in this process as the model of a session: the engine steps in a thread, so that keys are heard meanwhile."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import threading
from collections.abc import AsyncGenerator
from typing import Any

from libremoe.chat.events import Ended, Experts, Request, TextDelta
from libremoe.chat.message import Text, ToolCall
from libremoe.chat.template import ModelTemplate, Prompt, Trim, find_template, transcript_prompt
from libremoe.chat.tools import CallParser
from libremoe.errors import LibremoeError
from libremoe.language_model import LanguageModel
from libremoe.run import load_for
from libremoe.sampling import SamplingParams
from libremoe.tokenizer import Tokenizer


def load_local(args: argparse.Namespace, params: SamplingParams) -> LocalModel:
    """The model at args.path, with the chat template that lies beside it. Raises LibremoeError without a tokenizer."""
    lm = load_for(args)
    if lm.tokenizer is None:
        raise LibremoeError("a conversation needs a tokenizer: give one with --tokenizer FILE")
    text = find_template(args.path if args.path.is_dir() else args.path.parent)
    template = None if text is None else ModelTemplate(text, lm.tokenizer)
    return LocalModel(lm, lm.tokenizer, args.path.resolve().name, template, params)


class LocalModel:
    """A ChatModel over a LanguageModel. params: what neither the persona nor the request says."""

    def __init__(self, lm: LanguageModel, tokenizer: Tokenizer, name: str, template: ModelTemplate | None,
                 params: SamplingParams):
        self.lm, self.tokenizer, self.name, self.template, self.params = lm, tokenizer, name, template, params
        self.context_len = lm.engine.max_tokens

    async def close(self) -> None:
        """End the template's process."""
        if self.template is not None:
            await self.template.close()

    async def count(self, request: Request) -> int:
        return len((await self._prompt(request)).ids)

    async def _prompt(self, request: Request) -> Prompt:
        """The model's own template where it brings one, else the transcript that a base model continues."""
        if self.template is not None:
            return await self.template.prompt(request.messages, request.tools, None, request.prefix)
        bos_id = self.lm.config.bos_id if self.lm.config.add_bos else None
        return transcript_prompt(request.messages, self.tokenizer, bos_id=bos_id, context_len=self.context_len,
                                 tools=request.tools, prefix=request.prefix)

    async def stream(self, request: Request) -> AsyncGenerator[TextDelta | ToolCall | Experts | Ended]:
        """Closing it ends the run after the step that is under way."""
        prompt = await self._prompt(request)
        params = self._params(request, prompt)
        parser = CallParser() if request.tools else None
        trim = Trim(started=bool(request.prefix)) if prompt.template == "transcript" else None
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        stopped, loop = threading.Event(), asyncio.get_running_loop()

        def work() -> None:
            pieces = self.lm.pieces(prompt.ids, params, report_experts=True)
            try:
                for piece in pieces:
                    loop.call_soon_threadsafe(arrived.put_nowait, piece)
                    if stopped.is_set():
                        return
            finally:
                pieces.close()  # type: ignore[attr-defined]  # a generator: closing frees its cache

        thread = asyncio.ensure_future(asyncio.to_thread(work))
        thread.add_done_callback(lambda _: arrived.put_nowait(None))
        finish, n_tokens = "stop", 0
        try:
            while (piece := await arrived.get()) is not None:
                finish = piece.finish_reason or finish
                text = piece.text if trim is None else trim.push(piece.text)
                if piece.experts is not None:
                    yield Experts(n_tokens, piece.experts, text)
                    n_tokens += 1
                for part in [Text(text)] if parser is None else parser.push(text):
                    if not isinstance(part, Text):
                        yield part
                    elif part.text:
                        yield TextDelta(part.text)
            await thread  # raises what the run raised
            for part in parser.finish() if parser is not None else []:
                yield TextDelta(part.text) if isinstance(part, Text) else part
        finally:
            stopped.set()
            await asyncio.shield(asyncio.wait({thread}))
        yield Ended("tool_calls" if parser is not None and parser.calls else finish, self._stats(), prompt.template)

    def _params(self, request: Request, prompt: Prompt) -> SamplingParams:
        """Raises LibremoeError where there is no room for an answer."""
        left = self.context_len - len(prompt.ids)
        if left < 1:
            raise LibremoeError(f"the conversation has {len(prompt.ids)} tokens; the context holds {self.context_len}")
        fields = {"max_tokens": self.params.max_tokens, **request.sampling}
        fields["max_tokens"] = min(fields["max_tokens"] or left, left)
        fields["stop"] = (*self.params.stop, *request.sampling.get("stop", ()), *prompt.stop)
        return dataclasses.replace(self.params, **fields)

    def _stats(self) -> dict[str, Any]:
        stats = self.lm.stats
        found: dict[str, Any] = {"tokens": stats.tokens, "prompt_tokens": stats.prompt_tokens,
                                 "first_token_s": round(stats.first_token_s, 4), "seconds": round(stats.seconds, 4)}
        if stats.experts is not None:
            found |= {"expert_hits": stats.experts.hits, "expert_misses": stats.experts.misses}
        return found
