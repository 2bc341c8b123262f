"""`libremoe train score MODEL --data SHARDS`: any model on held-out text, as it runs when it is used."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from libremoe.errors import LibremoeError
from libremoe.language_model import LanguageModel
from libremoe.run import load_for
from libremoe.tokenizer import open_tokenizer
from libremoe.train.loop import score
from libremoe.train.recipe import Training
from libremoe.train.shards import Shard

_ROWS_AT_ONCE = 4


def run(args: argparse.Namespace) -> int:
    """The command. args: path and the loading flags, data, context, rows, json. Returns 0."""
    found = scores(load_for(args), args.data, args.context, args.rows)
    if args.json:
        print(json.dumps({"model": str(args.path), "context": args.context, "rows": args.rows, "shards": found}))
        return 0
    for name, one in found.items():
        print(f"{name}: {one['nats_per_token']:.3f} nats a token, perplexity a character "
              f"{one['perplexity_per_character']:.3f}")
    return 0


def scores(lm: LanguageModel, data: Path, context: int, rows: int) -> dict[str, dict[str, Any]]:
    """By validation shard, over the rows that the trainer and `train baseline` score: of chats, the answers only.

    Raises LibremoeError where the shards are of another tokenizer than the model's.
    """
    tokenizer = open_tokenizer(data / "tokenizer.model")
    if tokenizer.vocab_size > lm.config.vocab_size:
        raise LibremoeError(f"{data}: has ids up to {tokenizer.vocab_size - 1}, the model knows "
                            f"{lm.config.vocab_size}: give the shards that were made with its tokenizer")
    how, found = Training(tokens=1, context=context, eval_rows=rows, micro_rows=_ROWS_AT_ONCE), {}
    for folder in sorted(path.parent for path in data.glob("valid-*/meta.json")):
        per_token, per_char = score(lm.model, Shard(folder), tokenizer, how, folder.name == "valid-chat")
        found[folder.name] = {"nats_per_token": per_token, "nats_per_character": per_char,
                              "perplexity_per_character": math.exp(per_char)}
    if not found:
        raise LibremoeError(f"{data}: holds no validation shard; make one with `libremoe train data`")
    return found
