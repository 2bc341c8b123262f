"""`libremoe run PATH --throughput --prompts FILE --output FILE`: many prompts at once, as fast as the machine allows.

This is the usual engine with a wider batch. A step takes the tokens of all live sequences through one layer before the
next, so an expert, from memory or from disk, is read once for all of them: once while the prompts are read in (all
their tokens are one step, as far as memory allows), and then once for each token that all get. Answers are those of one
prompt at a time, since no row of a batch depends on another; answer_file.py keeps what is done.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libremoe.answer_file import AnswerFile, Record
from libremoe.batch import BLOCK_SIZE, KVCache
from libremoe.engine.engine import Engine
from libremoe.engine.kv_cache import num_blocks
from libremoe.engine.sequence import Sequence as EngineSequence
from libremoe.errors import LibremoeError
from libremoe.language_model import LanguageModel
from libremoe.loading import LONG_STEP, token_bytes
from libremoe.memory import available_bytes
from libremoe.pieces import PieceDecoder
from libremoe.progress import Progress
from libremoe.sampling import SamplingParams

SEEDS = 1 << 64
KV_SHARE, STEP_SHARE = 4, 8  # without --memory: keys and values get 1/4 of what is free, the work of a step 1/8


@dataclass(frozen=True)
class Prompt:
    content: str | list[int]  # text, or token ids
    id: str | int | None = None  # what the person calls it; comes back with the answer


@dataclass
class Answer:
    """One prompt's answer while it grows. Whoever collects it has the whole."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None


def run(args: argparse.Namespace, load: Callable[[int], LanguageModel], params: SamplingParams) -> int:
    """Answer the prompts of args.prompts into args.output. load: makes the model, is told how many tokens all sequences
    hold together. Returns 0, or 1 where a prompt could not be answered."""
    if args.prompt is not None or args.ids is not None:
        raise LibremoeError("--throughput takes its prompts from --prompts FILE, none from the command line")
    for flag in ("prompts", "output"):
        if getattr(args, flag) is None:
            raise LibremoeError(f"--throughput needs --{flag} FILE")
    if args.trace is not None:
        raise LibremoeError("--trace records one prompt at a time: leave --throughput out")
    if args.batch < 1:
        raise LibremoeError(f"--batch is {args.batch}; it must be at least 1")
    prompts = read_prompts(args.prompts)
    seconds = 0.0
    with AnswerFile(args.output, _job(args, prompts, params)) as file:
        n_before = len(file.done)
        if n_before and not args.json:
            print(f"{n_before} of {len(prompts)} prompts were answered before", file=sys.stderr)
        if n_before < len(prompts):
            model = load(most_tokens([prompt.content for prompt in prompts], params.max_tokens or 0, args.batch))
            seconds = _answer_missing(model, prompts, params, file, args)
        file.finish()
        summary = _summary(file.done, n_before, seconds)
    print(json.dumps(summary) if args.json else _sentence(summary, args.output), flush=True)
    return 1 if summary["failed"] else 0


def read_prompts(path: Path) -> list[Prompt]:
    """.txt: a prompt a line. .jsonl: on each line a text, or an object with "prompt" (text) or "ids" (token ids), and
    perhaps "id". Empty lines are skipped. Raises LibremoeError that names the line."""
    if path.suffix not in (".txt", ".jsonl"):
        raise LibremoeError(f"{path}: prompts come from a file named .txt (one a line) or .jsonl")
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise LibremoeError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise LibremoeError(f"{path}: not UTF-8 at byte {error.start}") from None
    lines = [(i, line.removesuffix("\r")) for i, line in enumerate(text.split("\n"), start=1)]
    filled = [(i, line) for i, line in lines if line.strip()]
    if not filled:
        raise LibremoeError(f"{path}: no prompts: every line is empty")
    if path.suffix == ".txt":
        return [Prompt(line) for _, line in filled]
    return [_prompt(path, i, line) for i, line in filled]


def most_tokens(prompts: Sequence[str | list[int]], max_tokens: int, batch: int) -> int:
    """That `batch` sequences at once hold to their end, before there is a tokenizer: a text has fewer tokens than
    twice its bytes and the marks that are put before it."""
    lengths = [2 * len(content.encode()) + 4 if isinstance(content, str) else len(content) for content in prompts]
    return sum(sorted((n + max_tokens for n in lengths), reverse=True)[:batch])


def answers(lm: LanguageModel, engine: Engine, asked: Sequence[tuple[int, str | list[int], SamplingParams]],
            advance: Callable[[int], None] = lambda n: None) -> Iterator[list[tuple[int, Answer]]]:
    """After each step what it finished, by the numbers that came with the prompts. advance: told of new tokens.

    A prompt that cannot be answered (empty, too long) has an error instead; the others go on.
    """
    coming = iter(asked)
    live: dict[int, tuple[int, EngineSequence, PieceDecoder, Answer]] = {}
    while True:
        finished: list[tuple[int, Answer]] = []
        taken = list(itertools.islice(coming, engine.max_waiting - len(engine.scheduler.waiting)))
        if not taken and not live:
            return
        for number, content, params in taken:
            try:
                seq = engine.add(lm.encode(content), params)
            except LibremoeError as error:
                finished.append((number, Answer(finish_reason="error", error=str(error))))
            else:
                live[seq.id] = (number, seq, lm.piece_decoder(params), Answer())
        for output in engine.step():
            if output.seq_id not in live:
                continue  # it was ended at a stop string
            number, seq, decoder, answer = live[output.seq_id]
            piece = decoder.push(output)
            answer.text += piece.text
            answer.tokens += piece.tokens
            answer.finish_reason, answer.error = piece.finish_reason, output.error
            advance(len(piece.tokens))
            if piece.finish_reason is not None:
                if decoder.stopped:
                    engine.cancel(seq)
                del live[output.seq_id]
                finished.append((number, answer))
        yield finished


def engine_for(lm: LanguageModel, lengths: Sequence[int], max_tokens: int, batch: int) -> Engine:
    """An engine for prompts of these lengths (tokens), at most `batch` sequences at once: as many as have room in the
    cache to their end, so that none is ever put back and computed twice."""
    config = lm.config
    block_bytes = KVCache.bytes_per_token(config, lm.kv_dtype) * BLOCK_SIZE
    kv_bytes = available_bytes() // KV_SHARE if lm.kv_bytes is None else lm.kv_bytes
    longest = sorted((num_blocks(min(n + max_tokens, config.context_len)) for n in lengths), reverse=True)[:batch]
    n_blocks = max(1, min(sum(longest), kv_bytes // block_bytes))
    n_running = max(1, sum(needed <= n_blocks for needed in itertools.accumulate(longest)))
    most = lm.step_tokens or min(LONG_STEP, available_bytes() // STEP_SHARE // token_bytes(config))
    prompt_tokens = sum(sorted(lengths, reverse=True)[:n_running])
    return Engine(lm.model, eos_ids=lm.eos_ids, draft=lm.draft, kv_dtype=lm.kv_dtype, n_blocks=n_blocks,
                  max_running=n_running, step_tokens=max(n_running, min(prompt_tokens + n_running, most)),
                  step_s=math.inf, max_waiting=n_running, max_waiting_tokens=1 << 62)


def _answer_missing(lm: LanguageModel, prompts: list[Prompt], params: SamplingParams, file: AnswerFile,
                    args: argparse.Namespace) -> float:
    """Returns the seconds that it took, without loading."""
    if params.stop and lm.tokenizer is None:
        raise LibremoeError("--stop needs a tokenizer: give one with --tokenizer FILE")
    missing = [i for i in range(len(prompts)) if i not in file.done]
    ids = {i: lm.encode(prompts[i].content) for i in missing}
    seeds = {i: _seed(args, i) for i in missing}
    asked = [(i, ids[i], dataclasses.replace(params, seed=seeds[i])) for i in missing]
    max_tokens = params.max_tokens or 0
    engine = engine_for(lm, [len(ids[i]) for i in missing], max_tokens, args.batch)
    with Progress("answering", len(missing) * max_tokens, shown=not args.json, unit="tokens") as bar:
        try:
            for finished in answers(lm, engine, asked, bar.advance):
                records = []
                for i, answer in finished:
                    bar.advance(max_tokens - len(answer.tokens))  # those that it will not have
                    records.append(_record(i, prompts[i], len(ids[i]), seeds[i], answer))
                file.append(records)
        except KeyboardInterrupt:
            print(f"\n{len(file.done)} of {len(prompts)} prompts are answered; the same command goes on from there",
                  file=sys.stderr)
            raise
    return bar.seconds


def _prompt(path: Path, number: int, line: str) -> Prompt:
    where = f"{path}, line {number}"
    try:
        value = json.loads(line)
    except ValueError as error:
        raise LibremoeError(f"{where}: not JSON ({error})") from None
    if isinstance(value, str):
        return Prompt(value)
    if not isinstance(value, dict) or ("prompt" in value) == ("ids" in value):
        raise LibremoeError(f'{where}: must be a text, or an object with either "prompt" or "ids"')
    name = value.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int | None):
        raise LibremoeError(f'{where}: "id" must be a text or a whole number')
    if "prompt" in value:
        if not isinstance(value["prompt"], str):
            raise LibremoeError(f'{where}: "prompt" must be a text')
        return Prompt(value["prompt"], name)
    ids = value["ids"]
    if not isinstance(ids, list) or not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
        raise LibremoeError(f'{where}: "ids" must be a list of whole numbers')
    return Prompt(ids, name)


def _job(args: argparse.Namespace, prompts: list[Prompt], params: SamplingParams) -> dict[str, Any]:
    """What the answers depend on; whoever continues must ask for the same."""
    asked = json.dumps([[prompt.content, prompt.id] for prompt in prompts])
    return {
        "model": os.path.realpath(args.path), "prompts": hashlib.sha256(asked.encode()).hexdigest(),
        "sampling": dataclasses.asdict(params), "dtype": args.dtype, "tokenizer": args.tokenizer,
        **({"kv": args.kv} if args.kv else {}),
    }


def _seed(args: argparse.Namespace, index: int) -> int:
    """Of one prompt: another for each, or equal prompts had equal answers; the same when it is asked again."""
    return ((args.seed or 0) + index) % SEEDS


def _record(index: int, prompt: Prompt, n_prompt: int, seed: int, answer: Answer) -> Record:
    record: Record = {"index": index} if prompt.id is None else {"index": index, "id": prompt.id}
    if answer.error is not None:
        return {**record, "error": answer.error}
    return {**record, "text": answer.text, "tokens": answer.tokens, "finish_reason": answer.finish_reason,
            "prompt_tokens": n_prompt, "seed": seed}


def _summary(done: dict[int, Record], n_before: int, seconds: float) -> dict[str, Any]:
    n_failed = sum("error" in record for record in done.values())
    new = list(done.values())[n_before:]
    n_tokens = sum(len(record.get("tokens", ())) for record in new)
    return {
        "prompts": len(done), "answered_before": n_before, "failed": n_failed, "tokens": n_tokens,
        "prompt_tokens": sum(record.get("prompt_tokens", 0) for record in new), "seconds": seconds,
        "tokens_per_s": n_tokens / seconds if seconds else 0.0,
    }


def _sentence(summary: dict[str, Any], output: Path) -> str:
    failed = f", {summary['failed']} of them failed" if summary["failed"] else ""
    return (f"{output}: {summary['prompts']} prompts{failed}; {summary['tokens']} tokens "
            f"in {summary['seconds']:.1f} s, {summary['tokens_per_s']:.2f} tokens/s")
