"""Our side of decode.py and prefill.py: one timing of the whole network on a model folder, printed as JSON.

Drives the network directly with random token ids, so that neither tokenizer nor scheduler is in the figure.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

STARTED = time.perf_counter()

import torch  # noqa: E402  (the import is part of what is timed)

from libremoe.batch import BLOCK_SIZE, Batch, KVCache  # noqa: E402
from libremoe.config import ModelConfig  # noqa: E402
from libremoe.language_model import load  # noqa: E402
from libremoe.weights import open_checkpoint, shared_names  # noqa: E402


def bytes_per_token(path: str) -> int:
    """Weight bytes that one token reads: all but the embedding's other rows and the experts not chosen."""
    reader = open_checkpoint(path)
    config = reader.config
    tables = ("embed.weight",) if not config.tied_embeddings else ()
    shared = sum(reader.entry(name).nbytes for name in shared_names(config) if name not in tables)
    expert = sum(reader.entry(f"layers.0.experts.0.{part}.weight").nbytes for part in ("gate", "up", "down"))
    return shared + config.n_layers * max(config.n_experts_per_tok, 1) * expert


class Sequences:
    """B sequences in a cache of their own, each with its table of blocks."""

    def __init__(self, config: ModelConfig, n_sequences: int, length: int, dtype: torch.dtype):
        per_sequence = -(-length // BLOCK_SIZE)
        self.kv = KVCache(config, n_sequences * per_sequence, dtype)
        self.tables = [list(range(b * per_sequence, (b + 1) * per_sequence)) for b in range(n_sequences)]
        self.generator = torch.Generator().manual_seed(0)
        self.vocab_size = config.vocab_size

    def batch(self, start: int, stop: int) -> tuple[torch.Tensor, Batch]:
        """Positions start:stop of every sequence; logits for the last one of each."""
        n, b = stop - start, len(self.tables)
        tokens = torch.randint(3, self.vocab_size, (n * b,), generator=self.generator)
        starts = [i * n for i in range(b + 1)]
        positions = torch.arange(start, stop).repeat(b)
        return tokens, Batch(starts, positions, [stop] * b, self.tables, torch.tensor(starts[1:]) - 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("--work", choices=("decode", "prefill", "start"), required=True)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=16)
    parser.add_argument("--kv", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--resident", action="store_true", help="read into memory instead of mapping")
    args = parser.parse_args()

    lm = load(args.path, mmap=not args.resident)
    model, kv_dtype = lm.model, getattr(torch, args.kv)
    with torch.inference_mode():
        run = {"decode": decode, "prefill": prefill, "start": start}[args.work]
        n_tokens, times = run(model, args, kv_dtype)
    times.sort()
    print(json.dumps({
        "tokens_per_s": n_tokens / times[len(times) // 2], "best": n_tokens / times[0],
        "total_s": time.perf_counter() - STARTED, "bytes_per_token": bytes_per_token(args.path),
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "backend": model.ops.__name__,
    }))


def decode(model, args, kv_dtype):  # type: ignore[no-untyped-def]
    """The context's keys and values are zeros: reading them costs what any would, and long contexts are soon there."""
    sequences = Sequences(model.config, args.batch, args.context + args.tokens, kv_dtype)
    model(*sequences.batch(0, 1), sequences.kv)  # touch the weights
    times = []
    for position in range(args.context, args.context + args.tokens):
        begun = time.perf_counter()
        tokens, batch = sequences.batch(position, position + 1)
        model(tokens, batch, sequences.kv)
        times.append(time.perf_counter() - begun)
    return args.batch, times


def prefill(model, args, kv_dtype):  # type: ignore[no-untyped-def]
    sequences = Sequences(model.config, 1, args.tokens, kv_dtype)
    model(*sequences.batch(0, 8), sequences.kv)  # touch the weights
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        for begin in range(0, args.tokens, 512):
            tokens, batch = sequences.batch(begin, min(begin + 512, args.tokens))
            model(tokens, batch, sequences.kv)
        times.append(time.perf_counter() - begun)
    return args.tokens, times


def start(model, args, kv_dtype):  # type: ignore[no-untyped-def]
    """One token after one token: what a person waits for at first, imports included (see total_s)."""
    sequences = Sequences(model.config, 1, 8, kv_dtype)
    begun = time.perf_counter()
    model(*sequences.batch(0, 1), sequences.kv)
    return 1, [time.perf_counter() - begun]


if __name__ == "__main__":
    main()
