"""From a reader to a network: all weights in memory, or the experts in slots under a memory budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from libremoe.batch import BLOCK_SIZE, KVCache
from libremoe.config import ModelConfig
from libremoe.errors import LibremoeError
from libremoe.experts import Expert, ResidentExperts, Weight
from libremoe.memory import available_bytes, process_bytes
from libremoe.model import Transformer
from libremoe.ops import choose
from libremoe.quant import FORMATS
from libremoe.streaming import StreamedExperts, router_for, slot_size
from libremoe.weights import Reader, TensorEntry

KEPT_FORMATS = {"f32", "bf16", "f16", *FORMATS}  # stay in memory as they are stored; others become float32
MAPPABLE = STREAMABLE = ("grok-1 checkpoint", "libremoe")  # kinds of reader that can map, or stream, their files
STEP_TOKENS = 512  # that an engine computes at once, for what the computation itself needs
LONG_STEP = 1 << 14  # the same for many sequences: an expert from disk then works for longer than it is read
MARGIN = 64 << 20  # for what no formula knows: modules loaded later, the allocator's remains


@dataclass(frozen=True)
class Budget:
    """How the memory given to a process is shared out. All in bytes."""

    total: int
    process: int  # the interpreter and its modules, as they are now, and a margin
    shared: int  # weights that every token needs
    kv_bytes: int  # keys and values
    work: int  # what a step computes with
    expert_bytes: int | None  # slots for experts; None: all experts fit
    step_tokens: int = 512  # that a step may compute at once

    def describe(self) -> str:
        """The terms, for a person."""
        terms = {"program": self.process, "attention, tables": self.shared, "keys and values": self.kv_bytes,
                 "computing": self.work, "experts": self.expert_bytes or 0}
        return " + ".join(f"{name} {value / 1e9:.2f} GB" for name, value in terms.items())


def plan_budget(reader: Reader, total: int, kv_dtype: torch.dtype, batch: int = 1, tokens: int | None = None) -> Budget:
    """kv_dtype: what keys and values are kept in. batch: how many sequences are to run at once. Several share each
    expert that is read, so what lets more of them run (keys and values, longer steps) gets more of the memory than for
    one, at the cost of experts kept. tokens: that they hold together to their end, where that is known: no more memory
    is kept for keys and values, and for what a step computes with, than these need.

    Raises LibremoeError where the model cannot be streamed, or where the least that it needs is more.
    """
    config = reader.config
    names = reader.names()
    experts = sum(resident_bytes(reader.entry(name)) for name in names if ".experts." in name)
    shared = sum(resident_bytes(reader.entry(name)) for name in names) - experts
    process = process_bytes() + MARGIN
    block = KVCache.bytes_per_token(config, kv_dtype) * BLOCK_SIZE
    whole_context = -(-config.context_len // BLOCK_SIZE) * block
    wanted = batch * whole_context
    if tokens is not None:
        wanted = min(wanted, (tokens // BLOCK_SIZE + batch) * block)  # each sequence may end within a block
    kv_bytes = max(block, min(wanted, total // (10 if batch == 1 else 4) // block * block))
    step_tokens = STEP_TOKENS
    if batch > 1:
        step_tokens = max(STEP_TOKENS, min(LONG_STEP, total // 16 // token_bytes(config)))
    step_tokens = step_tokens if tokens is None else max(batch, min(step_tokens, tokens))
    work = working_bytes(config, step_tokens, max(batch, 16))
    left = total - process - shared - kv_bytes - work
    if left >= experts:
        return Budget(total, process, shared, kv_bytes, work, None, step_tokens)
    if reader.kind not in STREAMABLE:
        raise LibremoeError(f"{reader.path}: files of the kind {reader.kind!r} cannot be streamed in "
                            f"{total / 1e9:.1f} GB: `libremoe convert` it first")
    one = slot_size(reader.expert_pieces(layer, e)  # type: ignore[attr-defined]
                    for layer in range(config.n_layers) for e in range(max(config.n_experts, 1)))
    if left < one:  # the least of everything else, and one expert
        step_tokens = min(step_tokens, STEP_TOKENS)
        work = working_bytes(config, step_tokens, max(batch, 16))
        left = total - process - shared - work - one
        kv_bytes = max(block, min(kv_bytes, left // block * block))
        left = total - process - shared - kv_bytes - work
    if left < one:
        least = process + shared + block + work + one
        raise LibremoeError(f"{reader.path}: {total / 1e9:.2f} GB of memory are too few: this model needs at least "
                            f"{math.ceil(least / 1e8) / 10:.1f} GB here "
                            f"({Budget(least, process, shared, block, work, one).describe()})")
    return Budget(total, process, shared, kv_bytes, work, left, step_tokens)


def working_bytes(config: ModelConfig, n_tokens: int = STEP_TOKENS, n_sequences: int = 16) -> int:
    """About what a step needs beside weights and cache: activations of n_tokens, and logits of n_sequences."""
    return n_tokens * token_bytes(config) + n_sequences * 4 * config.vocab_size


def token_bytes(config: ModelConfig) -> int:
    """About what the activations of one token of a step need."""
    n_active = max(config.n_experts_per_tok, 1)
    return n_active * (13 * config.dim + config.hidden_dim) + 24 * config.dim


def resident_bytes(entry: TensorEntry) -> int:
    """What a tensor takes in memory once read."""
    return entry.nbytes if entry.format in KEPT_FORMATS else 4 * math.prod(entry.shape)


def check_memory(reader: Reader) -> None:
    """Raises LibremoeError where the weights are larger than what is free."""
    needed = sum(resident_bytes(reader.entry(name)) for name in reader.names())
    available = available_bytes()
    if needed <= available:
        return
    fix = ("stream it with memory=... (--memory 12G), or " if reader.kind in STREAMABLE else "")
    raise LibremoeError(f"{reader.path}: the weights need {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB "
                        f"are free: {fix}make it smaller with `libremoe convert --format int4`")


def build(reader: Reader, dtype: torch.dtype = torch.float32,
          progress: Callable[[int, int], None] | None = None) -> Transformer:
    """The network over everything that a reader has, each tensor read once. Raises CheckpointError."""
    config, advance = reader.config, _advance(reader, reader.names(), progress)

    def read(name: str) -> Weight:
        weight = reader.read(name)
        advance(name)
        return weight

    def read_expert(layer: int, e: int) -> Expert:
        expert = reader.read_expert(layer, e)
        advance(*(f"layers.{layer}.experts.{e}.{part}.weight" for part in ("gate", "up", "down")))
        return expert

    n_experts = max(config.n_experts, 1)
    experts = [[read_expert(layer, e) for e in range(n_experts)] for layer in range(config.n_layers)]
    return Transformer(config, read, ResidentExperts(experts), choose(), dtype)


def build_streamed(reader: Reader, budget: Budget, dtype: torch.dtype = torch.float32,
                   progress: Callable[[int, int], None] | None = None) -> Transformer:
    """The network with all but the experts in memory, and these in slots. Raises CheckpointError, LibremoeError."""
    config = reader.config
    advance = _advance(reader, [name for name in reader.names() if ".experts." not in name], progress)

    def read(name: str) -> Weight:
        weight = reader.read(name)
        advance(name)
        return weight

    store = StreamedExperts(reader, config.n_layers, max(config.n_experts, 1),  # type: ignore[arg-type]
                            config.n_experts_per_tok if config.is_moe else 1, budget.expert_bytes or 0)
    model = Transformer(config, read, store, choose(), dtype)
    if config.is_moe:
        store.foresee_with(_predictors(model))
    return model


def _predictors(model: Transformer) -> list[torch.Tensor | None]:
    """For each layer its router, for what the layer before it sees; for the first, for the hidden state before it."""
    blocks: list[Any] = list(model.blocks)
    first = blocks[0].moe.router.weight.float() * blocks[0].ffn_norm.weight.float()
    return [first, *(router_for(after.ffn_norm.weight, after.moe.router.weight, before.ffn_norm.weight)
                    for before, after in itertools.pairwise(blocks))]


def _advance(reader: Reader, names: list[str], progress: Callable[[int, int], None] | None) -> Callable[..., None]:
    """Call it with the names that were read."""
    total = sum(reader.entry(name).nbytes for name in names)
    done = 0

    def advance(*read: str) -> None:
        nonlocal done
        done += sum(reader.entry(name).nbytes for name in read)
        if progress is not None:
            progress(done, total)

    return advance
