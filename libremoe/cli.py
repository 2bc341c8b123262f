"""The command line: one parser; each command imports its module when chosen and calls one function.

Exit codes: 0 done, 1 the answer is no (a digest differs), 2 a mistake in what was asked, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from libremoe.errors import LibremoeError
from libremoe.evals import flags as eval_flags
from libremoe.train import flags as train_flags

KV_TYPES = ("float32", "bfloat16", "int8")
KV_HELP = ("what keys and values are kept in: int8 takes about half of bfloat16, a quarter of float32; default: the "
           "type of activations")
GROUP_HELP = ("inputs of a linear weight that share a scale; int4, int3, int2: 32 (default) or 64, which is "
              "smaller, faster at prompts on AMX and less exact")
MODEL_HELP = "the official checkpoint folder, a Hugging Face folder, a .gguf file, or libremoe's own folder"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. A person's mistake becomes one line on stderr."""
    try:
        _mend_streams()
        args = parse(argv)
        code = _function(args.function)(args)
        sys.stdout.flush()
        return code
    except LibremoeError as error:
        print(f"libremoe: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nlibremoe: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _silence_output()  # the reader left: nothing more to say
        return 0
    except OSError as error:  # of the machine, such as a full disk under standard output; of models: CheckpointError
        print(f"libremoe: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", file=sys.stderr)
        _silence_output()
        return 2


def _mend_streams() -> None:
    """Standard streams that were closed become empty ones; a terminal that lacks a letter shows a question mark."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def _silence_output() -> None:
    """So that what is still in the buffer does not fail once more when Python ends."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor, in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of one command. Exits with code 2 and a usage line where they are wrong."""
    parser = build_parser()
    given = list(sys.argv[1:] if argv is None else argv)
    args, rest = parser.parse_known_args(train_flags.with_action(eval_flags.with_action(given)))
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(args, "prompt", "") is None:
        args.prompt, rest = rest[0], []  # argparse gives up an optional prompt when flags stand before it
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def _function(name: str):  # type: ignore[no-untyped-def]
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="libremoe", description="Run, convert and serve the open Grok-1, and Llama 2, Mistral and Mixtral."
    )
    parser.add_argument("--version", action="version", version=f"libremoe {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_chat(commands)
    _add_code(commands)
    _add_serve(commands)
    _add_keys(commands)
    _add_live(commands)
    _add_convert(commands)
    _add_verify(commands)
    _add_inspect(commands)
    _add_eval(commands)
    _add_plan(commands)
    _add_make_tiny(commands)
    _add_sandbox(commands)
    _add_train(commands)
    return parser


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("libremoe")
    except PackageNotFoundError:
        return "(not installed)"


def _command(commands, name: str, function: str, help: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
    command = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    command.set_defaults(function=function)
    return command


def _add_run(commands) -> None:  # type: ignore[no-untyped-def]
    run = _command(commands, "run", "libremoe.run:run", "stream a completion of a prompt")
    run.add_argument("path", type=Path, help=MODEL_HELP)
    run.add_argument("prompt", nargs="?", help="the text to continue; - or nothing reads standard input")
    run.add_argument("--ids", help="token ids instead of a prompt, as 5,17,23 (needs no tokenizer)")
    run.add_argument("--trace", type=Path, metavar="FILE",
                     help="with --memory: write which experts each step chose, for bench/replay.py")
    run.add_argument("--stats", action="store_true", help="print tokens/s and time to first token at the end")
    run.add_argument("--json", action="store_true", help="one JSON object a token, then one with the whole answer")
    many = run.add_argument_group("many prompts")
    many.add_argument("--throughput", action="store_true",
                      help="answer all of --prompts into --output, many at once; the same command continues")
    many.add_argument("--prompts", type=Path, metavar="FILE", help=".txt (a prompt a line) or .jsonl (prompt or ids)")
    many.add_argument("--output", type=Path, metavar="FILE", help="the .jsonl file of answers, in the order of prompts")
    many.add_argument("--batch", type=int, default=64, help="at most so many at once (default 64)")
    _add_loading(run)
    _add_sampling(run)


def _add_chat(commands) -> None:  # type: ignore[no-untyped-def]
    chat = _command(commands, "chat", "libremoe.chat.terminal:run", "a conversation in the terminal")
    chat.add_argument("path", type=Path, nargs="?", help=f"{MODEL_HELP}; default: the one that comes with the package")
    chat.add_argument("--persona", default="regular", help="regular, fun, coder, teacher, or one's own (docs/chat.md)")
    chat.add_argument("--lang", "--language", dest="language", choices=("en", "fr"),
                      help="of our lines and the system prompt; default: by LC_ALL or LANG, else en")
    _add_data(chat)
    _add_loading(chat)
    _add_sampling(chat)
    chat.set_defaults(temperature=None, max_tokens=None)  # the persona's, where the person says nothing


def _add_code(commands) -> None:  # type: ignore[no-untyped-def]
    code = _command(commands, "code", "libremoe.chat.code_command:run",
                    "complete, explain, test or change code")
    code.add_argument("instruction", nargs="?", help="what is wanted, in words")
    code.add_argument("--file", type=Path, help="the code; a patch is printed as a diff, and nothing is written")
    code.add_argument("--task", choices=("complete", "explain", "tests", "patch"),
                      help="default: patch of a file with an instruction, explain of one without, else complete")
    code.add_argument("--language", help="of the code; default: by the end of the file's name")
    code.add_argument("--model", type=Path, metavar="PATH",
                      help=f"{MODEL_HELP}; default: the one that comes with the package")
    code.add_argument("--json", action="store_true", help="one object with text or diff, and stats")
    _add_loading(code)
    _add_sampling(code)
    code.set_defaults(temperature=None, max_tokens=1024)


def _add_serve(commands) -> None:  # type: ignore[no-untyped-def]
    serve = _command(commands, "serve", "libremoe.server.serve:run",
                     "answer OpenAI and Anthropic clients over HTTP, many at once")
    serve.add_argument("path", type=Path, nargs="?", help=f"{MODEL_HELP}; default: the one that comes with the package")
    serve.add_argument(
        "--host", default="127.0.0.1", help="any other than loopback needs a key (libremoe keys add NAME)"
    )
    serve.add_argument("--port", type=int, default=8000, help="default 8000; 0 takes a free one")
    serve.add_argument("--name", help="what clients call the model; default: the last part of the path")
    serve.add_argument("--chat-template", metavar="FILE",
                       help="a Jinja template, or 'transcript' (for base models); default: the one beside the weights")
    _add_loading(serve)
    group = serve.add_argument_group("limits")
    group.add_argument("--max-running", type=int, default=16, help="answers computed at once (default 16)")
    group.add_argument(
        "--max-waiting", type=int, default=256, help="requests in the queue; more are refused (default 256)"
    )
    group.add_argument("--kv-bytes", type=int, metavar="BYTES", help="memory for keys and values of running texts")
    group.add_argument("--queue-timeout", type=float, default=120.0, metavar="SECONDS",
                       help="a request that has not begun by then is refused (default 120)")
    group.add_argument("--drain-timeout", type=float, default=60.0, metavar="SECONDS",
                       help="after SIGTERM, time to finish what runs (default 60)")
    _add_data(serve)
    page = serve.add_argument_group("page")
    page.add_argument("--no-page", action="store_true", help="neither the page nor its conversations")
    access = serve.add_argument_group("access")
    access.add_argument("--keys-file", type=Path, help="default: $LIBREMOE_KEYS, or ~/.config/libremoe/keys.json")
    access.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                        help="a name by which clients call this server (Host header); repeatable")
    access.add_argument("--allow-origin", action="append", default=[], metavar="ORIGIN",
                        help="an origin, such as https://example.org, whose web pages may call; repeatable")


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("conversations")
    group.add_argument("--data", type=Path, metavar="DIR",
                       help="where they are kept; default: $XDG_DATA_HOME/libremoe, or ~/.local/share/libremoe")
    group.add_argument("--database", metavar="URL", help="keep them there instead: postgresql://USER@HOST/NAME")
    group.add_argument("--ephemeral", action="store_true", help="keep nothing: gone when this ends")
    group.add_argument("--live", action="store_true",
                       help="let live answers ask the sources that were added (libremoe live add); else nothing leaves")
    group.add_argument("--allow-python", action="store_true",
                       help="a tool that runs Python in the sandbox, once the sandbox has passed its self-test")


def _add_keys(commands) -> None:  # type: ignore[no-untyped-def]
    keys = _command(commands, "keys", "libremoe.server.keys:run", "add, list and remove the keys of the server")
    actions = keys.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="make a key and print it, once")
    add.add_argument("name", help="whose key it is")
    add.add_argument("--scope", action="append", choices=("generate", "embed", "tokenize", "metrics", "chat"),
                     help="what it is for; repeatable; default: everything")
    add.add_argument("--rpm", type=int, metavar="N", help="requests a minute")
    add.add_argument("--tpm", type=int, metavar="N", help="tokens a minute, prompts and answers")
    remove = actions.add_parser("remove", help="forget a key; a running server notices within a second")
    remove.add_argument("name")
    shown = actions.add_parser("list", help="names, scopes and quotas")
    for action in (add, remove, shown):
        action.add_argument("--keys-file", type=Path, help="default: $LIBREMOE_KEYS, or ~/.config/libremoe/keys.json")


def _add_live(commands) -> None:  # type: ignore[no-untyped-def]
    live = _command(commands, "live", "libremoe.live.command:run",
                    "choose the sources of live answers, read them, and see every byte that left")
    actions = live.add_subparsers(title="actions", metavar="ACTION", required=True, dest="action")
    add = actions.add_parser("add", help="a feed, a page, a SearXNG or Mastodon address; wikipedia, bluesky or x")
    add.add_argument("url", help="a URL, or the word wikipedia, bluesky or x")
    add.add_argument("--kind", choices=("feed", "page", "search", "wikipedia", "mastodon", "bluesky", "x"),
                     help="default: feed or page, as the URL turns out to be; search is a SearXNG address")
    add.add_argument("--name", help="default: its host")
    add.add_argument("--key-env", default="", metavar="NAME", help="the environment variable that holds its key")
    add.add_argument("--limit", type=float, default=0.0, metavar="USD", help="x: at most so many US dollars a month")
    listed = actions.add_parser("list", help="the sources, when they were read, and what went wrong")
    remove = actions.add_parser("remove", help="forget a source; what it brought stays unless --erase")
    remove.add_argument("name")
    remove.add_argument("--erase", action="store_true", help="erase what it brought, too")
    refresh = actions.add_parser("refresh", help="read feeds and pages now")
    refresh.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    search = actions.add_parser("search", help="search the archive; nothing is sent")
    search.add_argument("query")
    search.add_argument("--limit", type=int, default=10, metavar="N")
    ledger = actions.add_parser("ledger", help="every request: host, why, what was sent, bytes out and in")
    ledger.add_argument("--limit", type=int, default=100, metavar="N")
    ledger.add_argument("--clear", action="store_true", help="erase what was asked; that bytes went to a host stays")
    offline = actions.add_parser("offline", help="the switch: with it on, no socket is opened")
    offline.add_argument("switch", nargs="?", choices=("on", "off"), help="default: say which it is")
    archive = actions.add_parser("archive", help="how much it holds; beyond its limit what is oldest is erased")
    archive.add_argument("--limit", metavar="SIZE", help="what it may occupy from now on, such as 500M (default 1 GiB)")
    for action in (add, listed, remove, refresh, search, ledger, offline, archive):
        action.add_argument("--data", type=Path, metavar="DIR", help="as of libremoe serve and chat")
        action.add_argument("--json", action="store_true")


def _add_loading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("loading")
    group.add_argument("--tokenizer", help="tokenizer.model or tokenizer.json, or 'bytes'; default: beside the weights")
    group.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="type of activations")
    group.add_argument("--kv", choices=KV_TYPES, help=KV_HELP)
    group.add_argument("--memory", metavar="SIZE",
                       help="what this program may occupy in all, such as 12G; experts beyond are streamed from disk")
    group.add_argument("--draft", type=int, default=0, metavar="N",
                       help="guess N tokens ahead with the experts in memory, then verify them at once: the same text; "
                            "--stats says what it gains")
    group.add_argument("--mmap", action="store_true",
                       help="map the files instead of reading them: starts at once and runs what memory cannot hold, "
                            "but a file cut short while in use ends the process")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (default 0.7)")
    group.add_argument("--top-k", type=int, default=0, help="keep the k most probable tokens; 0 keeps all")
    group.add_argument("--top-p", type=float, default=1.0, help="keep the smallest set with this probability")
    group.add_argument("--min-p", type=float, default=0.0, help="drop tokens below this share of the best one's")
    group.add_argument("--repetition-penalty", type=float, default=1.0)
    group.add_argument("--presence-penalty", type=float, default=0.0)
    group.add_argument("--frequency-penalty", type=float, default=0.0)
    group.add_argument("--seed", type=int, help="the same seed gives the same text")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    group.add_argument("--max-tokens", type=int, default=256, help="at most this many new tokens (default 256)")
    group.add_argument("--experts", type=int, metavar="K",
                       help="how many experts work on a token; default: as many as in training")
    group.add_argument("--logprobs", type=int, metavar="N", help="with --json: log-probabilities of the N best tokens")


def _add_convert(commands) -> None:  # type: ignore[no-untyped-def]
    convert = _command(commands, "convert", "libremoe.convert:run", "write a model in libremoe's own format")
    convert.add_argument("src", type=Path, help=MODEL_HELP)
    convert.add_argument("dst", type=Path, help="the folder to write; an interrupted conversion is continued")
    convert.add_argument("--format", required=True, choices=("bf16", "int8", "int4", "int3", "int2"),
                         help="of linear weights; int8 carries the official int8 values and scales over without loss")
    convert.add_argument("--head", choices=("f32", "bf16", "int8", "int4"),
                         help="of the embedding and output tables; default: as in the source, int8 below int8")
    convert.add_argument("--group", type=int, metavar="N", help=GROUP_HELP)
    convert.add_argument("--json", action="store_true", help="a summary as JSON")


def _add_verify(commands) -> None:  # type: ignore[no-untyped-def]
    verify = _command(commands, "verify", "libremoe.verify:run", "check every file against the manifest")
    verify.add_argument("path", type=Path, help="libremoe's own folder")
    verify.add_argument("--json", action="store_true")


def _add_inspect(commands) -> None:  # type: ignore[no-untyped-def]
    inspect = _command(commands, "inspect", "libremoe.inspect:run", "say what is in a model")
    inspect.add_argument("path", type=Path, help=MODEL_HELP)
    inspect.add_argument("--tensors", action="store_true", help="list them all")
    inspect.add_argument("--json", action="store_true")


def _add_eval(commands) -> None:  # type: ignore[no-untyped-def]
    command = _command(commands, "eval", "libremoe.evals.run:run", "measure a model on public benchmarks")
    eval_flags.add_eval(command, _add_loading, MODEL_HELP)


def _add_plan(commands) -> None:  # type: ignore[no-untyped-def]
    plan = _command(commands, "plan", "libremoe.plan:run",
                    "say whether a model runs here, in which format, how fast, and why")
    plan.add_argument("path", type=Path, help=MODEL_HELP + "; or the name of one that is not here: grok-1")
    plan.add_argument("--ram", metavar="SIZE", help="memory to plan with, as 24G; default: what is free")
    plan.add_argument("--disk", metavar="RATE", help="of large reads, as 1.2G/s; default: measured on the files")
    plan.add_argument("--format", choices=("bf16", "int8", "int4", "int3", "int2"), help="this one only; default: all")
    plan.add_argument("--context", type=int, metavar="N", help="tokens of each text (default 512)")
    plan.add_argument("--batch", type=int, default=1, metavar="N", help="texts at once (default 1)")
    plan.add_argument("--prompt", type=int, metavar="N", help="tokens before the first new one (default 512)")
    plan.add_argument("--kv", choices=KV_TYPES, default="float32", help="of keys and values (default float32)")
    plan.add_argument("--machine", type=Path, metavar="FILE", help="plan for this machine instead (docs/hardware.md)")
    plan.add_argument("--save-machine", type=Path, metavar="FILE", help="write what was measured in that form")
    plan.add_argument("--json", action="store_true")


def _add_make_tiny(commands) -> None:  # type: ignore[no-untyped-def]
    tiny = _command(commands, "make-tiny", "libremoe.tiny:run",
                    "write a model of the exact architecture with random weights, for tests and benchmarks")
    tiny.add_argument("dst", type=Path, help="the folder to write")
    tiny.add_argument("--dims", default="tiny", help="sizes: tiny, grok-1, llama-2-7b, mistral-7b, mixtral-8x7b")
    tiny.add_argument("--layers", type=int, help="this many layers instead of the preset's")
    tiny.add_argument("--as", dest="as_", choices=("native", "ckpt", "gguf"), default="native")
    tiny.add_argument("--format", default="int8", help="native: f32, bf16, int8, int4, ...; gguf: f32, f16, q8_0, q4_0")
    tiny.add_argument("--head", choices=("f32", "bf16", "int8", "int4"),
                      help="native: of the embedding and output tables; default: f32 beside int8, int8 below")
    tiny.add_argument("--group", type=int, metavar="N", help=GROUP_HELP)
    tiny.add_argument("--seed", type=int, default=0)
    tiny.add_argument("--json", action="store_true")


def _add_sandbox(commands) -> None:  # type: ignore[no-untyped-def]
    sandbox = _command(commands, "sandbox", "libremoe.sandbox.selftest:command",
                       "say whether untrusted code can be run here, in a sandbox that holds")
    sandbox.add_argument("--self-test", action="store_true", help="try to get out in every known way; half a minute")
    sandbox.add_argument("--json", action="store_true")


def _add_train(commands) -> None:  # type: ignore[no-untyped-def]
    train = _command(commands, "train", "libremoe.train.run:run",
                     "make training data, train a model from a recipe, ask it what it has learned")
    train_flags.add_train(train, _add_loading, MODEL_HELP)


if __name__ == "__main__":
    sys.exit(main())
