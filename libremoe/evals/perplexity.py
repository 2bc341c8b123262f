"""`libremoe eval perplexity MODEL --text FILE`: how well a model foretells a text, by token, byte and character.

The text is read in windows that overlap; each token is scored once, with at least window - stride tokens before it.
Perplexity by byte and by character compares models of different tokenizers: exp(total / bytes).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from libremoe.engine.engine import Engine
from libremoe.errors import LibremoeError
from libremoe.evals.data import MAX_TEXT_BYTES
from libremoe.language_model import LanguageModel
from libremoe.progress import Progress
from libremoe.run import load_for
from libremoe.sampling import SamplingParams

DEFAULT_WINDOW = 2048


def run(args: argparse.Namespace) -> int:
    text = read_text(args.text)
    lm = load_for(args)
    result = perplexity(lm, text, args.window, args.stride, args.tokens, shown=not args.json)
    if args.json:
        print(json.dumps(result))
    else:
        print(f"{result['perplexity']:.4f} by token ({result['tokens']} tokens scored, window {result['window']}, "
              f"stride {result['stride']})\n"
              f"{result['perplexity_by_byte']:.4f} by byte, {result['bits_per_byte']:.4f} bits a byte; "
              f"{result['perplexity_by_character']:.4f} by character")
    return 0


def read_text(path: Path) -> str:
    """UTF-8, gzipped or not. Raises LibremoeError."""
    from libremoe.evals.data import Data

    if not path.is_file():
        raise LibremoeError(f"{path}: no such file; --text takes a text file")
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise LibremoeError(f"{path}: more than {MAX_TEXT_BYTES} bytes: cut it")
    _, text = Data(path.parent).text("", path.name)
    if not text:
        raise LibremoeError(f"{path}: empty")
    return text


def windows(n: int, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, first scored) over n tokens, so that each token is scored in exactly one."""
    begin = scored = 0
    while scored < n:
        end = min(begin + length, n)
        yield begin, end, scored
        begin, scored = begin + stride, end


def perplexity(lm: LanguageModel, text: str, window: int | None = None, stride: int | None = None,
               max_tokens: int | None = None, shown: bool = False) -> dict[str, Any]:
    """A dict with perplexity (by token), perplexity_by_byte, perplexity_by_character, bits_per_byte, log_likelihood
    (natural, the sum), tokens (scored), bytes, characters, window, stride. The very first token is scored only where
    the model begins texts with BOS. Raises LibremoeError for a window or stride that cannot be."""
    if lm.tokenizer is None:
        raise LibremoeError("no tokenizer lies with this model: give one with --tokenizer FILE")
    ids = lm.encode(text)
    bos = ids[:1] if lm.config.add_bos and ids[:1] == [lm.config.bos_id] else []
    ids = ids[len(bos):]
    if max_tokens is not None and max_tokens < len(ids):
        ids = ids[:max_tokens]
        text = lm.tokenizer.decode(ids)
    engine = Engine(lm.model, kv_dtype=lm.kv_dtype, max_running=4, max_waiting=1 << 48, max_waiting_tokens=1 << 48,
                    share_prefixes=False)
    most = engine.max_tokens - len(bos)
    window = min(window or DEFAULT_WINDOW, most)
    stride = stride or max(1, window // 2)
    if window < 2 or not 0 < stride <= window or len(ids) < 2:
        raise LibremoeError(f"a text of {len(ids)} tokens in windows of {window} by steps of {stride}: wants at least "
                            f"2 tokens, windows of 2 or more, and steps no longer than they")
    total, n_scored = 0.0, 0
    with Progress("perplexity", len(ids), shown, "tokens") as bar:
        for part in _scored(engine, bos, ids, window, stride):
            total += math.fsum(part)
            n_scored += len(part)
            bar.advance(len(part))
    n_bytes, n_characters = len(text.encode()), len(text)
    return {
        "perplexity": math.exp(-total / n_scored), "perplexity_by_byte": math.exp(-total / n_bytes),
        "perplexity_by_character": math.exp(-total / n_characters), "bits_per_byte": -total / math.log(2) / n_bytes,
        "log_likelihood": total, "tokens": n_scored, "bytes": n_bytes, "characters": n_characters,
        "window": window, "stride": stride,
    }


def _scored(engine: Engine, bos: Sequence[int], ids: Sequence[int], window: int, stride: int) -> Iterator[list[float]]:
    """Log-probabilities of the scored tokens of each window."""
    for begin, end, scored in windows(len(ids), window, stride):
        start = max(1, len(bos) + scored - begin)
        seq = engine.add([*bos, *ids[begin:end]], SamplingParams(max_tokens=0), prompt_logprobs=0,
                         prompt_logprobs_from=start)
        while engine.has_work():
            for output in engine.step():
                if output.finish_reason == "error":
                    raise LibremoeError(output.error or "the engine failed")
        yield [logprob.logprob for logprob in seq.prompt_logprobs[start:] if logprob is not None]
