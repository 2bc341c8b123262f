"""Runs the work of one step: one flat batch through the model, then one draw for each sequence that is due a token.

An exception that belongs to one sequence (its constraint, its draw) becomes its Result's error. One from the model is
nobody's yet: every sequence is then run again alone, and only those that fail alone end. Running again is safe, because
a step writes the same keys and values to the same places.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence as Rows
from dataclasses import replace
from typing import Protocol

import torch

from libremoe.batch import Batch, KVCache
from libremoe.config import ModelConfig
from libremoe.engine.kv_cache import num_blocks
from libremoe.engine.scheduler import Result, Work
from libremoe.engine.sequence import Experts, Logprob
from libremoe.errors import LibremoeError
from libremoe.sampling import Sampled, sample

log = logging.getLogger(__name__)


class Model(Protocol):
    """What the engine needs of a network; tests pass a stub."""

    config: ModelConfig
    dtype: torch.dtype  # of activations

    def __call__(self, tokens_N: torch.Tensor, batch: Batch, kv: KVCache | None = None) -> torch.Tensor: ...

    def hidden(self, tokens_N: torch.Tensor, batch: Batch, kv: KVCache | None = None) -> torch.Tensor: ...


class Runner:
    def __init__(self, model: Model, kv: KVCache):
        self.model, self.kv = model, kv

    @torch.inference_mode()
    def run(self, works: list[Work]) -> list[Result]:
        """A result for each work, in order. Raises nothing that a sequence or the model can cause."""
        if not works:
            return []
        try:
            logits_MV, watched = self._forward(works)
        except Exception as error:  # a batch's failure must not end sequences that have no part in it
            if len(works) > 1:
                log.exception("a batch of %d sequences failed; each is tried alone", len(works))
                return [result for work in works for result in self.run([work])]
            log.exception("the model failed on sequence %d", works[0].seq.id)
            return [Result(works[0], error=_sentence(error))]
        results, row = [], 0
        for work in works:
            n_rows = len(_rows(work))
            results.append(self._result(work, logits_MV[row : row + n_rows], watched.get(work.seq.id, ())))
            row += n_rows
        return results

    @torch.inference_mode()
    def draft(self, works: list[Work]) -> list[Work]:
        """The same works, with drafted tokens where there is room for them. Failing here means fewer drafts."""
        drafts: dict[int, list[int]] = {i: [] for i, work in enumerate(works) if work.n_draft}
        going = list(drafts)
        try:
            while going:
                for i, logits_V in zip(going, self._guess([(works[i], drafts[i]) for i in going]), strict=True):
                    seq, n = works[i].seq, len(drafts[i])
                    counts = seq.output_counts + Counter(drafts[i])
                    token = sample(logits_V, seq.params, len(seq.output_ids) + n, seq.prompt_counts, counts).token
                    if self.model.config.pad_id is not None and token <= self.model.config.pad_id:
                        going = [j for j in going if j != i]  # the cache remembers for ever that it has seen a pad
                        continue
                    drafts[i].append(token)
                going = [i for i in going if len(drafts[i]) < works[i].n_draft]
        except Exception:  # the pass that verifies meets the same failure, if it is one of the model
            log.exception("drafting failed")
        return [replace(work, draft=tuple(drafts.get(i, ()))) for i, work in enumerate(works)]

    def _guess(self, drafting: list[tuple[Work, list[int]]]) -> torch.Tensor:
        """(B, V): what follows the last drafted token of each, or its last true one, by the experts in memory."""
        tokens = [draft[-1] if draft else work.seq.tokens(work.stop - 1, work.stop)[0] for work, draft in drafting]
        ends = [work.stop + len(draft) for work, draft in drafting]
        tables = [work.seq.block_table[: num_blocks(end)] for (work, _), end in zip(drafting, ends, strict=True)]
        batch = Batch(list(range(len(tokens) + 1)), torch.tensor(ends) - 1, ends, tables,
                      n_active=self._n_active([work for work, _ in drafting]), resident_only=True)
        return self.model(torch.tensor(tokens), batch, self.kv)

    def _forward(self, works: list[Work]) -> tuple[torch.Tensor, dict[int, tuple[Experts, ...]]]:
        """(M, V) float32: the rows that _rows names, work after work. And by sequence that reports them, the experts of
        each row that a token is drawn from."""
        tokens: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        watched: list[tuple[int, int]] = []  # sequence, row
        starts = [0]
        for work in works:
            if work.seq.report_experts and work.is_last:
                watched += [(work.seq.id, starts[-1] + p - work.start) for p in range(work.stop - 1, work.end)]
            rows += [starts[-1] + position - work.start for position in _rows(work)]
            tokens += [*work.seq.tokens(work.start, work.stop), *work.draft]
            positions += range(work.start, work.end)
            starts.append(len(tokens))
        tables = [work.seq.block_table[: num_blocks(work.end)] for work in works]
        batch = Batch(starts, torch.tensor(positions), [work.end for work in works], tables,
                      torch.tensor(rows, dtype=torch.int64), self._n_active(works),
                      watched_rows=torch.tensor([row for _, row in watched]) if watched else None)
        return self.model(torch.tensor(tokens), batch, self.kv), self._experts(works, watched, batch)

    def _experts(self, works: list[Work], watched: list[tuple[int, int]],
                 batch: Batch) -> dict[int, tuple[Experts, ...]]:
        """The choices that the pass noted, by sequence, one entry for each watched row."""
        if not batch.chosen:
            return {}
        n_active = {w.seq.id: w.seq.n_active or self.model.config.n_experts_per_tok for w in works}
        found: dict[int, list[Experts]] = {}
        for (id, _), layers in zip(watched, torch.stack(batch.chosen, 1).tolist(), strict=True):
            found.setdefault(id, []).append(tuple(tuple(ids[: n_active[id]]) for ids in layers))
        return {id: tuple(experts) for id, experts in found.items()}

    def _n_active(self, works: list[Work]) -> list[int] | None:
        if all(work.seq.n_active is None for work in works):
            return None
        return [work.seq.n_active or self.model.config.n_experts_per_tok for work in works]

    def _result(self, work: Work, logits_MV: torch.Tensor, experts: tuple[Experts, ...] = ()) -> Result:
        seq = work.seq
        try:
            prompt_logprobs = _prompt_logprobs(work, logits_MV)
            if not work.is_last or seq.max_tokens == 0:
                return Result(work, prompt_logprobs=prompt_logprobs)
            return Result(work, _draw(work, logits_MV), prompt_logprobs, experts=experts)
        except Exception as error:  # constraints are not ours, and a mask may leave nothing to draw
            log.exception("sequence %d failed", seq.id)
            return Result(work, error=_sentence(error))


def _draw(work: Work, logits_MV: torch.Tensor) -> tuple[Sampled, ...]:
    """The next token, and after each drafted token that equals the true one, one more (drafting.py says why)."""
    seq = work.seq
    mask = None if seq.constraint is None else seq.constraint.mask()
    counts = Counter(seq.output_counts) if work.draft else seq.output_counts
    sampled: list[Sampled] = []
    for i, logits_V in enumerate(logits_MV[-1 - len(work.draft) :]):
        one = sample(logits_V, seq.params, len(seq.output_ids) + i, seq.prompt_counts, counts, mask)
        sampled.append(one)
        if i == len(work.draft) or one.token != work.draft[i]:
            break
        counts[one.token] += 1
    if seq.constraint is not None:
        seq.constraint.accept(sampled[0].token)
    return tuple(sampled)


def _first_row(work: Work) -> int:
    """The first position of this work whose logits say something that is still wanted about the prompt."""
    return max(work.start, len(work.seq.prompt_logprobs) - 1)


def _rows(work: Work) -> Rows[int]:
    """Positions whose logits are wanted: those before each prompt token that is to be scored, the last, and drafts."""
    scored = range(0)
    if work.seq.n_prompt_logprobs is not None:
        scored = range(_first_row(work), min(work.stop, len(work.seq.prompt_ids) - 1))
    return [*scored, *range(work.stop - 1, work.end)] if work.is_last else scored


def _prompt_logprobs(work: Work, logits_MV: torch.Tensor) -> tuple[Logprob, ...]:
    """Of the prompt tokens that follow the rows of this work; a row at a time, since V may be large."""
    seq = work.seq
    if seq.n_prompt_logprobs is None:
        return ()
    scored = []
    for logits_V, position in zip(logits_MV, range(_first_row(work), len(seq.prompt_ids) - 1), strict=False):
        if position >= work.stop:
            break
        logprobs_V = logits_V.log_softmax(-1)
        token = seq.prompt_ids[position + 1]
        values, ids = logprobs_V.topk(seq.n_prompt_logprobs)
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        scored.append(Logprob(token, float(logprobs_V[token]), top))
    return tuple(scored)


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, LibremoeError) else f"{type(error).__name__}: {error}"
