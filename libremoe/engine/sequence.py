"""One request's whole state (Sequence), and what a step says about it (Output).

Others move this state, none mirror it.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch

from libremoe.errors import LibremoeError

if TYPE_CHECKING:
    from libremoe.sampling import SamplingParams

FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]
Status = Literal["waiting", "running", "finished"]
Experts = tuple[tuple[int, ...], ...]  # of one token: for each layer its chosen experts, most probable first


class QueueFull(LibremoeError):
    """Too many requests, or too many of their tokens, wait already. retry_after_s: an estimate of when to try again."""

    def __init__(self, reason: str, retry_after_s: float):
        self.retry_after_s = retry_after_s
        super().__init__(reason)


class Constraint(Protocol):
    """A grammar that walks along with one sequence. Both calls may raise; that ends this sequence with an error."""

    def mask(self) -> torch.Tensor | None:
        """(V,) bool, True for tokens that may come next; None where all may."""

    def accept(self, token: int) -> None:
        """The token that was sampled."""


class Logprob(NamedTuple):
    """Natural logarithm of a token's probability, and the most probable tokens there, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Output:
    """What one step did for one sequence: at most one token, and possibly its end.

    token: None where the sequence ended without one (cancelled, deadline, error, or max_tokens 0). An end-of-text id
    that ended the sequence is given too, with finish_reason "stop". logprob, top: where params.logprobs asks.
    prompt_logprobs: with the first output, where asked for: one per prompt token, None for the first and any before
    the index asked for.
    experts: where the request asked and the model has some: which worked on the pass that the token was drawn from.
    error: a sentence, where finish_reason is "error" or "deadline".
    After an output with a finish_reason comes no other.
    """

    seq_id: int
    token: int | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None
    prompt_logprobs: tuple[Logprob | None, ...] | None = None
    experts: Experts | None = None


@dataclass(eq=False)
class Sequence:
    """One request from arrival to end. `id` is made by the engine; what a client sends is never used as one."""

    id: int
    prompt_ids: list[int]
    params: SamplingParams  # with a seed
    max_tokens: int  # params.max_tokens, or what was left of the context
    constraint: Constraint | None = None
    n_prompt_logprobs: int | None = None  # None: not asked for; 0: without alternatives
    deadline: float | None = None  # time.monotonic() by which it must have begun to run
    report_experts: bool = False  # whether each Output says which experts worked
    arrived: float = field(default_factory=time.monotonic)

    status: Status = "waiting"
    output_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)  # of output_ids, where params.logprobs asks
    prompt_logprobs: list[Logprob | None] = field(default_factory=list)  # as far as they are computed
    prompt_counts: Counter[int] = field(default_factory=Counter)  # token -> how often, where a penalty asks for it
    output_counts: Counter[int] = field(default_factory=Counter)
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)  # chained, of the full blocks of tokens so far
    num_cached: int = 0  # tokens whose keys and values are in the cache
    num_shared: int = 0  # of these, how many prompt tokens others had computed, when it first ran
    n_active: int | None = None  # how many experts work on each token, where not the model's own number
    num_preempted: int = 0  # how often it was put back
    began: bool = False  # whether it ever ran
    cancel_reason: FinishReason | None = None  # set by cancel(), obeyed by the next step
    finish_reason: FinishReason | None = None
    error: str | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_uncached(self) -> int:
        """Tokens still to compute: 1 when decoding, more when prefilling."""
        return self.num_tokens - self.num_cached

    @property
    def num_reserved(self) -> int:
        """The most tokens it can come to have."""
        return len(self.prompt_ids) + self.max_tokens

    def tokens(self, start: int, stop: int) -> list[int]:
        """Ids at positions start:stop, of the prompt and what followed."""
        n = len(self.prompt_ids)
        return self.prompt_ids[start:stop] + self.output_ids[max(start - n, 0) : max(stop - n, 0)]
