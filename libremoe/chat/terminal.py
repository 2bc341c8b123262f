"""`libremoe chat`: a conversation in the terminal. Ctrl-C stops an answer, Ctrl-D or /quit leaves, /new starts
afresh."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import sys

from rich.console import Console

from libremoe.chat.message import Message, said
from libremoe.chat.template import ModelTemplate, Prompt, find_template, transcript_prompt
from libremoe.errors import LibremoeError
from libremoe.language_model import LanguageModel
from libremoe.run import default_model, load_for, sampling_params
from libremoe.sampling import SamplingParams
from libremoe.tiny import is_random
from libremoe.weights import open_checkpoint


def run(args: argparse.Namespace) -> int:
    """Talk until the person leaves. Returns 0."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history for input(); absent on some systems

    console = Console(highlight=False)
    params = sampling_params(args)
    args.path = args.path or default_model()
    reader = open_checkpoint(args.path)
    lm = load_for(args)
    if lm.tokenizer is None:
        raise LibremoeError("a conversation needs a tokenizer: give one with --tokenizer FILE")
    console.print(f"[bold]{args.path}[/bold]: {lm.config.family}, {lm.config.n_params() / 1e6:,.1f} M parameters. "
                  "Ctrl-C stops an answer, Ctrl-D leaves, /new begins again.")
    if is_random(reader):
        console.print("[yellow]The weights of this model are random numbers: what it writes is noise. It shows that "
                      "the machinery works; for answers, give the path of a trained model.[/yellow]")
    template = find_template(args.path if args.path.is_dir() else args.path.parent)
    with asyncio.Runner() as runner:
        own = None if template is None else ModelTemplate(template, lm.tokenizer)
        try:
            _talk(console, lm, params, lambda messages: _prompt(messages, lm, own, runner))
        finally:
            if own is not None:
                runner.run(own.close())
    return 0


def _talk(console: Console, lm: LanguageModel, params: SamplingParams, prompt_of) -> None:  # type: ignore[no-untyped-def]
    messages: list[Message] = []
    while True:
        try:
            line = input("\n> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            console.print("\n(Ctrl-D leaves)")
            continue
        if line in ("/quit", "/exit"):
            return
        if line == "/new":
            messages = []
            console.print("(a new conversation)")
        elif line:
            messages.append(said("user", line))
            try:
                messages.append(said("assistant", _answer(console, lm, params, prompt_of(messages))))
            except LibremoeError as error:
                console.print(f"[red]{error}[/red]")
                messages.pop()


def _prompt(messages: list[Message], lm: LanguageModel, own: ModelTemplate | None, runner: asyncio.Runner) -> Prompt:
    """The model's own template where it brings one, else the transcript that a base model continues."""
    if own is not None:
        return runner.run(own.prompt(messages))
    assert lm.tokenizer is not None, "checked in run"
    bos_id = lm.config.bos_id if lm.config.add_bos else None
    return transcript_prompt(messages, lm.tokenizer, bos_id=bos_id, context_len=lm.config.context_len)


def _answer(console: Console, lm: LanguageModel, params: SamplingParams, prompt: Prompt) -> str:
    """Stream one answer to the screen; what was written before Ctrl-C is kept."""
    written: list[str] = []
    params = dataclasses.replace(params, stop=(*params.stop, *prompt.stop))
    stream = lm.stream(prompt.ids, params)
    try:
        for text in stream:
            written.append(text)
            console.print(text, end="", markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print(" [dim](stopped)[/dim]", end="")
    finally:
        stream.close()  # type: ignore[attr-defined]  # a generator: closing frees its cache
    console.print(f"\n[dim]{lm.stats.describe()}[/dim]")
    return "".join(written).strip()
