"""What a quantisation costs: divergence of each candidate's next-token distribution from a reference's, on one machine.

    python bench/quality.py REFERENCE CANDIDATE [CANDIDATE ...] [--text FILE | --ids N] [--json]

Models are anything that libremoe opens, so a Q4_0 GGUF stands beside int4 of the same weights, and both are
computed by the same network: the difference is the weights' alone. Set LIBREMOE_OPS=reference to leave the rounding of
activations out as well.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path

import torch

from libremoe.language_model import load
from libremoe.weights import open_checkpoint

LINEAR = (".attn.", ".experts.")


def bits_per_weight(path: str) -> float:
    """Stored bits of attention and expert weights, scales included, over their number."""
    reader = open_checkpoint(path)
    entries = [reader.entry(name) for name in reader.names() if any(part in name for part in LINEAR)]
    return 8 * sum(e.nbytes for e in entries) / sum(e.shape[0] * e.shape[1] for e in entries)


def log_probs(path: str, chunks: list[list[int]]) -> torch.Tensor:
    """(all tokens, V) float32, each chunk read on its own."""
    lm = load(path)
    found = torch.cat([lm.logits(ids).log_softmax(-1) for ids in chunks])
    del lm
    gc.collect()
    return found


def token_ids(args: argparse.Namespace) -> list[list[int]]:
    lm = load(args.reference)
    length = min(args.chunk, lm.config.context_len)
    if args.text:
        ids = lm.encode(args.text.read_text())[: args.ids]
    else:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(1, lm.config.vocab_size, (args.ids,), generator=generator).tolist()
    return [ids[i : i + length] for i in range(0, len(ids), length)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference")
    parser.add_argument("candidates", nargs="+")
    parser.add_argument("--text", type=Path, help="a text to read; default: random token ids")
    parser.add_argument("--ids", type=int, default=1024, help="how many tokens (default 1024)")
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    chunks = token_ids(args)
    reference = log_probs(args.reference, chunks)
    rows = {}
    for path in args.candidates:
        candidate = log_probs(path, chunks)
        kl = (reference.exp() * (reference - candidate)).sum(-1)
        rows[path] = {
            "bits_per_weight": bits_per_weight(path), "kl_mean": kl.mean().item(),
            "kl_p99": kl.quantile(0.99).item(),
            "top1_agreement": (reference.argmax(-1) == candidate.argmax(-1)).float().mean().item(),
        }
    if args.json:
        print(json.dumps(rows))
        return
    print(f"{sum(map(len, chunks))} tokens, against {args.reference}")
    print(f"{'':40s} {'bits/weight':>11s} {'KL mean':>10s} {'KL p99':>10s} {'top-1':>7s}")
    for path, row in rows.items():
        print(f"{path[-40:]:40s} {row['bits_per_weight']:11.2f} {row['kl_mean']:10.2e} {row['kl_p99']:10.2e} "
              f"{row['top1_agreement']:7.1%}")


if __name__ == "__main__":
    main()
