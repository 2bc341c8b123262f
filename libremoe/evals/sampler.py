"""Prompts to answers on a model in this process: many at once through one engine.

Questions with the same beginning (the shots) share its keys and values in the engine's cache. Options that differ in
their last token only, as letters do, are scored in one pass; others take one sequence each and share the question.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import Any

from libremoe.engine.engine import Engine
from libremoe.engine.sequence import Output
from libremoe.engine.sequence import Sequence as EngineSequence
from libremoe.errors import LibremoeError
from libremoe.evals.task import Answer, Prompt
from libremoe.language_model import LanguageModel
from libremoe.sampling import SamplingParams, StopChecker
from libremoe.weights import Reader

STEP_TOKENS = 1024  # large steps, since a batch reads each expert once
UNBOUNDED = 1 << 48


class LocalSampler:
    """A Sampler (task.py) over a model in memory. The same prompts get the same answers in whatever company."""

    def __init__(self, lm: LanguageModel, max_running: int = 16, seed: int = 0, engine: Engine | None = None):
        """max_running: sequences computed at once. Raises LibremoeError where the model has no tokenizer."""
        if lm.tokenizer is None:
            raise LibremoeError("no tokenizer lies with this model: give one with --tokenizer FILE")
        self.lm, self.max_running, self.seed = lm, max_running, seed
        self.engine = engine or Engine(lm.model, kv_dtype=lm.kv_dtype, eos_ids=lm.eos_ids, max_running=max_running,
                                       step_tokens=max(STEP_TOKENS, max_running), max_waiting=UNBOUNDED,
                                       max_waiting_tokens=UNBOUNDED)

    def __call__(self, prompts: Iterable[tuple[str, Prompt]]) -> Iterator[tuple[str, Answer]]:
        """Closing the iterator cancels what is under way."""
        coming = iter(prompts)
        running: dict[int, _Item] = {}  # by sequence
        try:
            more = True
            while more or running:
                while more and len(running) < self.max_running:
                    pair = next(coming, None)
                    more = pair is not None
                    if pair is not None:
                        item = self._begin(*pair)
                        running |= {seq.id: item for seq in item.sequences}
                        if not item.sequences:
                            yield item.key, item.answer()
                for output in self.engine.step() if running else ():
                    if output.seq_id not in running:
                        continue  # the last word of a sequence that a stop string ended
                    item = running[output.seq_id]
                    if item.push(output):
                        del running[output.seq_id]
                        if not any(seq.id in running for seq in item.sequences):
                            yield item.key, item.answer()
        finally:
            for item in running.values():
                for seq in item.sequences:
                    self.engine.cancel(seq)
            if running:
                self.engine.step()

    def _begin(self, key: str, prompt: Prompt) -> _Item:
        """The item with its sequences in the engine; with none where it cannot fit."""
        for n_shots in range(len(prompt.shots), -1, -1):
            text = prompt.text(n_shots)
            dropped = len(prompt.shots) - n_shots
            ids = self.lm.encode(text)
            if prompt.options:
                wholes = [self.lm.encode(text + option) for option in prompt.options]
                if max(map(len, wholes)) + 1 <= self.engine.max_tokens:
                    return self._begin_choice(key, ids, wholes, dropped)
            elif len(ids) + prompt.max_tokens <= self.engine.max_tokens or (
                    not n_shots and len(ids) < self.engine.max_tokens):
                return self._begin_writing(key, ids, prompt, dropped)
        error = f"the question has {len(ids)} tokens, there is room for {self.engine.max_tokens}"
        return _Item(key, "logprobs" if prompt.options else "generated", len(ids), len(prompt.shots), error=error)

    def _begin_writing(self, key: str, ids: list[int], prompt: Prompt, dropped: int) -> _Item:
        room = self.engine.max_tokens - len(ids)
        params = SamplingParams(temperature=0.0, max_tokens=min(prompt.max_tokens, room), stop=prompt.stop,
                                seed=self.seed)
        item = _Item(key, "generated", len(ids), dropped, text=_Text(self.lm, prompt.stop))
        item.sequences = [self.engine.add(ids, params)]
        item.engine = self.engine
        return item

    def _begin_choice(self, key: str, ids: list[int], wholes: list[list[int]], dropped: int) -> _Item:
        """ids: of the question alone. Scored are the tokens that an option adds to it, or changes in it."""
        item = _Item(key, "logprobs", len(ids), dropped)
        common = len(commonprefix(wholes))
        if all(len(whole) == common + 1 for whole in wholes) and common:
            item.start = [max(1, min(common, len(commonprefix([ids, wholes[0]]))))]
            item.last_ids = [whole[-1] for whole in wholes]
            params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=0, seed=self.seed,
                                    logprob_token_ids=tuple(item.last_ids))
            item.sequences = [self.engine.add(wholes[0][:common], params, prompt_logprobs=0,
                                              prompt_logprobs_from=item.start[0])]
            return item
        params = SamplingParams(temperature=0.0, max_tokens=0, seed=self.seed)
        for whole in wholes:
            start = max(1, len(commonprefix([ids, whole])))
            if start >= len(whole):
                raise LibremoeError("an option adds no token to its question: it cannot be scored")
            item.start.append(start)
            item.sequences.append(self.engine.add(whole, params, prompt_logprobs=0, prompt_logprobs_from=start))
        return item


@dataclass
class _Item:
    """One prompt on its way."""

    key: str
    how: Any
    n_prompt: int
    dropped: int
    text: _Text | None = None
    engine: Engine | None = None
    sequences: list[EngineSequence] = field(default_factory=list)
    start: list[int] = field(default_factory=list)  # index of the first scored token of each sequence
    last_ids: list[int] = field(default_factory=list)  # where one pass scores all options: their last tokens
    sums: dict[int, list[float]] = field(default_factory=dict)  # sequence -> log-probability of its option(s)
    n_generated: int = 0
    finish_reason: str = ""
    error: str = ""
    began: float = field(default_factory=time.monotonic)

    def push(self, output: Output) -> bool:
        """Take what a step brought; True where that ends its sequence. Raises LibremoeError where the engine failed."""
        if output.finish_reason == "error":
            raise LibremoeError(output.error or "the engine failed")
        if self.text is None:
            scored = [logprob.logprob for logprob in output.prompt_logprobs or () if logprob is not None]
            named = dict(output.top)
            tails = [named[token] for token in self.last_ids] if self.last_ids else [0.0]
            self.sums[output.seq_id] = [sum(scored) + tail for tail in tails]
            return True
        self.n_generated += output.token is not None
        self.finish_reason = self.text.push(output)
        if self.finish_reason and output.finish_reason is None and self.engine is not None:
            self.engine.cancel(self.sequences[0])
        return bool(self.finish_reason)

    def answer(self) -> Answer:
        logprobs = [p for seq in self.sequences for p in self.sums.get(seq.id, [])]
        return Answer(
            self.how, "" if self.text is None else self.text.shown, tuple(logprobs), self.finish_reason, self.n_prompt,
            max((seq.num_shared for seq in self.sequences), default=0), self.n_generated,
            round(time.monotonic() - self.began, 4), self.dropped, self.error,
        )


class _Text:
    """Tokens to text up to a stop string."""

    def __init__(self, lm: LanguageModel, stop: tuple[str, ...]):
        if lm.tokenizer is None:
            raise LibremoeError("no tokenizer lies with this model")
        self._lm, self.shown, self._n_decodable = lm, "", lm.tokenizer.vocab_size
        self._decoder, self._checker = lm.tokenizer.stream_decoder(), StopChecker(stop)

    def push(self, output: Output) -> str:
        """Why it ended, "" where it goes on."""
        text, token = "", output.token
        is_end = token in self._lm.eos_ids and output.finish_reason == "stop"
        if token is not None and token < self._n_decodable and not is_end:
            text = self._decoder.push(token)
        if output.finish_reason is not None:
            text += self._decoder.finish()
        shown, stopped = self._checker.push(text)
        if output.finish_reason is not None and not stopped:
            shown += self._checker.finish()
        self.shown += shown
        return "stop" if stopped else output.finish_reason or ""


def fingerprint(reader: Reader) -> str:
    """32 hexadecimal digits by which a run knows its model again, wherever it lies: configuration, names, shapes and
    formats of all tensors, sizes of the files, and the manifest's digests where there is one. Weights are not read."""
    entries = [reader.entry(name) for name in reader.names()]
    files = {entry.file for entry in entries}
    seen: list[Any] = [reader.config.to_dict(), [(e.name, e.shape, e.format, e.nbytes) for e in entries],
                       sorted((file.name, file.stat().st_size) for file in files)]
    folder = reader.path if reader.path.is_dir() else reader.path.parent
    for beside in sorted(folder.glob("*.json")):
        if beside.stat().st_size <= 64 << 20:
            seen.append((beside.name, hashlib.sha256(beside.read_bytes()).hexdigest()))
    return hashlib.sha256(json.dumps(seen, sort_keys=True, default=str).encode()).hexdigest()[:32]

