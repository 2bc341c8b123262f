"""The side of the tests, in its own sandbox: runs them against stand-ins whose calls cross to the code under test.

Nothing of that code runs here: it gives values of built-in types (grader_wire.py), and the comparisons are made here.
The verdict leaves by a descriptor that only this program holds.
"""

from __future__ import annotations

import ast
import builtins
import json
import sys
from typing import Any, BinaryIO, NoReturn

import grader_wire as wire  # type: ignore[import-not-found]  # beside it in the sandbox

BROKEN = "broken tests"


class Gone(BaseException):
    """The code under test ended, or said what no honest partner says. No test may carry on."""


class Partner:
    def __init__(self, requests: BinaryIO, answers: BinaryIO):
        self.requests, self.answers = requests, answers
        self.calls = 0
        self.gone = ""
        self.raised: Exception | None = None  # the last exception that came over, and what it is called there
        self.raised_name = ""

    def receive(self) -> dict[str, Any]:
        if self.gone:
            raise Gone
        try:
            line = self.answers.readline()
            message = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError, MemoryError):
            message = None
        if not isinstance(message, dict):
            self.leave("the program ended during the tests")
        return message

    def leave(self, why: str) -> NoReturn:
        self.gone = self.gone or why
        raise Gone

    def call(self, name: str, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if self.gone:
            raise Gone
        request = {"name": name, "args": wire.pack(args, refuse), "keywords": wire.pack(keywords, refuse)}
        try:
            wire.send(self.requests, request)
        except OSError:
            self.leave("the program ended during the tests")
        message = self.receive()
        if "raised" in message:
            raise self.exception(message)
        try:
            value = wire.unpack(message["value"], wire.Opaque)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, MemoryError, OverflowError):
            self.leave("the program's answer cannot be read")
        self.calls += 1
        return value

    def exception(self, message: dict[str, Any]) -> Exception:
        names = [n for n in message["raised"] if isinstance(n, str)] if isinstance(message["raised"], list) else []
        self.raised = RuntimeError(str(message.get("said"))[:500])
        for name in names:
            kind = getattr(builtins, name, None)
            if isinstance(kind, type) and issubclass(kind, Exception):
                try:
                    self.raised = kind(str(message.get("said"))[:500])
                    break
                except TypeError:  # one that wants more arguments: its base will do
                    continue
        self.raised_name = names[0][:80] if names else "RuntimeError"
        return self.raised


def refuse(value: Any) -> int:
    raise TypeError(f"a {type(value).__name__} cannot be handed to the code under test")


def main() -> None:
    requests = open(int(sys.argv[1]), "wb")  # noqa: SIM115
    answers = open(int(sys.argv[2]), "rb")  # noqa: SIM115
    verdict = open(int(sys.argv[3]), "wb")  # noqa: SIM115
    with open("tests.json") as file:
        task = json.load(file)
    partner = Partner(requests, answers)
    wire.send(verdict, judge(task, partner))


def judge(task: dict[str, Any], partner: Partner) -> dict[str, str]:
    try:
        first = partner.receive()
    except Gone:
        return {"outcome": "exception", "said": "the program ended before the tests"}
    if "syntax" in first:
        return {"outcome": "syntax error", "said": str(first["syntax"])[:500]}
    if "raised" in first:
        partner.exception(first)
        return _raised(partner)
    space: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(compile(task["setup"], "setup", "exec"), space)
        tests = ast.parse(task["tests"], "tests")
    except Exception as error:
        return {"outcome": BROKEN, "said": f"{type(error).__name__}: {error}"[:500]}
    for name in task["names"] if task["names"] is not None else _free_names(tests, space):
        space[name] = lambda *args, _name=name, **keywords: partner.call(_name, args, keywords)
    try:
        exec(compile(tests, "tests", "exec"), space)
    except Gone:
        pass
    except AssertionError as error:
        if error is not partner.raised:
            return {"outcome": "wrong", "said": str(error)[:500]}
        return _raised(partner)
    except Exception as error:
        if error is partner.raised:
            return _raised(partner)
        return {"outcome": "wrong", "said": f"{type(error).__name__}: {error}"[:500]}
    if partner.gone:  # also where a test swallowed it
        return {"outcome": "exception", "said": partner.gone}
    if partner.calls == 0:
        return {"outcome": "wrong", "said": "the tests called nothing"}
    return {"outcome": "passed", "said": ""}


def _raised(partner: Partner) -> dict[str, str]:
    refused = isinstance(partner.raised, PermissionError)
    return {"outcome": "refused" if refused else "exception", "said": f"{partner.raised_name}: {partner.raised}"[:500]}


def _free_names(tests: ast.Module, space: dict[str, Any]) -> list[str]:
    """What the tests use and nobody defines: the functions (and classes) that the answer has to bring."""
    used: set[str] = set()
    made = set(space) | set(dir(builtins))
    for node in ast.walk(tests):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            made |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return sorted(used - made)


main()
