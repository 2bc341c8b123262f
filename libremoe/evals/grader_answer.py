"""The side of the code under test, in its own sandbox: runs the code, then calls its functions as it is asked to.

The code can do what it likes to this program: all that leaves here are values, and the tests are not here.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import grader_wire as wire  # type: ignore[import-not-found]  # beside it in the sandbox


def main() -> None:
    requests = open(int(sys.argv[1]), "rb")  # noqa: SIM115
    answers = open(int(sys.argv[2]), "wb")  # noqa: SIM115
    with open("answer.py", encoding="utf-8", errors="surrogatepass") as file:
        source = file.read()
    space: dict[str, Any] = {"__name__": "answer"}
    try:
        code = compile(source, "answer.py", "exec")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        wire.send(answers, {"syntax": str(error)[:500]})
        return
    try:
        exec(code, space)
    except BaseException as error:
        wire.send(answers, {"raised": names(error), "said": said(error)})
        return
    wire.send(answers, {"loaded": True})
    kept: list[object] = []

    def stay(value: object) -> int:
        kept.append(value)
        return len(kept) - 1

    def stayed(number: int, truth: bool) -> object:
        return kept[number]

    for line in requests:
        request = json.loads(line)
        try:
            args = wire.unpack(request["args"], stayed)
            keywords = wire.unpack(request["keywords"], stayed)
            answer = {"value": wire.pack(space[request["name"]](*args, **keywords), stay)}
            json.dumps(answer)  # fails here where it would fail when sent
        except BaseException as error:
            answer = {"raised": names(error), "said": said(error)}
        wire.send(answers, answer)


def names(error: BaseException) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__]


def said(error: BaseException) -> str:
    try:
        return str(error)[:500]
    except BaseException:
        return ""


main()
