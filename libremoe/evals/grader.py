"""Does model-written code pass its tests? Two sandboxes and this process; the code never shares one with its tests.

One sandbox runs the tests (they come with the benchmark), another the code under test. Each call of a test crosses to
the other as data, and only values of built-in types come back, so that the code can neither see a test nor replace a
comparison, an assertion or the verdict: to pass, it has to give the right values. The verdict comes by a pipe that only
the sandbox of the tests can write, and counts only where that program also ended well.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from libremoe.errors import LibremoeError
from libremoe.sandbox import Limits, Outcome, Running, start

Result = Literal["passed", "wrong", "exception", "timeout", "syntax error", "refused"]
OUTCOMES: tuple[Result, ...] = ("passed", "wrong", "exception", "timeout", "syntax error", "refused")
MAX_VERDICT_BYTES = 1 << 16
_GRACE_S = 5.0  # the tests outlive the code by this, so that they can say how it ended
_HERE = Path(__file__).parent
_TIME_CODES = (128 + signal.SIGXCPU, 128 + signal.SIGKILL)  # the soft and the hard limit of processor time
_CALL_CODE = 128 + signal.SIGSYS


@dataclass(frozen=True)
class Verdict:
    """outcome, and in a few words why. said may quote the code under test: untrusted text."""

    outcome: Result
    said: str
    seconds: float


def grade(answer: str, tests: str, *, setup: str = "", names: Sequence[str] | None = None,
          limits: Limits | None = None) -> Verdict:
    """Run tests (Python source with assertions) against answer (Python source).

    setup: source that the tests need, run beside them. names: what of the answer the tests call; None: every name that
    the tests use and do not define.
    Raises SandboxError where there is no sandbox; LibremoeError where the tests themselves are broken.
    """
    limits = limits or Limits()
    packages = tuple(p for p in ("numpy",) if f"import {p}" in tests + setup)
    wire = _source("grader_wire.py")
    task = json.dumps({"tests": tests, "setup": setup, "names": None if names is None else list(names)})
    with contextlib.ExitStack() as stack:
        request_r, request_w = _pipe(stack)
        answer_r, answer_w = _pipe(stack)
        verdict_r, verdict_w = _pipe(stack)
        code = stack.enter_context(start(
            _source("grader_answer.py").decode(), files={"grader_wire.py": wire, "answer.py": _utf8(answer)},
            limits=limits, packages=tuple(p for p in ("numpy",) if p in answer),
            argv=(str(request_r.fileno()), str(answer_w.fileno())), pass_fds=(request_r.fileno(), answer_w.fileno()),
        ))
        judges = (request_w.fileno(), answer_r.fileno(), verdict_w.fileno())
        judge = stack.enter_context(start(
            _source("grader_tests.py").decode(), files={"grader_wire.py": wire, "tests.json": task.encode()},
            limits=replace(limits, wall_s=limits.wall_s + _GRACE_S, cpu_s=limits.cpu_s + int(_GRACE_S)),
            packages=packages, argv=tuple(map(str, judges)), pass_fds=judges,
        ))
        for end in (request_r, request_w, answer_r, answer_w, verdict_w):
            end.close()  # so that each side sees the other's end
        judged, ended = _wait_both(judge, code)
        said = verdict_r.read(MAX_VERDICT_BYTES) or b""
    return _verdict(judged, ended, said)


def _wait_both(judge: Running, code: Running) -> tuple[Outcome, Outcome]:
    """How both ended; the code is ended where it still runs when the verdict is given."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(code.wait)
        try:
            judged = judge.wait()
        finally:
            code.kill()
    return judged, waiting.result()


def _verdict(judged: Outcome, ended: Outcome, said: bytes) -> Verdict:
    """What both ends and the tests' word add up to. Only the tests' word can make a pass, and only after a good end."""
    verdict = _read_verdict(said) if judged.how == "exited" and judged.code == 0 else None
    if verdict is not None and verdict[0] == "passed":
        return Verdict("passed", "", judged.seconds)
    if "timeout" in (ended.how, judged.how) or ended.code in _TIME_CODES or judged.code in _TIME_CODES:
        return Verdict("timeout", "ran longer than allowed", judged.seconds)
    if ended.how in ("output", "files"):
        return Verdict("refused", f"wrote more {ended.how} than allowed", judged.seconds)
    if ended.code == _CALL_CODE:
        return Verdict("refused", "made a forbidden system call", judged.seconds)
    if verdict is None:  # an answer can bring the tests down, with a value that is too large for them
        return Verdict("exception", "the tests could not be finished", judged.seconds)
    if verdict[0] not in OUTCOMES:
        raise LibremoeError(f"the tests themselves fail: {verdict[1]}")
    return Verdict(*verdict, judged.seconds)


def _read_verdict(said: bytes) -> tuple[Result, str] | None:
    try:
        verdict = json.loads(said)
        return verdict["outcome"], verdict["said"]
    except (ValueError, KeyError, TypeError):
        return None


def _source(name: str) -> bytes:
    return (_HERE / name).read_bytes()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # a model may write what is no text


def _pipe(stack: contextlib.ExitStack) -> tuple[io.FileIO, io.FileIO]:
    """The end to read and the end to write, closed with the stack at the latest."""
    read, write = os.pipe()
    return stack.enter_context(open(read, "rb", buffering=0)), stack.enter_context(open(write, "wb", buffering=0))
