"""Whose turn it is. Every step computes one token of each running sequence that decodes, and fills what is left of its
token budget with pieces of prompts; new sequences join as soon as their present tokens have room in the cache.

When a decoding sequence finds no free block, the newest running one is put back: its blocks are freed and its tokens,
which do not change, are computed again later. The oldest therefore always advances, and since no sequence is let in
that could not have the whole cache, every sequence ends.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from dataclasses import dataclass, replace

from libremoe.batch import BLOCK_SIZE
from libremoe.engine.drafting import PLAIN_EVERY, DraftStats
from libremoe.engine.kv_cache import BlockAllocator
from libremoe.engine.sequence import Experts, FinishReason, Logprob, Output, Sequence
from libremoe.sampling import Sampled


@dataclass(frozen=True)
class Work:
    """A sequence's turn: compute its tokens start:stop, and sample the next one if these are all it has.

    n_draft: for how many drafted tokens after them there is room. draft: those tokens, once they are drafted; they are
    computed too, and each that proves right is followed by one more sampled token.
    """

    seq: Sequence
    start: int
    stop: int
    n_draft: int = 0
    draft: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """One after the last position that is computed."""
        return self.stop + len(self.draft)

    @property
    def is_last(self) -> bool:
        return self.stop == self.seq.num_tokens


@dataclass(frozen=True)
class Result:
    """What became of a Work: a token where it was the last piece, and one more for each right draft; or an error."""

    work: Work
    sampled: tuple[Sampled, ...] = ()
    prompt_logprobs: tuple[Logprob, ...] = ()
    error: str | None = None
    experts: tuple[Experts, ...] = ()  # one for each of sampled, where the sequence reports them


class Pace:
    """How many tokens a step may take so that nobody waits long for it: readers for their next token, whoever has left
    for being noticed. Learnt from steps that were mostly prompts; one that only decodes says nothing about them."""

    FIRST_TOKENS = 128  # before anything is known
    LEAST_TOKENS = 64  # below, each step would read all weights for little: slower for everybody
    LONGER_ALONE = 3  # a step may be so much longer while nobody decodes

    def __init__(self, step_tokens: int, step_s: float):
        """step_tokens: at most; step_s: seconds that a step aims at while a sequence decodes."""
        self.step_tokens, self.step_s = step_tokens, step_s
        self._tokens_per_s = 0.0

    def note(self, n_tokens: int, seconds: float) -> None:
        """A step took so long."""
        if n_tokens < min(self.LEAST_TOKENS, self.step_tokens) or seconds <= 0:
            return
        rate = n_tokens / seconds
        self._tokens_per_s = rate if not self._tokens_per_s else 0.5 * (self._tokens_per_s + rate)

    def prompt_tokens(self, n_decoding: int) -> int:
        """How many tokens of prompts the next step may take beside those of n_decoding sequences."""
        if self.step_s == math.inf:  # nobody waits
            return self.step_tokens - n_decoding
        wanted = self.FIRST_TOKENS
        if self._tokens_per_s:
            seconds = self.step_s * (1 if n_decoding else self.LONGER_ALONE)
            wanted = max(int(self._tokens_per_s * seconds) - n_decoding, self.LEAST_TOKENS)
        return min(wanted, self.step_tokens - n_decoding)


class Scheduler:
    def __init__(self, blocks: BlockAllocator, eos_ids: frozenset[int], max_running: int, pace: Pace,
                 draft: int = 0):
        self.blocks, self.eos_ids = blocks, eos_ids
        self.max_running, self.pace, self.draft = max_running, pace, draft
        self.drafts = DraftStats()
        self._schedules = 0
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in the order in which they were let in
        self.preemptions = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.finished: Counter[FinishReason] = Counter()

    def sweep(self) -> list[Output]:
        """End what was cancelled, and what waited beyond its deadline without ever running."""
        outputs = []
        for seq in [*self.waiting, *self.running]:
            if seq.cancel_reason is not None:
                outputs.append(self.finish(seq, seq.cancel_reason))
            elif seq.deadline is not None and not seq.began and time.monotonic() > seq.deadline:
                waited = time.monotonic() - seq.arrived
                outputs.append(self.finish(seq, "deadline", f"the request waited {waited:.1f} s for its turn"))
        return outputs

    def schedule(self) -> list[Work]:
        """The work of one step, as many tokens as the pace allows, oldest sequences first in each of three parts."""
        works: list[Work] = []
        for seq in list(self.running):  # decode
            if seq.status == "running" and seq.num_uncached == 1 and self._make_room(seq):
                works.append(Work(seq, seq.num_cached, seq.num_tokens))
        budget = self.pace.prompt_tokens(len(works))
        for seq in self.running:  # prompts that were begun
            if seq.num_uncached > 1 and budget > 0:
                works.append(self._piece(seq, budget))
                budget -= works[-1].stop - works[-1].start
        coming = {hash for seq in self.running for hash in self._unpublished(seq)}
        for seq in list(self.waiting):  # new ones
            if budget <= 0 or len(self.running) >= self.max_running:
                break
            shared = self.blocks.shared_prefix(seq)
            if self.blocks.next_missing(seq, shared) in coming:
                continue  # a running sequence is about to compute the same block: share it in a moment
            if not self.blocks.can_allocate(seq, shared):
                break  # none overtakes it, or a long prompt would wait for ever
            self._admit(seq, shared)
            coming.update(self._unpublished(seq))
            works.append(self._piece(seq, budget))
            budget -= works[-1].stop - works[-1].start
        self._schedules += 1
        if self.draft and self._schedules % PLAIN_EVERY:
            works = [self._with_room(work) for work in works]
        return works

    def commit(self, results: list[Result]) -> list[Output]:
        """Write the results of a step into their sequences, and say what is new."""
        return [output for result in results for output in self._commit(result)]

    def finish(self, seq: Sequence, reason: FinishReason, error: str | None = None) -> Output:
        """End a sequence that gets no token in this step, and free its blocks."""
        self._end(seq, reason, error)
        return Output(seq.id, finish_reason=reason, error=error)

    def reset(self, reason: FinishReason, error: str) -> list[Output]:
        """End every sequence and begin with an empty cache. Relies on no state, since it may be what is broken."""
        outputs = []
        for seq in [*self.waiting, *self.running]:
            seq.block_table, seq.num_cached = [], 0
            seq.status, seq.finish_reason, seq.error = "finished", reason, error
            self.finished[reason] += 1
            outputs.append(Output(seq.id, finish_reason=reason, error=error))
        self.waiting.clear()
        self.running.clear()
        self.blocks.clear()
        return outputs

    def _commit(self, result: Result) -> list[Output]:
        seq, work = result.work.seq, result.work
        if result.error is not None:
            return [self.finish(seq, "error", result.error)]
        was_last = work.is_last
        self.prompt_tokens += max(0, min(work.stop, len(seq.prompt_ids)) - work.start)
        is_first = not seq.output_ids and seq.n_prompt_logprobs is not None
        if result.prompt_logprobs:
            seq.prompt_logprobs += result.prompt_logprobs
        new = self._append(seq, result.sampled)
        computed = work.stop + max(0, len(new) - 1)  # the last of the new tokens has no keys and values yet
        self.blocks.publish(seq, work.start, computed)
        seq.num_cached = computed
        if work.draft:
            self.drafts.passes += 1
            self.drafts.drafted += len(work.draft)
            self.drafts.accepted += len(new) - 1
        if not was_last:
            return []
        prompt_logprobs = tuple(seq.prompt_logprobs) if is_first else None
        if not new:  # max_tokens 0
            self._end(seq, "length")
            return [Output(seq.id, finish_reason="length", prompt_logprobs=prompt_logprobs)]
        outputs = []
        for i, (sampled, reason) in enumerate(new):
            if reason is not None:
                self._end(seq, reason)
            outputs.append(Output(seq.id, sampled.token, sampled.logprob, tuple(sampled.top), reason, None,
                                  prompt_logprobs if i == 0 else None,
                                  result.experts[i] if result.experts else None))
        return outputs

    def _append(self, seq: Sequence, sampled: tuple[Sampled, ...]) -> list[tuple[Sampled, FinishReason | None]]:
        """Give seq these tokens up to the one that ends it, if one does; those that it got, with the reason to end."""
        new: list[tuple[Sampled, FinishReason | None]] = []
        for one in sampled:
            seq.output_ids.append(one.token)
            seq.output_counts[one.token] += 1
            self.generated_tokens += 1
            if one.logprob is not None:
                seq.logprobs.append(Logprob(one.token, one.logprob, tuple(one.top)))
            reason: FinishReason | None = None
            if one.token in self.eos_ids and not seq.params.ignore_eos:
                reason = "stop"
            elif len(seq.output_ids) >= seq.max_tokens:
                reason = "length"
            new.append((one, reason))
            if reason is not None:
                break
        return new

    def _end(self, seq: Sequence, reason: FinishReason, error: str | None = None) -> None:
        if seq.status == "running":
            self.running.remove(seq)
        else:
            self.waiting.remove(seq)
        self.blocks.release(seq)
        seq.status, seq.finish_reason, seq.error = "finished", reason, error
        self.finished[reason] += 1

    def _make_room(self, seq: Sequence) -> bool:
        """A place for the newest token of seq, putting back the newest sequences; False where that was seq itself."""
        while not self.blocks.can_grow(seq):
            newest = self.running[-1]
            self._preempt(newest)
            if newest is seq:
                return False
        self.blocks.grow(seq)
        return True

    def _preempt(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self.blocks.release(seq)
        seq.status = "waiting"
        seq.num_preempted += 1
        self.preemptions += 1
        self.waiting.appendleft(seq)

    def _admit(self, seq: Sequence, shared: list[int]) -> None:
        self.waiting.remove(seq)
        self.blocks.allocate(seq, shared)
        self.running.append(seq)
        seq.status, seq.began = "running", True

    def _with_room(self, work: Work) -> Work:
        """Room for drafted tokens after those of a sequence that decodes, as far as blocks are free: none is put back
        for them. No draft follows a constraint, which walks along with true tokens only."""
        seq = work.seq
        if work.stop - work.start > 1 or not work.is_last or seq.constraint is not None:
            return work
        n_draft = min(self.draft, seq.max_tokens - len(seq.output_ids) - 1)
        while n_draft > 0 and not self.blocks.can_grow(seq, n_draft):
            n_draft -= 1
        if n_draft <= 0:
            return work
        self.blocks.grow(seq, n_draft)
        return replace(work, n_draft=n_draft)

    def _piece(self, seq: Sequence, budget: int) -> Work:
        return Work(seq, seq.num_cached, min(seq.num_cached + budget, seq.num_tokens))

    def _unpublished(self, seq: Sequence) -> list[bytes]:
        """Hashes of the full blocks that a running sequence has still to compute."""
        return seq.block_hashes[seq.num_cached // BLOCK_SIZE :]
