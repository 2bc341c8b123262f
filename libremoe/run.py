"""`libremoe run`: load a model, stream one completion to the terminal, say what it cost."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from libremoe import throughput
from libremoe.engine.sequence import Experts, Logprob
from libremoe.errors import LibremoeError
from libremoe.language_model import LanguageModel, Piece, load
from libremoe.routing import Trace
from libremoe.sampling import SamplingParams

if TYPE_CHECKING:
    from libremoe.forecast import Forecast

DEFAULT_MODEL = Path(__file__).with_name("default_model")
DEFAULT_NAME = "libremoe-small"


def run(args: argparse.Namespace) -> int:
    """Stream args.prompt's completion to stdout; with args.json one object a piece, then the whole. Returns 0."""
    params = sampling_params(args)
    if args.throughput:
        return throughput.run(args, lambda tokens: load_for(args, args.batch, tokens), params)
    if args.prompts is not None or args.output is not None:
        raise LibremoeError("--prompts and --output belong to --throughput: add it, or give one prompt")
    prompt = _prompt(args)
    known = params.max_tokens is not None  # how long the text can be, so that all other memory is for experts
    lm = load_for(args, tokens=throughput.most_tokens([prompt], params.max_tokens or 0, 1) if known else None)
    if args.trace is not None and args.draft:
        raise LibremoeError("--trace records true choices, and --draft makes others: leave one of them out")
    if args.trace is not None:
        _record(lm, args.trace)
    if args.json:
        return _print_json(lm, prompt, params, args)
    chosen: list[Experts] = []
    as_ids = isinstance(prompt, list) and lm.tokenizer is None
    for piece in _pieces(lm, prompt, params, chosen, args):
        if as_ids:
            print(*piece.tokens, end=" ", flush=True)
        elif piece.text:
            print(piece.text, end="", flush=True)
    print()
    if args.stats:
        print(lm.stats.describe(), _compared(lm, chosen, args)[0], sep="\n", file=sys.stderr)
    return 0


def _pieces(lm: LanguageModel, prompt: str | list[int], params: SamplingParams, chosen: list[Experts],
            args: argparse.Namespace) -> Iterator[Piece]:
    """lm.pieces, and with --stats what each decoding step of one token chose, if it was the model's own choice."""
    watched = args.stats and params.experts is None and not args.draft
    for i, piece in enumerate(lm.pieces(prompt, params, report_experts=watched)):
        if i and piece.experts is not None:
            chosen.append(piece.experts)
        yield piece


def _compared(lm: LanguageModel, chosen: list[Experts], args: argparse.Namespace) -> tuple[str, Forecast | None]:
    from libremoe.plan import after_run

    return after_run(args.path, lm.stats, lm.kv_dtype, chosen)


def load_for(args: argparse.Namespace, batch: int = 1, tokens: int | None = None) -> LanguageModel:
    """The model that a command's loading flags ask for, with a progress bar on a terminal. Rest: see load()."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[args.dtype]
    loaded = partial(load, args.path, dtype=dtype, tokenizer=args.tokenizer, mmap=args.mmap, memory=args.memory,
                     batch=batch, draft=args.draft, kv=args.kv, tokens=tokens)
    if not sys.stderr.isatty():
        return loaded()
    from rich.console import Console
    from rich.progress import Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (*Progress.get_default_columns()[:2], TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading")
        return loaded(progress=lambda done, total: bar.update(task, completed=done, total=total))


def _record(lm: LanguageModel, file: Path) -> None:
    if lm.streamed is None:
        raise LibremoeError("--trace records what streamed experts are asked for: give --memory SIZE, less than the "
                            "model needs")
    config = lm.config
    lm.streamed.trace = Trace(file, config.n_layers, max(config.n_experts, 1), max(config.n_experts_per_tok, 1))


def default_model() -> Path:
    """The model that comes with the package. Raises LibremoeError where it comes without one."""
    if not (DEFAULT_MODEL / "libremoe.json").is_file():
        raise LibremoeError("this installation comes without a model: give the path of one, or make one of random "
                            "weights with `libremoe make-tiny DIR`")
    return DEFAULT_MODEL


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """SamplingParams from flags. Raises LibremoeError naming the field."""
    return SamplingParams(
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, min_p=args.min_p,
        repetition_penalty=args.repetition_penalty, presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty, seed=args.seed, stop=tuple(args.stop), max_tokens=args.max_tokens,
        logprobs=args.logprobs, experts=args.experts,
    )


def _prompt(args: argparse.Namespace) -> str | list[int]:
    if args.ids is not None:
        if args.prompt is not None:
            raise LibremoeError("give a prompt or --ids, not both")
        try:
            return [int(part) for part in args.ids.replace(",", " ").split()]
        except ValueError:
            raise LibremoeError(f"--ids takes whole numbers such as 5,17,23, not {args.ids!r}") from None
    if args.prompt in (None, "-"):
        if sys.stdin.isatty():
            raise LibremoeError('no prompt: libremoe run PATH "your text", or pipe it in')
        return _standard_input()
    try:
        args.prompt.encode()
    except UnicodeEncodeError:
        raise LibremoeError("the prompt is not UTF-8") from None
    return args.prompt


def _standard_input() -> str:
    """UTF-8 whatever the locale says. Raises LibremoeError for anything else."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    try:
        return sys.stdin.read().removesuffix("\n")  # the shell's, not the person's
    except UnicodeDecodeError as error:
        raise LibremoeError(f"standard input: not UTF-8 at byte {error.start}") from None


def _print_json(lm: LanguageModel, prompt: str | list[int], params: SamplingParams, args: argparse.Namespace) -> int:
    text, tokens, finish_reason = [], [], None
    chosen: list[Experts] = []
    for piece in _pieces(lm, prompt, params, chosen, args):
        record = {"text": piece.text, "tokens": piece.tokens}
        if params.logprobs is not None:
            record["logprobs"] = [_logprob(one) for one in piece.logprobs]
        print(json.dumps(record), flush=True)
        text.append(piece.text)
        tokens += piece.tokens
        finish_reason = piece.finish_reason or finish_reason
    whole = {"text": "".join(text), "tokens": tokens, "finish_reason": finish_reason, "stats": lm.stats.to_dict()}
    forecast = _compared(lm, chosen, args)[1] if args.stats else None
    if forecast is not None:
        whole["forecast"] = dataclasses.asdict(forecast)
    print(json.dumps(whole))
    return 0


def _logprob(one: Logprob) -> dict[str, object]:
    top = [{"token": token, "logprob": logprob} for token, logprob in one.top]
    return {"token": one.token, "logprob": one.logprob, "top": top}
