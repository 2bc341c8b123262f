"""`libremoe code`: help with a file, on the command line."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from libremoe.chat.code import Asked, Done, Task, help_with
from libremoe.chat.events import TextDelta
from libremoe.chat.local_model import LocalModel, load_local
from libremoe.chat.persona import load_personas
from libremoe.errors import LibremoeError
from libremoe.run import default_model, sampling_params

MAX_FILE_BYTES = 4 << 20


def run(args: argparse.Namespace) -> int:
    """args: instruction, file, task, model, json, those of loading and of sampling. Returns 0; 1 where a patch changes
    nothing."""
    sampling = {"temperature": args.temperature} if args.temperature is not None else {}
    args.temperature = 0.2 if args.temperature is None else args.temperature
    task: Task = args.task or ("complete" if args.file is None else "patch" if args.instruction else "explain")
    code = _read(args.file) if args.file is not None else ""
    asked = Asked(task, code, args.file.as_posix() if args.file is not None else "", args.language or "",
                  args.instruction or "", sampling=sampling)
    params = sampling_params(args)
    args.path = args.model or default_model()
    done = asyncio.run(_work(asked, load_local(args, params), shown=not args.json and task != "patch"))
    if args.json:
        print(json.dumps({"task": task, "text": done.text, "diff": done.diff, "stats": dict(done.stats)}))
    elif task == "patch":
        print(done.diff, end="")
        if not done.diff:
            print("libremoe: the model proposed no change", file=sys.stderr)
    return int(task == "patch" and not done.diff)


async def _work(asked: Asked, model: LocalModel, shown: bool) -> Done:
    done = Done()
    try:
        async for event in help_with(asked, load_personas()["coder"], model):
            if isinstance(event, Done):
                done = event
            elif shown and isinstance(event, TextDelta):
                print(event.text, end="", flush=True)
    finally:
        await model.close()
    if shown:
        print()
    return done


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise LibremoeError(f"{path}: {error.strerror or error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise LibremoeError(f"{path}: is longer than {MAX_FILE_BYTES} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise LibremoeError(f"{path}: is not UTF-8 at byte {error.start}") from error
