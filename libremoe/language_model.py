"""The Python front door: a path becomes a LanguageModel, a prompt becomes text, piece by piece.

    lm = load(path)
    for text in lm.stream("Once upon a time", max_tokens=50): ...
    lm.generate("Once upon a time", temperature=0).text      # the same stream, collected
    lm.logits([5, 17, 23])                                   # (3, vocab) float32, needs no tokenizer
"""

from __future__ import annotations

import dataclasses
import math
import operator
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import torch

from libremoe.batch import Batch, KVCache
from libremoe.engine.drafting import DraftStats
from libremoe.engine.engine import STEP_S, Engine, check_draft, check_tokens
from libremoe.engine.kv_cache import num_blocks
from libremoe.engine.sequence import FinishReason, Logprob, Output
from libremoe.engine.sequence import Sequence as EngineSequence
from libremoe.errors import LibremoeError
from libremoe.loading import MAPPABLE, STREAMABLE, build, build_streamed, check_memory, plan_budget
from libremoe.memory import parse_bytes
from libremoe.model import Transformer
from libremoe.pieces import Piece, PieceDecoder
from libremoe.sampling import SamplingParams
from libremoe.streaming import StreamedExperts, StreamStats
from libremoe.tokenizer import Tokenizer, open_tokenizer
from libremoe.weights import Reader, check_names, open_checkpoint


@dataclass
class RunStats:
    """What the last run did, while it runs and after."""

    prompt_tokens: int = 0
    shared_tokens: int = 0  # of these, found in the cache
    tokens: int = 0  # generated
    first_token_s: float = 0.0  # from the call to the first token
    seconds: float = 0.0  # from the call to the last token
    experts: StreamStats | None = None  # where experts are streamed: what this run did to them
    drafts: DraftStats | None = None  # where tokens are drafted: what came of it, since loading

    @property
    def tokens_per_s(self) -> float:
        """Of the tokens after the first, which waits for the prompt; 0 where there is no such token."""
        decoding = self.seconds - self.first_token_s
        return (self.tokens - 1) / decoding if self.tokens > 1 and decoding > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "tokens_per_s": self.tokens_per_s}

    def describe(self) -> str:
        """One line for a person."""
        shared = f", {self.shared_tokens} of them cached" if self.shared_tokens else ""
        return (f"{self.prompt_tokens} prompt tokens{shared}; first token after {self.first_token_s:.2f} s; "
                f"{self.tokens} tokens at {self.tokens_per_s:.2f} tokens/s"
                + (f"\n{self.experts.describe()}" if self.experts is not None else "")
                + (f"\n{self.drafts.describe()}" if self.drafts is not None else ""))


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Completion:
    """A whole answer: the stream, collected."""

    text: str
    tokens: list[int]
    logprobs: list[Logprob]
    finish_reason: FinishReason
    usage: Usage


def load(
    path: Path | str,
    dtype: torch.dtype | str = torch.float32,
    tokenizer: Tokenizer | Path | str | None = None,
    mmap: bool = False,
    progress: Callable[[int, int], None] | None = None,
    memory: int | str | None = None,
    batch: int = 1,
    draft: int = 0,
    kv: torch.dtype | str | None = None,
    tokens: int | None = None,
) -> LanguageModel:
    """A model from the official Grok-1 folder, a Hugging Face folder, a GGUF file or libremoe's own folder.

    dtype: type of activations, torch.float32 or torch.bfloat16 ("float32", "bf16", "bfloat16"); weights keep the
    type in which they are stored. tokenizer: a tokenizer, its file, or "bytes"; by default the one that lies with
    the weights, or None where there is none. mmap: map the files instead of reading them (the official folder and
    libremoe's own). progress(done, total): called as bytes are read. memory: bytes, or "12G", that this process may
    occupy in all; what the model needs beyond is streamed from the disk (docs/streaming.md). batch: for how many
    sequences at once that memory is shared out; tokens: how many they hold together, where that is known. draft: how
    many tokens to guess ahead with the experts in memory. kv: what keys and values are kept in, torch.float32,
    torch.bfloat16 or torch.int8 or their names; by default the type of activations.

    Raises CheckpointError for files that cannot be used, LibremoeError where they do not fit into memory, or where
    the tokenizer belongs to another model.
    """
    activations = _dtype(dtype, "dtype", ("float32", "bfloat16"))
    kv_dtype = activations if kv is None else _dtype(kv, "kv", ("float32", "bfloat16", "int8"))
    reader = open_checkpoint(path)
    check_names(reader)
    check_draft(draft, reader.config)
    if mmap and memory is not None:
        raise LibremoeError("mmap leaves memory to the system, memory keeps it within bounds: choose one of them")
    if mmap:
        reader = _mapped(reader)
    elif memory is None:
        check_memory(reader)
    found = _tokenizer(reader, tokenizer)
    if memory is None:
        return LanguageModel(build(reader, activations, progress), found, draft=draft, kv_dtype=kv_dtype)
    budget = plan_budget(reader, parse_bytes(memory) if isinstance(memory, str) else memory, kv_dtype, batch, tokens)
    if reader.kind in STREAMABLE:
        reader.drop_pages = True  # type: ignore[attr-defined]
    model = (build(reader, activations, progress) if budget.expert_bytes is None
             else build_streamed(reader, budget, activations, progress))
    return LanguageModel(model, found, kv_bytes=budget.kv_bytes, step_tokens=budget.step_tokens,
                         draft=draft, kv_dtype=kv_dtype)


class LanguageModel:
    """A network, its tokenizer and an engine of its own, for one person at a time.

    Several streams may be open at once; they take turns. stats: of the run that was begun last.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer | None = None, kv_bytes: int | None = None,
                 step_tokens: int | None = None, draft: int = 0, kv_dtype: torch.dtype | None = None):
        """kv_bytes: what keys and values may take; by default the engine looks at what is free. step_tokens: what a
        step may compute at once where memory is bounded. draft: tokens that an engine is to guess ahead. kv_dtype: what
        keys and values are kept in, float32, bfloat16 or int8; by default the type of activations.

        Raises LibremoeError where the tokenizer has ids that the model does not know.
        """
        self.kv_bytes, self.step_tokens, self.draft = kv_bytes, step_tokens, draft
        self.model, self.config, self.tokenizer = model, model.config, tokenizer
        self.kv_dtype = kv_dtype or model.dtype
        if tokenizer is not None and tokenizer.vocab_size > self.config.vocab_size:
            raise LibremoeError(f"the tokenizer has {tokenizer.vocab_size} ids, the model {self.config.vocab_size}: "
                                f"they do not belong together")
        ends = (self.config.eos_id, None if tokenizer is None else tokenizer.eos_id)
        self.eos_ids = frozenset(id for id in ends if id is not None)
        self.stats = RunStats()
        self._unread: dict[int, deque[Output]] = {}  # by sequence: what another stream's step brought
        self._lock = threading.Lock()

    @property
    def streamed(self) -> StreamedExperts | None:
        """The store of a model whose experts are streamed; None where all are in memory."""
        block: Any = self.model.blocks[0]
        store = block.moe.experts
        return store if isinstance(store, StreamedExperts) else None

    @property
    def step_s(self) -> float:
        """What a step of an engine over this model aims at. Streamed, a short step reads nearly what a long one does,
        so prompts are taken in as few steps as there can be."""
        return STEP_S if self.streamed is None else math.inf

    @cached_property
    def engine(self) -> Engine:
        """Made when first used, so that whoever brings an engine of their own has no second cache."""
        return Engine(self.model, eos_ids=self.eos_ids, max_running=1, kv_bytes=self.kv_bytes,
                      step_s=self.step_s, draft=self.draft, kv_dtype=self.kv_dtype)

    def stream(self, prompt: str | Sequence[int], params: SamplingParams | None = None,
               **fields: Any) -> Iterator[str]:
        """Text as it becomes certain: never half a character, never a part of a stop string.

        prompt: text (BOS is added where the model wants it), or token ids, taken as they are. fields: those of
        SamplingParams, by name; they replace those of params. Closing the iterator ends the run.
        Raises LibremoeError for wrong fields, a prompt that is empty or too long, or where there is no tokenizer.
        """
        if self.tokenizer is None:
            raise LibremoeError("no tokenizer lies with this model: give one (tokenizer=..., --tokenizer FILE), or use "
                                "pieces() with token ids")
        pieces = self.pieces(prompt, params, **fields)
        return (piece.text for piece in pieces if piece.text)

    def generate(self, prompt: str | Sequence[int], params: SamplingParams | None = None,
                 **fields: Any) -> Completion:
        """The whole answer; arguments and errors as of stream(). Without a tokenizer its text is empty."""
        ids, params = self.encode(prompt), _with_fields(params, fields)
        pieces = list(self.pieces(ids, params))
        tokens = [token for piece in pieces for token in piece.tokens]
        return Completion(
            text="".join(piece.text for piece in pieces), tokens=tokens,
            logprobs=[logprob for piece in pieces for logprob in piece.logprobs],
            finish_reason=pieces[-1].finish_reason or "stop", usage=Usage(len(ids), len(tokens)),
        )

    def pieces(self, prompt: str | Sequence[int], params: SamplingParams | None = None, *,
               report_experts: bool = False, **fields: Any) -> Iterator[Piece]:
        """One piece for each token; the last one has the finish_reason. Arguments and errors as of stream().

        report_experts: say with each piece which experts of a mixture worked. Works without a tokenizer for prompts of
        token ids; text is empty then.
        """
        params = _with_fields(params, fields)
        if params.stop and self.tokenizer is None:
            raise LibremoeError("stop strings need a tokenizer: give one (tokenizer=..., --tokenizer FILE)")
        return self._pieces(self.encode(prompt), params, report_experts)

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a prompt: text with BOS where the model wants it, ids as they are."""
        if not isinstance(prompt, str):
            return _token_ids(prompt)
        if self.tokenizer is None:
            raise LibremoeError("no tokenizer lies with this model: give one (tokenizer=..., --tokenizer FILE), or a "
                                "prompt of token ids")
        ids = self.tokenizer.encode(prompt)
        bos = self.config.bos_id if self.config.bos_id is not None else self.tokenizer.bos_id
        if self.config.add_bos and bos is not None and ids[:1] != [bos]:
            return [bos, *ids]
        return ids

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """(T, vocab) float32: row t is about the token after ids[t]. Whole text at once; through a cache only where
        keys and values are kept in another type than activations, so that rounding them shows.

        Raises LibremoeError where ids are none, more than the context holds, or outside the vocabulary.
        """
        tokens = _token_ids(ids)
        check_tokens(tokens, self.config.vocab_size, self.config.context_len)
        batch = Batch.of_whole([len(tokens)])
        if self.kv_dtype == self.model.dtype:
            return self.model(torch.tensor(tokens), batch)
        kv = KVCache(self.config, num_blocks(len(tokens)), self.kv_dtype)
        batch.block_tables = [list(range(kv.n_blocks))]
        return self.model(torch.tensor(tokens), batch, kv)

    def _pieces(self, ids: list[int], params: SamplingParams, report_experts: bool = False) -> Iterator[Piece]:
        decoder = self.piece_decoder(params)
        for output in self._outputs(ids, params, report_experts):
            yield decoder.push(output)
            if decoder.stopped:
                return  # leaving the loop cancels the sequence

    def piece_decoder(self, params: SamplingParams) -> PieceDecoder:
        """What makes pieces of one sequence's outputs, for whoever steps an engine of their own."""
        return PieceDecoder(self.tokenizer, self.eos_ids, params.stop)

    def _outputs(self, ids: list[int], params: SamplingParams, report_experts: bool = False) -> Iterator[Output]:
        """Outputs of one sequence, which is cancelled where the iterator is closed early."""
        began = time.perf_counter()
        stats = self.stats = RunStats(prompt_tokens=len(ids))
        streamed = self.streamed.stats() if self.streamed is not None else None
        seq = self.engine.add(ids, params, report_experts=report_experts)
        unread = self._unread[seq.id] = deque()
        try:
            while True:
                while not unread:
                    self._step()
                output = unread.popleft()
                if output.finish_reason == "error":
                    raise LibremoeError(output.error or "the engine failed")
                stats.seconds = time.perf_counter() - began
                if output.token is not None:
                    stats.tokens += 1
                    stats.first_token_s = stats.first_token_s or stats.seconds
                stats.shared_tokens = seq.num_shared
                stats.drafts = self.engine.draft_stats() if self.draft else None
                if streamed is not None and self.streamed is not None:
                    stats.experts = self.streamed.stats().minus(streamed)
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            self._forget(seq)

    def _forget(self, seq: EngineSequence) -> None:
        if seq.finish_reason is None:
            self.engine.cancel(seq)
            self._step()
        del self._unread[seq.id]

    def _step(self) -> None:
        """One step of the engine, each output to the stream that it belongs to."""
        with self._lock:
            for output in self.engine.step():
                self._unread[output.seq_id].append(output)


def _token_ids(ids: Iterable[SupportsIndex]) -> list[int]:
    """Plain integers from a list, a tuple, or a one-dimensional tensor or array of any integer type."""
    try:
        if isinstance(ids, str | bytes | dict) or getattr(ids, "ndim", 1) != 1:
            raise TypeError
        return [operator.index(id) for id in ids]
    except TypeError:
        shown = " ".join(repr(ids).split())[:40]
        raise LibremoeError(f"token ids must be one row of whole numbers, such as [5, 17, 23], not {shown}") from None


def _with_fields(params: SamplingParams | None, fields: dict[str, Any]) -> SamplingParams:
    known = {field.name for field in dataclasses.fields(SamplingParams)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise LibremoeError(f"no sampling field {', '.join(unknown)}; there are: {', '.join(sorted(known))}")
    if isinstance(fields.get("stop"), str | list):
        stop = fields["stop"]
        fields["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    return dataclasses.replace(params or SamplingParams(), **fields)


def _dtype(given: torch.dtype | str, argument: str, names: tuple[str, ...]) -> torch.dtype:
    """A torch dtype or its name, one of `names`. Raises LibremoeError."""
    name = str(given).removeprefix("torch.")
    name = {"f32": "float32", "bf16": "bfloat16"}.get(name, name)
    if name not in names:
        raise LibremoeError(f"{argument} must be {', '.join(names[:-1])} or {names[-1]}, not {given}")
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def _mapped(reader: Reader) -> Reader:
    if reader.kind not in MAPPABLE:
        raise LibremoeError(f"{reader.path}: files of the kind {reader.kind!r} cannot be mapped: load it without mmap, "
                            f"or `libremoe convert` it first")
    return type(reader)(reader.path, mmap=True)  # type: ignore[call-arg]


def _tokenizer(reader: Reader, given: Tokenizer | Path | str | None) -> Tokenizer | None:
    if given == "bytes":
        from libremoe.tiny import byte_tokenizer
        from libremoe.tokenizer_hf import HFTokenizer

        return HFTokenizer(Path("bytes"), byte_tokenizer(reader.config.vocab_size).encode())
    if isinstance(given, str | Path):
        return open_tokenizer(given)
    if given is not None:
        return given
    if reader.tokenizer is not None:
        return open_tokenizer(reader.tokenizer)
    if reader.kind == "gguf":
        return _inside_gguf(reader)
    return None


def _inside_gguf(reader: Reader) -> Tokenizer | None:
    from libremoe.tokenizer_spm import SentencePieceTokenizer
    from libremoe.weights.gguf import GGUFReader

    content = reader.tokenizer_bytes() if isinstance(reader, GGUFReader) else None
    return None if content is None else SentencePieceTokenizer(reader.path, content)
