"""The flags of `libremoe eval`, apart from cli.py because there are many. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

ACTIONS = ("run", "fetch", "perplexity", "quant", "report")


def with_action(argv: list[str]) -> list[str]:
    """`eval MODEL ...` means `eval run MODEL ...`; a model that is called like an action is ./fetch."""
    implied = argv[:1] == ["eval"] and len(argv) > 1 and argv[1] not in (*ACTIONS, "-h", "--help")
    return [argv[0], "run", *argv[1:]] if implied else argv


def add_eval(parser: argparse.ArgumentParser, add_loading: Callable[[argparse.ArgumentParser], None],
             model_help: str) -> None:
    """Add the actions to the parser of `eval`; add_loading adds the flags of every command that loads a model."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    run = _action(actions, "run", "run:run", "ask benchmarks and score the answers; the word run may be left out")
    run.add_argument("path", metavar="MODEL", help=f"{model_help}; or an OpenAI-compatible URL")
    run.add_argument("--tasks", required=True, metavar="NAMES", help="benchmarks, separated by commas")
    run.add_argument("--data", type=Path, metavar="DIR", help="the folder of the benchmarks' files")
    run.add_argument("--out", type=Path, metavar="RUN", help="where answers are kept, and continued; default: "
                                                             "eval-runs/<model>")
    run.add_argument("--limit", type=int, metavar="N", help="ask a stratified sample of N items of each benchmark")
    run.add_argument("--budget", metavar="TIME", help="such as 2h: stop when it is spent, or when it is decided "
                                                      "whether the score is above or below the published one")
    run.add_argument("--against", metavar="NAME", help="grok-1 (default), gpt-3.5, llama-2-70b or a score in per cent")
    run.add_argument("--seed", type=int, default=0, help="of the sample (default 0)")
    run.add_argument("--json", action="store_true", help="the results as one JSON object")
    run.add_argument("--max-running", type=int, default=16, metavar="N", help="texts computed at once (default 16)")
    add_loading(run)
    http = run.add_argument_group("a URL as the model")
    http.add_argument("--api", choices=("auto", "completions", "chat"), default="auto",
                      help="auto takes completions where there are any")
    http.add_argument("--model-name", metavar="NAME", help="which of the endpoint's models; how results are labelled")
    http.add_argument("--api-key-env", metavar="NAME", help="the environment variable that holds the key")
    http.add_argument("--concurrency", type=int, default=8, metavar="N", help="requests at once (default 8)")
    http.add_argument("--price", metavar="READ,WRITTEN", help="dollars for a million tokens, to report the cost")
    fetch = _action(actions, "fetch", "fetch:run", "get benchmark files from their public homes, sha256 checked")
    fetch.add_argument("names", nargs="+", metavar="NAME", help="benchmarks, such as mmlu gsm8k")
    fetch.add_argument("--data", type=Path, default=Path("eval-data"), metavar="DIR", help="default: eval-data")
    fetch.add_argument("--json", action="store_true")
    perplexity = _action(actions, "perplexity", "perplexity:run",
                         "how well a model foretells a text, by token, byte and character")
    perplexity.add_argument("path", metavar="MODEL", type=Path, help=model_help)
    perplexity.add_argument("--text", type=Path, required=True, metavar="FILE", help="UTF-8, or gzipped")
    perplexity.add_argument("--window", type=int, metavar="N", help="tokens that are read at once (default 2048, or "
                                                                    "the context)")
    perplexity.add_argument("--stride", type=int, metavar="N", help="tokens from one window to the next (default half)")
    perplexity.add_argument("--tokens", type=int, metavar="N", help="only the first N tokens of the text")
    perplexity.add_argument("--json", action="store_true")
    add_loading(perplexity)
    report = _action(actions, "report", "report:command",
                     "scores of runs next to the published ones, and a page with plots and every answer")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders that eval has written")
    report.add_argument("--html", type=Path, metavar="FILE", help="write the page there; it needs no other file")
    printed = report.add_mutually_exclusive_group()
    printed.add_argument("--json", action="store_true", help="the results as one JSON list")
    printed.add_argument("--markdown", action="store_true", help="the scores as a table in Markdown")
    quant = _action(actions, "quant", "quant:run", "what a quantisation costs: divergence, agreement, perplexity")
    quant.add_argument("path", metavar="A", type=Path, help=f"the reference: {model_help}")
    quant.add_argument("candidates", metavar="B", nargs="+", type=Path, help="the same model in other formats")
    quant.add_argument("--text", type=Path, required=True, metavar="FILE", help="UTF-8, or gzipped")
    quant.add_argument("--tokens", type=int, default=2048, metavar="N", help="the first N of the text (default 2048)")
    quant.add_argument("--window", type=int, default=512, metavar="N", help="tokens read at once (default 512)")
    quant.add_argument("--json", action="store_true")
    add_loading(quant)


def _action(actions, name: str, function: str, help: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
    action: argparse.ArgumentParser = actions.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    action.set_defaults(function=f"libremoe.evals.{function}")
    return action
