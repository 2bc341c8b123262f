"""The engine: many sequences, one model, one step at a time. `Engine.step` is the documentation.

Not here: text (language_model.py, server/), threads and event loops (threaded.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from libremoe.batch import Batch, KVCache
from libremoe.config import ModelConfig
from libremoe.engine.sequence import Constraint, FinishReason, Output, Sequence

if TYPE_CHECKING:
    from libremoe.sampling import SamplingParams


class Model(Protocol):
    """What the engine needs of a network; tests pass a stub."""

    config: ModelConfig

    def __call__(self, tokens_N: torch.Tensor, batch: Batch, kv: KVCache | None = None) -> torch.Tensor: ...

    def hidden(self, tokens_N: torch.Tensor, batch: Batch, kv: KVCache | None = None) -> torch.Tensor: ...


@dataclass(frozen=True)
class Stats:
    """Counters since the engine was made, and its state now."""

    waiting: int  # sequences
    waiting_tokens: int  # their prompts and the most they may generate
    running: int
    blocks: int  # of the KV cache, in all
    blocks_used: int  # held by a sequence
    blocks_cached: int  # held by none, still there to be shared
    prefix_lookup_tokens: int  # prompt tokens that were looked up in the prefix cache
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
        max_waiting: int = 256,
        max_waiting_tokens: int | None = None,
        share_prefixes: bool = True,
    ):
        """kv_dtype: type of keys and values, the model's own by default. n_blocks: size of the cache in blocks of 64
        tokens; else kv_bytes; else what max_running whole contexts need, but at most a quarter of the free memory.
        eos_ids: ids that end a text; config.eos_id by default. step_tokens: most tokens computed in one step.
        max_waiting, max_waiting_tokens: bounds of the queue (tokens: prompts plus the most they may generate).

        Raises LibremoeError where the cache would not hold one block.
        """
        raise RuntimeError

    def add(
        self,
        prompt: list[int],
        params: SamplingParams | None = None,
        *,
        constraint: Constraint | None = None,
        prompt_logprobs: int | None = None,
        deadline_s: float | None = None,
    ) -> Sequence:
        """Queue a request; its outputs come from step(), marked with the sequence's id.

        prompt_logprobs: k >= 0 asks for the log-probability of each prompt token and k alternatives. params.max_tokens 0
        computes the prompt and generates nothing. deadline_s: how long it may wait for its turn.
        Raises LibremoeError with the numbers where prompt + max_tokens can never fit, where the prompt is empty or an id
        is outside the vocabulary; QueueFull (with retry_after_s) where the queue is full. Nothing is kept then.
        """
        raise RuntimeError

    def cancel(self, seq: Sequence, reason: FinishReason = "cancelled") -> None:
        """End a sequence: the next step says so in an Output and frees its blocks. Nothing happens if it has ended."""
        raise RuntimeError

    def has_work(self) -> bool:
        """Whether step() would do anything."""
        raise RuntimeError

    def step(self) -> list[Output]:
        """One step for every sequence that gets a turn."""
        raise RuntimeError

    def embed(self, tokens: list[int]) -> torch.Tensor:
        """(D,) float32: mean over the tokens of the last hidden state after the final norm, without the cache.

        Raises LibremoeError where the text is empty, longer than the context, or has ids outside the vocabulary.
        """
        raise RuntimeError

    def abort(self, error: str) -> list[Output]:
        """End every sequence with this error and free the whole cache; the engine can go on."""
        raise RuntimeError

    def stats(self) -> Stats:
        raise RuntimeError
