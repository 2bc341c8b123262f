"""The flags of `libremoe train`, apart from cli.py because there are many. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

ACTIONS = ("data", "run", "behaviours", "score", "baseline", "card")
AddLoading = Callable[[argparse.ArgumentParser], None]


def with_action(argv: list[str]) -> list[str]:
    """`train RECIPE` is short for `train run RECIPE`; a recipe that is called like an action is ./data."""
    implied = argv[:1] == ["train"] and len(argv) > 1 and argv[1] not in (*ACTIONS, "-h", "--help")
    return [argv[0], "run", *argv[1:]] if implied else argv


def add_train(parser: argparse.ArgumentParser, add_loading: AddLoading, model_help: str) -> None:
    """Add the actions to the parser of `train`; add_loading adds the flags of every command that loads a model."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_data(actions)
    _add_run(actions)
    _add_behaviours(actions, add_loading, model_help)
    _add_score(actions, add_loading, model_help)
    _add_baseline(actions)
    _add_card(actions)


def _action(actions: Any, name: str, function: str, help: str) -> argparse.ArgumentParser:
    action: argparse.ArgumentParser = actions.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    action.set_defaults(function=f"libremoe.train.{function}")
    return action


def _add_data(actions: Any) -> None:
    data = _action(actions, "data", "pack:command", "turn the training mix into shards of token ids")
    data.add_argument("--data", type=Path, required=True, help="the folder of the mix (docs/training-data.md)")
    data.add_argument("--out", type=Path, required=True, help="the folder to write")
    data.add_argument("--mix", default="cpu", help="cpu (simple text for a very small model) or gpu (everything)")
    data.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.model; default: one is trained")
    data.add_argument("--pieces", type=int, default=4096, help="size of the tokenizer that is trained (default 4096)")
    data.add_argument("--eval", type=Path, metavar="DIR", help="evaluation sets; what overlaps with them is dropped")
    data.add_argument("--context", type=int, default=512, help="most tokens of a conversation (default 512)")
    data.add_argument("--scale", type=float, default=1.0, help="multiplies the tokens of every part (default 1)")
    data.add_argument("--seed", type=int, default=0)
    data.add_argument("--json", action="store_true", help="the report as JSON")


def _add_run(actions: Any) -> None:
    run = _action(actions, "run", "run:run", "train; `train RECIPE` is short for it")
    run.add_argument("recipe", help="a .toml file, or one of the package: cpu, gpu, minute, tune")
    run.add_argument("--data", type=Path, required=True, help="the folder that `libremoe train data` made")
    run.add_argument("--out", type=Path, required=True, help="the folder of the run: checkpoint, curves, model")
    run.add_argument("--from", dest="start", type=Path, metavar="MODEL", help="go on from this model's weights")
    run.add_argument("--resume", action="store_true", help="continue the run in OUT from its last checkpoint")
    run.add_argument("--device", help="cpu, cuda, ...; default: a GPU where there is one")
    run.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
                     help="of products; weights stay float32. auto: bfloat16 on GPUs and processors with AMX")
    run.add_argument("--threads", type=int, help="default: one for each core; with 1 a run can be repeated bit for bit")
    run.add_argument("--tokens", type=int, help="see so many tokens instead of the recipe's")
    run.add_argument("--seed", type=int, help="instead of the recipe's")
    run.add_argument("--dense", action="store_true", help="a model without experts of the same active size")
    run.add_argument("--checkpoint-every", type=float, default=120.0, metavar="SECONDS", help="default 120")
    run.add_argument("--json", action="store_true", help="the record of the run as JSON, and no progress")


def _add_behaviours(actions: Any, add_loading: AddLoading, model_help: str) -> None:
    asked = _action(actions, "behaviours", "behaviours:command",
                     "ask a chat model held-out questions and score what it does")
    asked.add_argument("path", type=Path, help=model_help)
    asked.add_argument("--data", type=Path, required=True, help="the folder of the mix, for its word lists")
    asked.add_argument("--items", type=int, default=200, help="questions of each behaviour and language (default 200)")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--answers", type=Path, metavar="FILE", help="write every question and answer, as JSON lines")
    asked.add_argument("--json", action="store_true")
    add_loading(asked)


def _add_score(actions: Any, add_loading: AddLoading, model_help: str) -> None:
    score = _action(actions, "score", "held_out:run", "score a model on held-out text")
    score.add_argument("path", type=Path, help=model_help)
    score.add_argument("--data", type=Path, required=True, help="the folder that `libremoe train data` made")
    score.add_argument("--context", type=int, default=512, help="tokens a row, as in the recipe")
    score.add_argument("--rows", type=int, default=32, help="of each validation shard; eval_rows of the recipe")
    score.add_argument("--json", action="store_true")
    add_loading(score)


def _add_baseline(actions: Any) -> None:
    baseline = _action(actions, "baseline", "kneser_ney:run",
                        "score a 5-gram Kneser-Ney model on the same text, to compare with")
    baseline.add_argument("--data", type=Path, required=True, help="the folder that `libremoe train data` made")
    baseline.add_argument("--stage", default="pretrain", help="the shard to count; valid-STAGE is scored")
    baseline.add_argument("--order", type=int, default=5)
    baseline.add_argument("--context", type=int, default=512, help="rows as in the recipe, so that the same are scored")
    baseline.add_argument("--rows", type=int, default=32, help="eval_rows of the recipe")
    baseline.add_argument("--json", action="store_true")


def _add_card(actions: Any) -> None:
    card = _action(actions, "card", "card:run", "write the model card from the records")
    card.add_argument("path", type=Path, help="the folder of a finished run, or the model with its train.json")
    card.add_argument("--dense", type=Path, metavar="DIR", help="the run of the dense model, to compare with")
    card.add_argument("--baseline", type=Path, metavar="FILE", help="what `train baseline --json` printed")
    card.add_argument("--behaviours", type=Path, metavar="FILE", help="scores of the behaviours, as JSON")
    card.add_argument("--scores", type=Path, metavar="FILE", help="what `train score --json` printed")
    card.add_argument("--out", type=Path, help="default: standard output")
