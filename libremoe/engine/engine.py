"""The engine: many sequences, one model, one step at a time. `Engine.step` is the documentation.

Not here: text (language_model.py, server/), threads and event loops (threaded.py).
"""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, replace

import torch

from libremoe.batch import BLOCK_SIZE, Batch, KVCache
from libremoe.config import ModelConfig
from libremoe.engine.drafting import MAX_DRAFT, DraftStats
from libremoe.engine.kv_cache import BlockAllocator, hash_blocks, num_blocks
from libremoe.engine.runner import Model, Runner
from libremoe.engine.scheduler import Pace, Scheduler, Work
from libremoe.engine.sequence import Constraint, FinishReason, Output, QueueFull, Sequence
from libremoe.errors import LibremoeError
from libremoe.memory import available_bytes
from libremoe.sampling import SamplingParams, with_seed

STEP_S = 0.3  # what a step aims at: a reader for the next token should not wait much longer
QUEUE_CONTEXTS = 32  # by default the queue holds the tokens of this many full contexts


@dataclass(frozen=True)
class Stats:
    """Counters since the engine was made, and its state now."""

    waiting: int  # sequences
    waiting_tokens: int  # their prompts and the most they may generate
    running: int
    blocks: int  # of the KV cache, in all
    blocks_used: int  # held by a sequence
    blocks_cached: int  # held by none, still there to be shared
    prefix_lookup_tokens: int  # tokens that were looked up in the prefix cache
    prefix_hit_tokens: int  # and those that were found
    prompt_tokens: int  # computed, recomputed ones included
    generated_tokens: int
    preemptions: int
    steps: int
    finished: dict[FinishReason, int]
    tokens_per_s: float  # recent, computed tokens of all kinds


class Engine:
    """Continuous batching over one model and one block cache.

    add, cancel and stats may be called from any thread; step, embed and abort from one thread at a time.
    """

    def __init__(
        self,
        model: Model,
        *,
        kv_dtype: torch.dtype | None = None,
        n_blocks: int | None = None,
        kv_bytes: int | None = None,
        eos_ids: frozenset[int] | None = None,
        max_running: int = 16,
        step_tokens: int = 512,
        step_s: float = STEP_S,
        max_waiting: int = 256,
        max_waiting_tokens: int | None = None,
        share_prefixes: bool = True,
        draft: int = 0,
    ):
        """kv_dtype: type of keys and values, float32, bfloat16 or int8, the model's own by default. n_blocks: size of
        the cache in blocks of 64 tokens; else kv_bytes; else what max_running whole contexts need, at most a quarter of
        the free memory.
        eos_ids: ids that end a text; config.eos_id by default. step_tokens: most tokens computed in one step; fewer
        where that would take longer than step_s (seconds, while a sequence decodes; scheduler.Pace says how; math.inf:
        nobody waits for a step).
        max_waiting, max_waiting_tokens: bounds of the queue (tokens: prompts plus the most they may generate).

        draft: how many tokens a decoding sequence guesses ahead with the experts in memory (drafting.py says how).

        Raises LibremoeError where the cache would not hold one block or step_tokens is less than max_running.
        """
        config = model.config
        if not 0 < max_running <= step_tokens:
            raise LibremoeError(f"max_running {max_running} must be at least 1 and at most step_tokens {step_tokens}")
        check_draft(draft, config)
        kv_dtype = kv_dtype or model.dtype
        block_bytes = KVCache.bytes_per_token(config, kv_dtype) * BLOCK_SIZE
        if n_blocks is None:
            wanted = max_running * -(-config.context_len // BLOCK_SIZE)
            budget = available_bytes() // 4 if kv_bytes is None else kv_bytes
            n_blocks = min(wanted, budget // block_bytes)
        if n_blocks < 1:
            raise LibremoeError(f"no room for a KV cache: one block of {BLOCK_SIZE} tokens needs {block_bytes} bytes")
        self.model, self.config = model, config
        self.kv = KVCache(config, n_blocks, kv_dtype)
        self.max_waiting = max_waiting
        self.max_waiting_tokens = max_waiting_tokens or QUEUE_CONTEXTS * config.context_len
        if eos_ids is None:
            eos_ids = frozenset() if config.eos_id is None else frozenset([config.eos_id])
        self.step_tokens = step_tokens
        self.scheduler = Scheduler(BlockAllocator(n_blocks, share_prefixes), eos_ids, max_running,
                                   Pace(step_tokens, step_s), draft)
        self.runner = Runner(model, self.kv)
        self.max_tokens = min(config.context_len, n_blocks * BLOCK_SIZE)  # of one sequence, prompt included
        self._ids = itertools.count(1)
        self._lock = threading.Lock()  # the scheduler's state; held for moments, never while the model runs
        self._steps = 0
        self._tokens_per_s = 0.0

    def add(
        self,
        prompt: list[int],
        params: SamplingParams | None = None,
        *,
        constraint: Constraint | None = None,
        prompt_logprobs: int | None = None,
        prompt_logprobs_from: int = 1,
        deadline_s: float | None = None,
        report_experts: bool = False,
    ) -> Sequence:
        """Queue a request; its outputs come from step(), marked with the sequence's id.

        prompt_logprobs: k >= 0 asks for the log-probability of each prompt token and k alternatives; of those from
        index prompt_logprobs_from on, where it is given: the others are None and may share what others computed.
        params.experts: 1 to all of a mixture; more than the model's own number was not trained.
        params.max_tokens 0 computes the prompt and generates nothing; None generates up to the end of the context.
        deadline_s: how long it may wait for its turn. report_experts: say with each token which experts worked.
        Raises LibremoeError with the numbers where prompt + max_tokens can never fit, where the prompt is empty or
        an id is outside the vocabulary; QueueFull (with retry_after_s) where the queue is full. Nothing is kept then.
        """
        params = with_seed(params or SamplingParams())
        check_tokens(prompt, self.config.vocab_size)
        for field, ids in (("logit_bias", params.logit_bias), ("logprob_token_ids", params.logprob_token_ids)):
            if ids and max(ids) >= self.config.vocab_size:
                raise LibremoeError(f"{field} has token id {max(ids)}, the vocabulary has {self.config.vocab_size}")
        max_tokens = params.max_tokens
        if max_tokens is None:
            max_tokens = max(1, self.max_tokens - len(prompt))
        if len(prompt) + max_tokens > self.max_tokens:
            limit = "the context of the model" if self.max_tokens == self.config.context_len else "the KV cache"
            raise LibremoeError(f"the prompt has {len(prompt)} tokens and max_tokens is {max_tokens}: together "
                                f"{len(prompt) + max_tokens}, {limit} holds {self.max_tokens}")
        if prompt_logprobs is not None and not 0 <= prompt_logprobs <= self.config.vocab_size:
            raise LibremoeError(f"prompt_logprobs must be from 0 to {self.config.vocab_size}, not {prompt_logprobs}")
        if not 1 <= prompt_logprobs_from <= len(prompt):
            raise LibremoeError(f"prompt_logprobs_from must be from 1 to {len(prompt)}, not {prompt_logprobs_from}")
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        seq = Sequence(next(self._ids), list(prompt), params, max_tokens, constraint, prompt_logprobs, deadline,
                       report_experts and self.config.is_moe)
        if prompt_logprobs is not None:
            seq.prompt_logprobs += [None] * prompt_logprobs_from  # nothing precedes the first token
        if params.repetition_penalty != 1:
            seq.prompt_counts.update(prompt)
        seq.n_active = check_experts(params.experts, self.config)
        hash_blocks(seq)
        with self._lock:
            self._check_queue(seq)
            self.scheduler.waiting.append(seq)
        return seq

    def check_room(self) -> None:
        """Raises QueueFull where add would refuse whatever is asked: cheaper than asking. From any thread."""
        with self._lock:
            n_waiting = len(self.scheduler.waiting)
            if n_waiting >= self.max_waiting:
                raise self._too_many(n_waiting)

    def cancel(self, seq: Sequence, reason: FinishReason = "cancelled") -> None:
        """End a sequence: the next step says so in an Output and frees its blocks. Nothing happens if it has ended."""
        seq.cancel_reason = reason

    def has_work(self) -> bool:
        """Whether step() would do anything."""
        return bool(self.scheduler.waiting or self.scheduler.running)

    def step(self) -> list[Output]:
        """One step for every sequence that gets a turn; an output for each token, one unless tokens are drafted."""
        began = time.monotonic()
        with self._lock:
            ended = self.scheduler.sweep()
            works = self.scheduler.schedule()
        works = self.runner.draft(works)
        results = self.runner.run(works)
        with self._lock:
            outputs = self.scheduler.commit(results)
            self._count(works, len(outputs), time.monotonic() - began)
        return ended + outputs

    @torch.inference_mode()
    def embed(self, tokens: list[int]) -> torch.Tensor:
        """(D,) float32: mean over the tokens of the last hidden state after the final norm.

        Raises LibremoeError where the text is empty, longer than the context, or has ids outside the vocabulary.
        """
        check_tokens(tokens, self.config.vocab_size, self.config.context_len)
        kv = KVCache(self.config, num_blocks(len(tokens)), self.kv.dtype)  # of its own, for this text
        blocks = [list(range(kv.n_blocks))]
        total_D = torch.zeros(self.config.dim)
        for start in range(0, len(tokens), self.step_tokens):  # in pieces, or scores grow as T * T
            stop = min(start + self.step_tokens, len(tokens))
            batch = Batch([0, stop - start], torch.arange(start, stop), [stop], blocks)
            total_D += self.model.hidden(torch.tensor(tokens[start:stop]), batch, kv).float().sum(0)
        return total_D / len(tokens)

    def abort(self, error: str, reason: FinishReason = "error") -> list[Output]:
        """End every sequence at once, with this error, and forget the prefix cache; the engine can go on."""
        with self._lock:
            return self.scheduler.reset(reason, error)

    def stats(self) -> Stats:
        with self._lock:
            s = self.scheduler
            return Stats(
                waiting=len(s.waiting), waiting_tokens=self._waiting_tokens(), running=len(s.running),
                blocks=s.blocks.n_blocks, blocks_used=s.blocks.n_used, blocks_cached=s.blocks.n_idle,
                prefix_lookup_tokens=s.blocks.lookup_tokens, prefix_hit_tokens=s.blocks.hit_tokens,
                prompt_tokens=s.prompt_tokens, generated_tokens=s.generated_tokens, preemptions=s.preemptions,
                steps=self._steps, finished=dict(s.finished), tokens_per_s=self._tokens_per_s,
            )

    def draft_stats(self) -> DraftStats:
        """What drafting has done so far; all 0 where there is none."""
        with self._lock:
            return replace(self.scheduler.drafts)

    def _check_queue(self, seq: Sequence) -> None:
        n_waiting, n_tokens = len(self.scheduler.waiting), self._waiting_tokens()
        if n_waiting == 0 and self.max_waiting > 0:
            return  # what fits the cache is never refused by an empty queue
        if n_waiting >= self.max_waiting:
            raise self._too_many(n_waiting)
        if n_tokens + seq.num_reserved > self.max_waiting_tokens:
            raise QueueFull(f"the queue is full: {n_tokens} tokens wait, this request has {seq.num_reserved}, "
                            f"{self.max_waiting_tokens} may", self._retry_after_s(n_tokens))

    def _too_many(self, n_waiting: int) -> QueueFull:
        return QueueFull(f"the queue is full: {n_waiting} requests wait, {self.max_waiting} may",
                         self._retry_after_s(self._waiting_tokens()))

    def _waiting_tokens(self) -> int:
        return sum(seq.num_reserved for seq in self.scheduler.waiting)

    def _retry_after_s(self, n_tokens: int) -> float:
        """Time in which half of the waiting tokens are done at the present rate, within 1 s and 10 minutes."""
        return min(600.0, max(1.0, n_tokens / 2 / max(self._tokens_per_s, 1.0)))

    def _count(self, works: list[Work], n_outputs: int, seconds: float) -> None:
        self._steps += 1
        n_tokens = sum(work.stop - work.start for work in works)
        if works and n_tokens == len(works):  # all decode
            self.scheduler.drafts.note(sum(len(work.draft) for work in works), n_outputs, seconds)
        self.scheduler.pace.note(n_tokens, seconds)
        if n_tokens and seconds > 0:
            rate = n_tokens / seconds
            self._tokens_per_s = rate if not self._tokens_per_s else 0.9 * self._tokens_per_s + 0.1 * rate


def check_experts(experts: int | None, config: ModelConfig) -> int | None:
    """The number of experts that a request wants, None where it is the model's own. Raises LibremoeError."""
    if experts is None or experts == config.n_experts_per_tok:
        return None
    if not config.is_moe:
        raise LibremoeError(f"experts is {experts}, but this model ({config.family}) has no experts to choose among: "
                            f"leave it out")
    if not 1 <= experts <= config.n_experts:
        raise LibremoeError(f"experts is {experts}; this model has {config.n_experts} experts, "
                            f"{config.n_experts_per_tok} of which work on a token by default")
    return experts


def check_draft(draft: int, config: ModelConfig) -> None:
    """Raises LibremoeError where so many tokens cannot be drafted by this model."""
    if not 0 <= draft <= MAX_DRAFT:
        raise LibremoeError(f"draft is {draft}; it must be from 0 to {MAX_DRAFT} tokens")
    if draft and not config.is_moe:
        raise LibremoeError(f"draft is {draft}, but this model ({config.family}) has no experts to draft with: "
                            f"leave it out")


def check_tokens(tokens: list[int], vocab_size: int, context_len: int | None = None) -> None:
    """Raises LibremoeError where there are none, more than context_len, or one outside the vocabulary."""
    if not tokens:
        raise LibremoeError("the prompt is empty: at least one token is needed")
    if context_len is not None and len(tokens) > context_len:
        raise LibremoeError(f"the text has {len(tokens)} tokens, the context holds {context_len}")
    lowest, highest = min(tokens), max(tokens)
    if lowest < 0 or highest >= vocab_size:
        raise LibremoeError(f"token id {lowest if lowest < 0 else highest} is outside the vocabulary of {vocab_size}")
