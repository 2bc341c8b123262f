"""`libremoe inspect PATH`: what is in a model, from its headers alone, without reading a weight."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch

from libremoe.batch import KVCache
from libremoe.config import ModelConfig
from libremoe.progress import size_text
from libremoe.tiny import is_random
from libremoe.weights import Reader, open_checkpoint


def run(args: argparse.Namespace) -> int:
    """The command. args: path, tensors, json. Exit status 0."""
    reader = open_checkpoint(args.path)
    found = describe(reader, args.tensors)
    if args.json:
        print(json.dumps(found))
    else:
        _show(found)
    return 0


def describe(reader: Reader, tensors: bool = False) -> dict[str, Any]:
    """Everything that inspect says, as plain data; with tensors, one entry for each."""
    config = reader.config
    entries = [reader.entry(name) for name in reader.names()]
    formats: dict[str, dict[str, int]] = {}
    for entry in entries:
        of_format = formats.setdefault(entry.format, {"tensors": 0, "bytes": 0})
        of_format["tensors"] += 1
        of_format["bytes"] += entry.nbytes
    expert_bytes = sum(entry.nbytes for entry in entries if ".experts." in entry.name)
    found = {
        "path": str(reader.path), "kind": reader.kind, "family": config.family,
        "random": is_random(reader),
        "parameters": config.n_params(), "active_parameters": config.n_active_params(),
        "bytes": sum(entry.nbytes for entry in entries), "formats": formats,
        "files": len({entry.file for entry in entries}),
        "tokenizer": str(reader.tokenizer) if reader.tokenizer else None, "licence": reader.licence,
        "context_len": config.context_len, "config": config.to_dict(),
        "memory": _memory(config, sum(entry.nbytes for entry in entries), expert_bytes),
    }
    if tensors:
        found["tensors"] = [{"name": e.name, "shape": list(e.shape), "format": e.format, "bytes": e.nbytes,
                             "file": e.file.name} for e in entries]
    return found


def _memory(config: ModelConfig, weight_bytes: int, expert_bytes: int) -> dict[str, int]:
    """Estimates in bytes, weights as stored: all resident, and with the chosen experts of two layers.

    Two layers, because one computes while the experts of the next are read. The cache is bfloat16.
    """
    per_token = KVCache.bytes_per_token(config, torch.bfloat16)
    window = config.sliding_window or config.context_len
    cache = per_token * min(config.context_len, window)
    n_experts = max(config.n_experts, 1)
    active = expert_bytes * max(config.n_experts_per_tok, 1) // (n_experts * config.n_layers)
    shared = weight_bytes - expert_bytes
    return {"cache_bytes_per_token": per_token, "cache_bytes_full": cache,
            "resident_bytes": weight_bytes + cache, "streamed_bytes": shared + 2 * active + cache}


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 1 << 14)  # files and pipes get whole lines
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, text in _lines(found):
        table.add_row(label, Text(text))  # Text, because a path may hold what looks like rich's markup
    shown: list[Table] = [table]
    if "tensors" in found:
        listing = Table(box=None, padding=(0, 2, 0, 0))
        for head in ("name", "shape", "format", "bytes", "file"):
            listing.add_column(head, overflow="fold")
        for entry in found["tensors"]:
            shape = " x ".join(str(n) for n in entry["shape"])
            listing.add_row(entry["name"], shape, entry["format"], f"{entry['bytes']:,}", Text(entry["file"]))
        shown.append(listing)
    with console.capture() as capture:
        console.print(*shown)
    print(capture.get(), end="")  # not by rich, which ends the process with 1 when the reader of a pipe leaves


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    config, memory = found["config"], found["memory"]
    mixture = (f", {config['n_experts']} experts of which {config['n_experts_per_tok']} work on a token"
               if config["n_experts"] else "")
    lines = [
        ("model", f"{found['family']} ({found['kind']})" + (", random weights" if found["random"] else "")),
        ("parameters", f"{_count(found['parameters'])}, {_count(found['active_parameters'])} of them active"),
        ("layers", f"{config['n_layers']} of width {config['dim']}, {config['n_heads']} heads on "
                   f"{config['n_kv_heads']} key-value heads of {config['head_dim']}"),
        ("feed-forward", f"{config['hidden_dim']} wide, {config['activation']}{mixture}"),
        ("vocabulary", f"{config['vocab_size']:,}"),
        ("context", f"{found['context_len']:,} tokens"),
        ("weights", f"{size_text(found['bytes'])} in {found['files']} files"),
    ]
    for name, of_format in found["formats"].items():
        lines.append(("", f"{name}: {of_format['tensors']} tensors, {size_text(of_format['bytes'])}"))
    lines += [
        ("memory", f"about {size_text(memory['resident_bytes'])} with all weights resident and a full cache"),
        ("", f"about {size_text(memory['streamed_bytes'])} with experts streamed from disk"),
        ("cache", f"{memory['cache_bytes_per_token']:,} bytes a token in bfloat16"),
        ("tokenizer", found["tokenizer"] or "none found: give one with --tokenizer"),
        ("licence", found["licence"] or "not stated in the files"),
    ]
    return lines


def _count(n: int) -> str:
    return f"{n / 1e9:,.2f} B" if n >= 1e9 else f"{n / 1e6:,.2f} M"
