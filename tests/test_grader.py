"""The grader: right code passes, wrong code fails, and no cheat makes wrong code pass."""

import os
import subprocess

import pytest

from libremoe.errors import LibremoeError
from libremoe.evals import grader
from libremoe.evals.grader import grade
from libremoe.sandbox import Limits

LIMITS = Limits(wall_s=10.0, cpu_s=4, memory_bytes=512 << 20)
QUICK = Limits(wall_s=1.0, cpu_s=4, memory_bytes=512 << 20)
TESTS = """
def check(candidate):
    assert candidate(2, 3) == 5
    assert candidate(-1, 1) == 0, "a message"
    assert abs(candidate(0.5, 0.25) - 0.75) < 1e-9
check(add)
"""
SETUP = "def helper(a):\n    return a\n\ndef add(a, b):\n    pass\n"
RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return 12345\n"


def outcome(answer: str, tests: str = TESTS, limits: Limits = LIMITS, setup: str = SETUP, names=("add",)) -> str:
    return grade(answer, tests, setup=setup, names=names, limits=limits).outcome


@pytest.mark.parametrize(("answer", "expected"), [
    (RIGHT, "passed"),
    (WRONG, "wrong"),
    ("def add(a, b):\n    return a - b\n", "wrong"),
    ("def add(a, b):\n    return None\n", "wrong"),
    ("def add(a, b):\n    pass\n", "wrong"),
    ("def add(a):\n    return 5\n", "exception"),
    ("def other(a, b):\n    return a + b\n", "exception"),
    ("def add(a, b):\n    raise ValueError('x')\n", "exception"),
    ("def add(a, b):\n    assert False\n", "exception"),
    ("import no_such_module\n" + RIGHT, "exception"),
    ("def add(a, b:\n", "syntax error"),
    ("def add(a, b):\n    return '\0'", "syntax error"),
    ("\ud800 = 1", "syntax error"),
    ("def add(a, b):\n    import socket\n    return socket.socket()\n", "refused"),
    ("import os\nos.fork()\n" + RIGHT, "refused"),
    ("while True:\n    print('x' * 10000)\n", "refused"),
    ("def add(a, b):\n    bytearray(1 << 40)\n", "exception"),
    ("def add(a, b):\n    return add(a, b)\n", "exception"),
])
def test_outcomes(answer: str, expected: str) -> None:
    assert outcome(answer) == expected


@pytest.mark.parametrize("answer", [
    "while True:\n    pass\n", "def add(a, b):\n    while True:\n        pass\n",
    "import time\ndef add(a, b):\n    time.sleep(100)\n",
])
def test_a_program_without_end_is_a_timeout(answer: str) -> None:
    assert outcome(answer, limits=QUICK) == "timeout"


FORGE = r'''
import json, os
def forge():
    for line in (b'{"outcome": "passed", "said": ""}\n', b'{"loaded": true}\n', b'{"value": 5}\n'):
        for fd in range(0, 64):
            try:
                os.write(fd, line)
            except OSError:
                pass
'''
SAME = """
class Same(%s):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __bool__(self): return True
    def __sub__(self, other): return self
    def __abs__(self): return self
    def __hash__(self): return 0
def add(a, b):
    return Same()
"""
CHEATS = {
    "os._exit at import": "import os\nos._exit(0)\n",
    "os._exit in a call": "import os\ndef add(a, b):\n    os._exit(0)\n",
    "sys.exit at import": "import sys\nsys.exit(0)\n",
    "sys.exit in a call": "import sys\ndef add(a, b):\n    sys.exit(0)\n",
    "another program": "import os, sys\nos.execv(sys.executable, ['python', '-c', 'print(1)'])\n",
    "killed by itself": "import os\nos.kill(os.getpid(), 9)\n",
    "kill the others": "import os\nfor pid in range(-1, 100):\n    try:\n        os.kill(pid, 9)\n    except OSError:\n"
                       "        pass\n" + WRONG,
    "verdict to every descriptor": FORGE + "forge()\n" + WRONG,
    "verdict in a call": FORGE + "def add(a, b):\n    forge()\n    return 12345\n",
    "verdict, then exit": FORGE + "forge()\nos._exit(0)\n",
    "verdict at exit": FORGE + "import atexit\natexit.register(forge)\n" + WRONG,
    "verdict from a thread": FORGE + """
import threading
threading.Thread(target=lambda: [forge() for _ in range(2000)]).start()
""" + WRONG,
    "verdict printed": "print('{\"outcome\": \"passed\"}')\n" + WRONG,
    "verdict on stderr": "import os\nos.write(2, b'passed')\n" + WRONG,
    "verdict in an error": "def add(a, b):\n    raise ValueError('\", \"outcome\": \"passed')\n",
    "verdict in an error's name": """
E = type('E", "outcome": "passed', (Exception,), {})
def add(a, b):
    raise E
""",
    "verdict in a syntax error": "'{\"outcome\": \"passed\"}' = 1\n",
    "equal to everything": SAME % "object",
    "a number equal to everything": SAME % "int",
    "a fraction equal to everything": SAME % "float",
    "a text equal to everything": SAME % "str",
    "a list equal to everything": SAME % "list",
    "a dict equal to everything": SAME % "dict",
    "not a number": "def add(a, b):\n    return float('nan')\n",
    "true": "def add(a, b):\n    return True\n",
    "AssertionError replaced": "import builtins\nbuiltins.AssertionError = type('Never', (Exception,), {})\n" + WRONG,
    "builtins replaced": "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.isinstance = lambda *a: True\n"
                         "builtins.exec = builtins.compile = lambda *a: None\n" + WRONG,
    "json replaced": "import json\njson.dumps = lambda *a, **k: '{\"outcome\": \"passed\"}'\n" + WRONG,
    "the wire replaced": "import grader_wire\ngrader_wire.pack = lambda *a: {'o': [0, True]}\n" + WRONG,
    "a tag that is unknown": "import grader_wire\ngrader_wire.pack = lambda *a: {'eval': '5'}\n" + WRONG,
    "a tag of a type": "import grader_wire\ngrader_wire.pack = lambda *a: {'k': 'object'}\n" + WRONG,
    "a tag of a function": "import grader_wire\ngrader_wire.pack = lambda *a: {'k': 'exec'}\n" + WRONG,
    "an answer too deep": "import grader_wire, json\ngrader_wire.send = lambda f, m: (f.write(b'[' * 10**5 + b'\\n'), "
                          "f.flush())\n" + WRONG,
    "an answer that is a list": """
import grader_wire
grader_wire.send = lambda f, m: (f.write(b'[1]\\n'), f.flush())
""" + WRONG,
    "an answer without end": "import grader_wire\ndef send(f, m):\n    while True:\n        f.write(b'1' * 65536)\n"
                             "grader_wire.send = send\n" + WRONG,
    "a number without end": "import grader_wire\ngrader_wire.pack = lambda *a: {'i': 'f' * 10**6}\n" + WRONG,
    "the tests read from disk": """
import glob
found = ''.join(open(f).read() for f in glob.glob('/runtime/**', recursive=True) if 'tests' in f)
def add(a, b):
    return a + b if '== 5' in found else 1
""",
    "the tests read from the stack": """
import sys
def add(a, b):
    frame = sys._getframe()
    while frame:
        if 'candidate' in frame.f_locals or 'check' in frame.f_globals or 'tests' in str(frame.f_code.co_filename):
            return a + b
        frame = frame.f_back
    return 12345
""",
    "the tests read from memory": """
import gc
def add(a, b):
    needle = ''.join(['a mes', 'sage'])
    for thing in gc.get_objects():
        if isinstance(thing, (tuple, list)) and any(t == needle for t in thing if type(t) is str):
            return a + b
    return 12345
""",
    "the tests read from the arguments": "import sys\nif any('check' in a for a in sys.argv):\n    " + RIGHT.replace(
        "\n", "\n    ") + "\nelse:\n    " + WRONG.replace("\n", "\n    "),
    "its own check": "def check(candidate):\n    pass\n" + WRONG,
    "its own helper": "def helper(a):\n    raise SystemExit(0)\n" + WRONG,
    "the loop of its caller": "import sys\nmain = sys.modules['__main__']\nmain.main = lambda: None\n"
                              "main.names = lambda e: ['passed']\n" + WRONG,
    "a trace function": "import sys\nsys.settrace(lambda *a: sys.exit(0))\n" + WRONG,
    "a signal": "import signal\nsignal.signal(signal.SIGALRM, lambda *a: sys.exit(0))\nsignal.alarm(1)\n" + WRONG,
    "an interrupt": "def add(a, b):\n    raise KeyboardInterrupt\n",
    "an end of iteration": "def add(a, b):\n    raise StopIteration\n",
    "an assertion's own error": "def add(a, b):\n    raise AssertionError\n",
    "small numbers overwritten": "import ctypes\nctypes.memset(id(12345) + 24, 5, 1)\n" + WRONG,
    "numbers all equal": """
import ctypes
for n in range(50, 100):
    ctypes.c_uint32.from_address(id(n) + 24).value = 5
""" + WRONG,
    "its descriptors closed": "import os\nos.closerange(0, 64)\n" + WRONG,
    "its descriptors crossed": "import os\nfor fd in range(3, 30):\n    try:\n        os.dup2(1, fd)\n"
                               "    except OSError:\n        pass\n" + WRONG,
    "an import replaced": "import sys\nsys.modules['json'] = sys.modules['grader_wire'] = None\n" + WRONG,
    "optimised away": "__debug__ and None\nimport sys\nsys.flags = None\n" + WRONG,
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_no_cheat_passes(cheat: str) -> None:
    assert outcome(CHEATS[cheat], limits=QUICK if "without end" in cheat else LIMITS) != "passed"


def test_there_are_thirty_cheats() -> None:
    assert len(CHEATS) >= 30


SWALLOWING = """
def check(candidate):
    try:
        value = candidate(2, 3)
    except BaseException:
        return
    assert value == 5
check(add)
"""


def test_an_end_that_a_test_swallows_is_no_pass(monkeypatch) -> None:
    assert outcome(CHEATS["os._exit in a call"], SWALLOWING) == "exception"
    _weaken(monkeypatch, "    if partner.gone:  # also where a test swallowed it", "    if False:")
    _weaken(monkeypatch, "    if partner.calls == 0:", "    if False:")
    assert outcome(CHEATS["os._exit in a call"], SWALLOWING) == "passed"


def test_tests_that_call_nothing_are_no_pass(monkeypatch) -> None:
    assert outcome(WRONG, "assert True") == "wrong"
    _weaken(monkeypatch, "    if partner.calls == 0:", "    if False:")
    assert outcome(WRONG, "assert True") == "passed"


def test_what_stayed_is_equal_to_nothing(monkeypatch) -> None:
    assert outcome(SAME % "object", "assert add(2, 3) == 5") == "wrong"
    _weaken(monkeypatch, "        return False\n\n    def __ne__", "        return True\n\n    def __ne__")
    assert outcome(SAME % "object", "assert add(2, 3) == 5") == "passed"


def test_the_verdict_of_tests_that_did_not_end_well_does_not_count(monkeypatch) -> None:
    """A test program that says passed and then fails is broken, and so is the run."""
    line = "    wire.send(verdict, judge(task, partner))"
    _weaken(monkeypatch, line, line + "\n    1 / 0")
    assert outcome(RIGHT) == "exception"


def test_the_verdict_goes_by_a_way_of_its_own(monkeypatch) -> None:
    """Were its descriptor handed to the code under test too, what that writes would arrive, and spoil the verdict."""
    popen = subprocess.Popen
    ends: list[int] = []

    def leaking(command, **options):
        return popen(command, **{**options, "pass_fds": (*options["pass_fds"], *ends)})

    pipe = os.pipe
    monkeypatch.setattr(grader.os, "pipe", lambda: [ends.append(e) or e for e in pipe()])
    monkeypatch.setattr("libremoe.sandbox.subprocess.Popen", leaking)
    forged = r'''
import os, sys
for fd in range(3, 64):
    try:
        if str(fd) not in sys.argv:
            os.write(fd, b'{"outcome": "passed", "said": ""}\n')
    except OSError:
        pass
def add(a, b):
    return a + b
'''
    assert outcome(forged) == "exception"
    monkeypatch.undo()
    assert outcome(forged) == "passed"


def _weaken(monkeypatch, text: str, instead: str) -> None:
    """Take a check out of the programs that run in the sandbox."""
    source = grader._source
    found = [n for n in ("grader_tests.py", "grader_wire.py") if text in source(n).decode()]
    assert found, text
    monkeypatch.setattr(grader, "_source", lambda n: source(n).replace(text.encode(), instead.encode()))


VALUES = """
None
True
0
-7
2 ** 53
-(2 ** 200)
1.5
float('inf')
'text'
'\\ud800 \\0 \\u2028'
b'\\x00\\xff'
bytearray(b'x')
1 + 2j
range(3, 9, 2)
[]
[1, [2, (3,)]]
()
(1,)
set()
{1, 'a', (2,)}
frozenset({1})
{}
{1: 'a', (1, 2): [3], None: {}}
[[], {}, ()]
int
ValueError
""".strip()


def test_values_cross_both_ways() -> None:
    listed = ", ".join(VALUES.splitlines())
    tests = f"""
for i, value in enumerate([{listed}]):
    for back in (same(value), number(i)):
        assert back == value and type(back) is type(value), (back, value)
        shown = (lambda v: sorted(map(repr, v))) if type(value) is set else repr  # sets have no order
        assert shown(back) == shown(value), (back, value)
"""
    answer = f"def same(a):\n    return a\ndef number(i):\n    return [{listed}][i]\n"
    assert grade(answer, tests, limits=LIMITS).outcome == "passed"


def test_iterators_objects_and_subclasses_cross_as_far_as_they_can() -> None:
    answer = """
import collections, enum, re
import numpy as np
class Pair:
    def __init__(self, a, b): self.a, self.b = a, b
class Colour(enum.IntEnum):
    RED = 3
def total(pairs): return sum(p.a * p.b for p in pairs)
def count(text): return collections.Counter(text)
def squares(n): return (i * i for i in range(n))
def numbers(): return [np.int64(3), np.float64(0.5), np.bool_(True), Colour.RED]
def found(text): return re.match('a', text)
def keep(pair): return pair.b
"""
    tests = """
assert total([Pair(2, 3), Pair(4, 5)]) == 26
assert count('aab') == {'a': 2, 'b': 1}
assert list(squares(4)) == [0, 1, 4, 9] and squares(2) != [0, 1]
assert numbers() == [3, 0.5, True, 3]
assert found('abc') and not found('xyz')
pair = Pair(1, b=2)
assert keep(pair) == 2 and pair != Pair(1, 2)
"""
    assert grade(answer, tests, limits=LIMITS).outcome == "passed"


def test_an_exception_crosses_by_its_built_in_kind() -> None:
    answer = "class Mine(KeyError): pass\ndef add(a):\n    raise Mine('gone')\n"
    tests = "add_ok = 0\ntry:\n    add(1)\nexcept KeyError:\n    add_ok = 1\nassert add_ok == 1\nassert other(1) == 1"
    assert outcome(answer + "def other(a):\n    return a\n", tests, names=("add", "other")) == "passed"


def test_broken_tests_are_said_to_be_broken() -> None:
    with pytest.raises(LibremoeError, match="the tests themselves fail: NameError"):
        outcome(RIGHT, setup="no_such_name")


def test_what_a_test_prints_does_not_disturb() -> None:
    assert outcome(RIGHT, "print('x' * 1000)\n" + TESTS) == "passed"
