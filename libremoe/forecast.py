"""What a model will do on a machine, by arithmetic: where its parts go, tokens/s, time to first token, energy.

Each time is a sum of terms, and each term says its formula with the numbers in it, so that a person can check it. The
reasoning: one token must read every weight that it touches once, and a second token in the same step reads the same
bytes again from the processor's cache, so a step takes (bytes / rate of reading) or (operations / rate of computing),
whichever is more: the roofline of S. Williams, A. Waterman, D. Patterson, "Roofline", CACM 52(4), 2009.

Shape letters: E experts a layer, A active, L layers, N tokens in a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from libremoe.batch import KVCache
from libremoe.config import ModelConfig
from libremoe.errors import LibremoeError
from libremoe.loading import MARGIN, STEP_TOKENS, working_bytes
from libremoe.machine import Machine, Rates, prefill_rows
from libremoe.progress import size_text
from libremoe.routing import Routing, reads_per_step
from libremoe.streaming import MANY_TOKENS

KV_PART = 10  # at most this part of the memory is kept for keys and values: loading.plan_budget
PROCESS_BYTES = 350_000_000  # interpreter, torch and kernels: RSS over the weights in bench/RESULTS.md, "Whole network"
TOKEN_S = 1e-3  # scheduling, sampling and text of one step
# Of the read rate at which the cache is read: bench/RESULTS.md, "Kernels". Each key costs about as many instructions.
ATTENTION_SHARE = {torch.float32: 0.45, torch.bfloat16: 0.3, torch.int8: 0.2}
ATTENTION_OPS_SHARE = 0.1  # of the products' rate at which a prompt attends; a small term, not measured closely


@dataclass(frozen=True)
class Sizes:
    """One model in one format, in bytes of memory.

    shared: all weights that are no expert's. touched: format -> bytes of them that one token reads, which leaves out an
    input table that is not the output's too; touched_params: format -> their number. expert: one expert, a dense
    feed-forward being the only one of its layer. disk: all files.
    """

    config: ModelConfig
    format: str  # of experts
    shared: int
    touched: Mapping[str, int]
    touched_params: Mapping[str, int]
    expert: int
    disk: int
    streams: bool = True  # whether the files let experts be read one by one

    @property
    def n_experts(self) -> int:
        """In all layers together."""
        return self.config.n_layers * max(self.config.n_experts, 1)

    @property
    def weights(self) -> int:
        return self.shared + self.n_experts * self.expert


@dataclass(frozen=True)
class Term:
    name: str
    seconds: float
    formula: str


@dataclass(frozen=True)
class Forecast:
    """The answer. placement: "resident", "streamed" or "does not fit". Rates are per second over all sequences.

    memory: what was given; least: the smallest that works. cache_bytes: the slots of experts, or all experts.
    hit_rate: expected share of a step's experts found in memory; measured_routing: whether it comes from what earlier
    runs chose, not from taking each expert for equally likely. terms: of a step; cold_terms: of one in which no expert
    is in memory; first_terms: of the first token. Times are infinite where it does not fit.
    """

    format: str
    placement: str
    memory: float
    least: float
    shared_bytes: int
    kv_bytes: int
    process_bytes: int
    cache_bytes: int
    slots: int
    n_experts: int
    hit_rate: float
    disk_bytes: int
    measured_routing: bool = False
    tokens_per_s: float = 0.0
    cold_tokens_per_s: float = 0.0
    first_token_s: float = float("inf")
    load_s: float = float("inf")
    joules_per_token: float = float("inf")
    terms: tuple[Term, ...] = field(default=())
    cold_terms: tuple[Term, ...] = field(default=())
    first_terms: tuple[Term, ...] = field(default=())


def distinct_experts(config: ModelConfig, n_tokens: int) -> float:
    """How many different experts of a layer N tokens choose on average, were each choice as likely as any other:
    E * (1 - (1 - A / E)^N)."""
    if not config.is_moe:
        return 1.0
    n, active = config.n_experts, config.n_experts_per_tok
    return float(n * (1 - (1 - active / n) ** n_tokens))


def forecast(sizes: Sizes, machine: Machine, memory: float | None = None, context: int = 512, batch: int = 1,
             prompt: int = 512, slots: int | None = None, hit_rate: float | None = None,
             kv_dtype: torch.dtype = torch.float32, routing: Routing | None = None,
             run_steps: int | None = None) -> Forecast:
    """What `sizes` does on `machine`.

    memory: bytes that the run may have, by default all that the machine has. context: tokens held by each of `batch`
    sequences while they decode. prompt: tokens before the first one. slots: as many experts are in memory, instead of
    what `memory` allows. kv_dtype: of keys and values.
    routing: what earlier runs chose; with it the hit rate of a single sequence is that of a replay through the policy
    of the cache. Without it, it is slots / experts: exact where routing is even, too low where not. hit_rate: one that
    is known, instead. run_steps: of a run that begins with nothing in memory and decodes so many tokens; None: the
    cache has been in use for long.
    Memory is shared out as loading.plan_budget does it.
    Raises LibremoeError for counts that are not positive or a context that the model does not have.
    """
    config = sizes.config
    for name, value, most in (("context", context, config.context_len), ("prompt", prompt, config.context_len),
                              ("batch", batch, 4096)):
        if not 0 < value <= most:
            raise LibremoeError(f"{name} must be from 1 to {most}, not {value}")
    where, resident = _placed(sizes, machine.ram if memory is None else memory, context, batch, slots, kv_dtype)
    if where.placement == "does not fit":
        return where
    known = routing is not None and batch == 1 and not resident and hit_rate is None
    hits = hit_rate if hit_rate is not None else where.slots / sizes.n_experts
    if known and routing is not None:
        per_step = config.n_layers * max(config.n_experts_per_tok, 1)
        hits = 1 - reads_per_step(routing, where.slots, run_steps) / per_step
    cached = KVCache.bytes_per_token(config, kv_dtype) * batch * min(context, config.sliding_window or context)
    kv_rate = ATTENTION_SHARE[kv_dtype] * machine.read
    attention = Term("keys and values", cached / kv_rate, f"{size_text(cached)} / {_rate(kv_rate)}")
    why = "by what earlier runs chose" if known else "" if hit_rate is not None else "if all are equally likely"
    warm = _step(sizes, machine, batch, attention, hits, why)
    cold = _step(sizes, machine, batch, attention, 1.0 if resident else 0.0)
    before = 1.0 if resident else where.slots / sizes.n_experts if run_steps is None else 0.0
    first = _first_token(sizes, machine, prompt, before)
    step_s = total(warm)
    return replace(
        where, hit_rate=hits, measured_routing=known, tokens_per_s=batch / step_s,
        cold_tokens_per_s=batch / total(cold), first_token_s=total(first),
        load_s=(sizes.weights if resident else sizes.shared) / machine.disk,
        joules_per_token=machine.power * step_s / batch, terms=warm, cold_terms=cold, first_terms=first,
    )


def _placed(sizes: Sizes, memory: float, context: int, batch: int, slots: int | None,
            kv_dtype: torch.dtype) -> tuple[Forecast, bool]:
    """How memory is shared out, without times, and whether all experts are in it."""
    config = sizes.config
    process = PROCESS_BYTES + MARGIN + working_bytes(config)
    kv_token = KVCache.bytes_per_token(config, kv_dtype)
    asked, whole = kv_token * context * batch, kv_token * config.context_len
    experts = (1 if sizes.streams else sizes.n_experts) * sizes.expert  # that must be in memory, at least
    fixed = process + sizes.shared
    least = fixed + experts + max(asked, min(whole, (fixed + experts) // (KV_PART - 1)))
    kv = int(max(asked, min(whole, memory // KV_PART)))
    if slots is None:
        slots = int(max(0, min(sizes.n_experts, (memory - fixed - kv) // sizes.expert)))
    resident = slots == sizes.n_experts
    placement = "resident" if resident else "streamed" if slots and sizes.streams else "does not fit"
    return Forecast(sizes.format, placement, memory, least, sizes.shared, kv, process, slots * sizes.expert, slots,
                    sizes.n_experts, 0.0, sizes.disk), resident


def total(terms: Sequence[Term]) -> float:
    """Seconds."""
    return sum(term.seconds for term in terms)


def _step(sizes: Sizes, machine: Machine, n_tokens: int, attention: Term, hits: float,
          why: str = "") -> tuple[Term, ...]:
    """A step of N tokens, each the next of its sequence. why: of the hits.

    While a layer's experts are read, those that are there compute: all but the last one of a layer that lacks any. A
    step of many tokens wants all experts of the next layers, which are read while this one computes.
    """
    terms = [*_weights(sizes, machine, n_tokens, n_tokens), attention, *_overhead(sizes, machine, 1)]
    n_distinct = distinct_experts(sizes.config, n_tokens)
    if n_tokens > MANY_TOKENS:
        return _with_disk(sizes, machine, terms, n_distinct, hits, total(terms), "all computing", why)
    share = min(1.0, (1 - hits) * n_distinct) * (n_distinct - 1) / n_distinct
    experts_s = next(term.seconds for term in terms if term.name.startswith(("experts", "feed-forwards")))
    return _with_disk(sizes, machine, terms, n_distinct, hits, share * experts_s,
                      f"{share:.0%} of computing experts", why)


def _first_token(sizes: Sizes, machine: Machine, prompt: int, hits: float) -> tuple[Term, ...]:
    """A prompt, in steps of at most STEP_TOKENS; each of them touches nearly every expert once, so that the next ones
    are read while one computes."""
    n_steps = -(-prompt // STEP_TOKENS)
    n = prompt / n_steps
    config = sizes.config
    head = 1 / n  # logits are wanted for the last token only
    terms = [Term(t.name, n_steps * t.seconds, f"{n_steps} x {t.formula}" if n_steps > 1 else t.formula)
             for t in _weights(sizes, machine, n, n, head)]
    n_ops = 4 * config.n_heads * config.head_dim * config.n_layers * prompt * min(
        prompt / 2, config.sliding_window or prompt)
    ops_rate = ATTENTION_OPS_SHARE * machine.rate(sizes.format).prefill
    terms.append(Term("attention", n_ops / ops_rate, f"{n_ops / 1e12:.2f} T operations / {_rate(ops_rate, 'op')}"))
    terms += _overhead(sizes, machine, n_steps)
    return _with_disk(sizes, machine, terms, n_steps * distinct_experts(config, round(n)), hits, total(terms),
                      "all computing")


def _weights(sizes: Sizes, machine: Machine, n_tokens: float, n_distinct_tokens: float,
             head: float = 1.0) -> list[Term]:
    """Reading or multiplying weights, whichever is longer. head: share of tokens whose logits are computed."""
    config = sizes.config
    terms = []
    for format, n_bytes in sizes.touched.items():
        rates, n_params = machine.rate(format), sizes.touched_params[format]
        if format == _head_format(sizes):
            n_params = n_params - round((1 - head) * config.vocab_size * config.dim)
        terms.append(_roofline(f"shared weights, {format}", n_bytes, 2 * n_tokens * n_params, rates, n_tokens,
                               prefill_rows(format)))
    rates = machine.rate(sizes.format)
    n_bytes = round(distinct_experts(config, max(1, round(n_distinct_tokens))) * config.n_layers * sizes.expert)
    n_ops = 2 * n_tokens * config.n_layers * max(config.n_experts_per_tok, 1) * 3 * config.dim * config.hidden_dim
    name = "experts" if config.is_moe else "feed-forwards"
    n_rows = n_tokens * max(config.n_experts_per_tok, 1) / distinct_experts(config, max(1, round(n_distinct_tokens)))
    terms.append(_roofline(f"{name}, {sizes.format}", n_bytes, n_ops, rates, n_rows, prefill_rows(sizes.format)))
    return terms


def _head_format(sizes: Sizes) -> str:
    """The format whose touched weights include the output table: the one with at least as many parameters as that."""
    table = sizes.config.vocab_size * sizes.config.dim
    fits = [format for format, n in sizes.touched_params.items() if n >= table]
    others = [format for format in fits if format != sizes.format]
    return (others or fits or [sizes.format])[0]


def _roofline(name: str, n_bytes: int, n_ops: float, rates: Rates, n_rows: float, measured_rows: int) -> Term:
    """Weights with n_rows rows each: all is reading for one row, all is arithmetic for as many as the rate of computing
    was measured with, and between these reading and unpacking a weight is shared by the rows that there are."""
    alone = max(0.0, 1 - (n_rows - 1) / (measured_rows - 1))
    by_bytes, by_ops = n_bytes / rates.decode, n_ops / rates.prefill
    reads = f"{size_text(n_bytes)} / {_rate(rates.decode)}"
    computes = f"{n_ops / 1e12:.2f} T operations / {_rate(rates.prefill, 'op')}"
    if n_rows <= 1 or by_bytes >= by_ops + alone * by_bytes:
        return Term(name, by_bytes, reads)
    return Term(name, by_ops + alone * by_bytes, computes + (f" + {alone:.0%} of {reads}" if alone else ""))


def _overhead(sizes: Sizes, machine: Machine, n_steps: int) -> list[Term]:
    n, layer_s = n_steps * sizes.config.n_layers, machine.layer_s
    return [Term("small operations", n * layer_s + n_steps * TOKEN_S,
                 f"{n} layers x {layer_s * 1e3:.2f} ms + {n_steps} x {TOKEN_S * 1e3:.0f} ms")]


def _with_disk(sizes: Sizes, machine: Machine, terms: list[Term], n_distinct: float, hits: float, hideable: float,
               what: str, why: str = "") -> tuple[Term, ...]:
    """With what reading the missing experts adds: all of it, less the seconds of computing that go on beside it."""
    n_bytes = round(n_distinct * sizes.config.n_layers * sizes.expert * (1 - hits))
    if not n_bytes:
        return tuple(terms)
    disk_s = n_bytes / machine.disk
    hidden = min(disk_s, hideable)
    missing = f"{1 - hits:.0%} missing{f' ({why})' if why else ''}: {size_text(n_bytes)} / {_rate(machine.disk)}"
    return (*terms, Term("experts from disk", disk_s, missing),
            Term("both at once", -hidden, f"-{what}" if hidden == hideable else "-all reading"))


def _rate(per_s: float, unit: str = "B") -> str:
    return f"{per_s / 1e9:.2f} GB/s" if unit == "B" else f"{per_s / 1e12:.3f} T/s"
