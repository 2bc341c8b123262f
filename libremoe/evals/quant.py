"""`libremoe eval quant A B --text FILE`: what a quantisation costs. The next-token distributions of B against A's over
the same tokens: KL divergence, agreement on the most probable token and on the experts, perplexity of both.

One model is in memory at a time; A's log-probabilities wait in a temporary file (4 bytes * tokens * vocabulary).
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from libremoe.errors import LibremoeError
from libremoe.evals.perplexity import read_text
from libremoe.language_model import LanguageModel, load
from libremoe.progress import Progress
from libremoe.weights import open_checkpoint

LINEAR = (".attn.", ".experts.")


def run(args: argparse.Namespace) -> int:
    """The command. args.kv is of the candidates: the reference keeps its keys and values as they are."""
    if args.tokens < 2 or args.window < 2:
        raise LibremoeError("--tokens and --window must be at least 2")
    text = read_text(args.text)

    def opened(path: str, is_reference: bool) -> LanguageModel:
        return load(path, dtype=args.dtype, tokenizer=args.tokenizer, mmap=args.mmap, memory=args.memory,
                    kv=None if is_reference else args.kv)

    rows = compare([str(args.path), *map(str, args.candidates)], args.tokens, args.window, text, opened,
                   shown=not args.json)
    print(json.dumps(rows) if args.json else "\n".join(table(rows)))
    return 0


def compare(paths: Sequence[str], n_tokens: int, window: int, text: str | None = None,
            opened: Callable[[str, bool], LanguageModel] = lambda path, _: load(path),
            shown: bool = False) -> dict[str, Any]:
    """Every path against the first. text None: random token ids. Each window is read on its own. opened: loads a path,
    told whether it is the reference.

    {"reference": {...}, "tokens", "window", "candidates": {path: {"bits_per_weight", "perplexity", "kl_mean",
    "kl_p99", "kl_max", "top1_agreement", "router_agreement", "router_same"}}}. KL(A || B) in nats a token.
    router_agreement: share of A's experts that B chooses too, over tokens and layers; router_same: share of decisions
    with the same set; None where there are no experts. Raises LibremoeError where a vocabulary differs.
    """
    reference_path, *others = paths
    lm = opened(reference_path, True)
    chunks = _chunks(lm, n_tokens, window, text)
    n, vocab = sum(map(len, chunks)), lm.config.vocab_size
    with tempfile.TemporaryFile() as file, Progress("comparing", n * len(paths), shown, "tokens") as bar:
        stored = np.memmap(file, np.float32, "w+", shape=(n, vocab))
        bits = bits_per_weight(reference_path)
        routed, likelihood, start = [], 0.0, 0
        for ids in chunks:
            logprobs_TV, experts = _read(lm, ids)
            stored[start : start + len(ids)] = logprobs_TV.numpy()
            likelihood += _likelihood(logprobs_TV, ids)
            routed.append(experts)
            start += len(ids)
            bar.advance(len(ids))
        n_scored = n - len(chunks)
        found: dict[str, Any] = {
            "reference": {"path": reference_path, "bits_per_weight": bits,
                          "perplexity": math.exp(-likelihood / n_scored)},
            "tokens": n, "window": window, "candidates": {}}
        del lm
        for path in others:
            gc.collect()
            lm = opened(path, False)
            if lm.config.vocab_size != vocab:
                raise LibremoeError(f"{path}: its vocabulary has {lm.config.vocab_size} ids, that of {reference_path} "
                                    f"{vocab}: they cannot be compared")
            row = _against(lm, chunks, stored, routed, bar)
            found["candidates"][path] = {"bits_per_weight": bits_per_weight(path), **row}
            del lm
        return found


def _against(lm: LanguageModel, chunks: list[list[int]], stored: np.ndarray,
             routed: list[list[torch.Tensor]], bar: Progress) -> dict[str, Any]:
    divergences, same_top, likelihood, start = [], 0, 0.0, 0
    shares: list[torch.Tensor] = []
    for ids, experts in zip(chunks, routed, strict=True):
        reference_TV = torch.from_numpy(np.array(stored[start : start + len(ids)]))
        logprobs_TV, chosen = _read(lm, ids)
        divergences.append((reference_TV.exp() * (reference_TV - logprobs_TV)).sum(-1))
        same_top += int((reference_TV.argmax(-1) == logprobs_TV.argmax(-1)).sum())
        likelihood += _likelihood(logprobs_TV, ids)
        shares += [_common(a, b) for a, b in zip(experts, chosen, strict=len(experts) == len(chosen))]
        start += len(ids)
        bar.advance(len(ids))
    kl = torch.cat(divergences)
    agreed = torch.cat(shares) if shares else None
    return {
        "perplexity": math.exp(-likelihood / (start - len(chunks))), "kl_mean": kl.mean().item(),
        "kl_p99": kl.quantile(0.99).item(), "kl_max": kl.max().item(), "top1_agreement": same_top / start,
        "router_agreement": None if agreed is None else agreed.mean().item(),
        "router_same": None if agreed is None else (agreed == 1).float().mean().item(),
    }


def _read(lm: LanguageModel, ids: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Log-probabilities (T, V) float32, and of each layer with experts the chosen ones (T, A)."""
    experts: list[torch.Tensor] = []
    hooks = [module.register_forward_hook(lambda _, inputs, output: experts.append(output[0].clone()))
             for name, module in lm.model.named_modules() if name.endswith(".router")]
    try:
        return lm.logits(ids).log_softmax(-1), experts
    finally:
        for hook in hooks:
            hook.remove()


def _common(a_NA: torch.Tensor, b_NA: torch.Tensor) -> torch.Tensor:
    """(N,) share of a's experts that are b's too."""
    return (a_NA[:, :, None] == b_NA[:, None, :]).any(-1).float().mean(-1)


def _likelihood(logprobs_TV: torch.Tensor, ids: list[int]) -> float:
    """Sum over the tokens after the first."""
    return float(logprobs_TV[:-1].gather(-1, torch.tensor(ids[1:])[:, None]).double().sum())


def _chunks(lm: LanguageModel, n_tokens: int, window: int, text: str | None) -> list[list[int]]:
    length = min(window, lm.config.context_len)
    if text is not None:
        ids = lm.encode(text)[:n_tokens]
    else:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(1, lm.config.vocab_size, (n_tokens,), generator=generator).tolist()
    chunks = [ids[i : i + length] for i in range(0, len(ids), length)]
    chunks = [chunk for chunk in chunks if len(chunk) > 1]  # of a single token nothing is scored
    if not chunks:
        raise LibremoeError("the text has fewer than 2 tokens: there is nothing to compare")
    return chunks


def bits_per_weight(path: str) -> float:
    """Stored bits of attention and expert weights, scales included, over their number."""
    reader = open_checkpoint(path)
    entries = [reader.entry(name) for name in reader.names() if any(part in name for part in LINEAR)]
    return 8 * sum(e.nbytes for e in entries) / sum(e.shape[0] * e.shape[1] for e in entries)


def table(found: dict[str, Any]) -> list[str]:
    reference = found["reference"]
    shown = [f"{found['tokens']} tokens, windows of {found['window']}, against {reference['path']}",
             f"{'':40s} {'bits/weight':>11s} {'perplexity':>10s} {'KL mean':>10s} {'KL p99':>10s} {'top-1':>7s} "
             f"{'experts':>8s}",
             f"{reference['path'][-40:]:40s} {reference['bits_per_weight']:11.2f} {reference['perplexity']:10.3f}"]
    for path, row in found["candidates"].items():
        router = "-" if row["router_agreement"] is None else f"{row['router_agreement']:.1%}"
        shown.append(f"{path[-40:]:40s} {row['bits_per_weight']:11.2f} {row['perplexity']:10.3f} "
                     f"{row['kl_mean']:10.2e} {row['kl_p99']:10.2e} {row['top1_agreement']:7.1%} {router:>8s}")
    return shown
