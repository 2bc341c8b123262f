"""The sandbox: every probe is stopped, and for each protection that is taken away a probe says so."""

import ctypes
import json
import os
import platform
import re
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from libremoe import cli, sandbox
from libremoe.errors import LibremoeError
from libremoe.sandbox import Limits, SandboxError, probes, run, seccomp, start

HEADER = {
    "x86_64": Path(f"/usr/include/{platform.machine()}-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def test_a_program_runs_and_says_how_it_ended() -> None:
    code = """
import sys
print(sys.stdin.read().upper(), open('in/a.txt').read())
print('e', file=sys.stderr)
sys.exit(3)
"""
    outcome = run(code, stdin=b"text", files={"in/a.txt": b"content"})
    assert (outcome.how, outcome.code, outcome.stdout, outcome.stderr) == ("exited", 3, b"TEXT content\n", b"e\n")


def test_an_error_is_shown_with_its_line_and_nothing_of_ours() -> None:
    said = run("x = 1\nx / 0\n").stderr.decode()
    assert "line 2" in said and "x / 0" in said and "ZeroDivisionError" in said and "launcher" not in said


def test_the_standard_library_threads_and_a_package_work() -> None:
    code = """
import asyncio, collections, decimal, hashlib, json, random, re, sqlite3, tempfile, threading
import numpy as np
async def two(): return 2
out = []
t = threading.Thread(target=lambda: out.append(asyncio.run(two()))); t.start(); t.join()
sqlite3.connect('x.db').execute('create table t (a)')
with tempfile.NamedTemporaryFile() as f: f.write(b'x')
print(out, int(np.arange(4) @ np.arange(4)), json.dumps(1))
"""
    outcome = run(code, packages=["numpy"])
    assert outcome.stdout == b"[2] 14 1\n", outcome.stderr


def test_runs_leave_nothing_for_each_other() -> None:
    run("open('left', 'w').write('x')")
    assert run("import os; print(os.listdir())").stdout == b"[]\n"


def test_all_probes_are_stopped() -> None:
    found = list(probes.try_all())
    assert len(found) >= 110
    assert [f for f in found if not f.stopped] == []


def _off() -> bytes:
    """A filter that allows everything."""
    return seccomp.struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)


def _try(group: str, name: str, **changed: float) -> probes.Found:
    with probes.bait() as bait:
        (probe,) = [p for p in probes.probes(bait) if (p.group, p.name) == (group, name)]
        return probes.try_one(replace(probe, limits=replace(probe.limits, **changed)))


@pytest.mark.parametrize(("limit", "value", "group", "name"), [
    ("RLIMIT_AS", 1 << 42, "resources", "memory in one piece"),
    ("RLIMIT_FSIZE", 1 << 42, "resources", "a file with a hole"),
    ("RLIMIT_NOFILE", 20_000, "resources", "many descriptors"),
    ("RLIMIT_NPROC", 200, "resources", "threads without end"),
    ("RLIMIT_STACK", -1, "processes", "raise the limit STACK"),
    ("RLIMIT_CORE", -1, "processes", "raise the limit CORE"),
    ("RLIMIT_MEMLOCK", 1 << 30, "resources", "locked memory"),
])
def test_an_rlimit_taken_away_is_noticed(limit: str, value: int, group: str, name: str, monkeypatch) -> None:
    limits = sandbox.rlimits
    monkeypatch.setattr(sandbox, "rlimits", lambda given: {**limits(given), limit: value})
    hard = resource.getrlimit(getattr(resource, limit))[1]
    if value > hard != resource.RLIM_INFINITY:
        monkeypatch.setattr(sandbox, "rlimits", lambda given: {k: v for k, v in limits(given).items() if k != limit})
    body = {"many descriptors": "kept = [os.open('/dev/null', 0) for _ in range(100)]",
            "threads without end": "import threading, time\nthreading.stack_size(1 << 16)\nfor _ in range(40):\n"
                                   "    threading.Thread(target=time.sleep, args=(1,), daemon=True).start()",
            "memory in one piece": "bytearray(300 << 20)"}.get(name)
    with probes.bait() as bait:
        (probe,) = [p for p in probes.probes(bait) if (p.group, p.name) == (group, name)]
    probe = replace(probe, body=body or probe.body)
    assert not probes.try_one(probe).stopped
    monkeypatch.undo()
    assert probes.try_one(probe).stopped


@pytest.mark.parametrize(("changed", "name"), [
    ({"cpu_s": 100, "wall_s": 1.5}, "processor time"),
    ({"n_files": 10**9, "wall_s": 1.0}, "many files"),
    ({"output_bytes": 10**9, "wall_s": 1.0}, "output without end"),
    ({"work_bytes": 1 << 30}, "files that fill the folder"),
])
def test_a_limit_taken_away_is_noticed(changed: dict[str, float], name: str) -> None:
    assert not _try("resources", name, **changed).stopped


@pytest.mark.parametrize(("group", "name"), [
    ("kernel", "bpf"), ("kernel", "unshare"), ("kernel", "socket"), ("processes", "fork"), ("processes", "clone3"),
    ("network", "a socket of AF_UNIX"), ("kernel", "the x32 table"), ("kernel", "the 32-bit table"),
    ("processes", "prctl: add a filter"), ("kernel", "ioctl: push input into a terminal"),
])
def test_without_the_filter_the_kernel_answers(group: str, name: str, monkeypatch) -> None:
    monkeypatch.setattr(seccomp, "program", _off)
    if "table" in name and platform.machine() != "x86_64":
        pytest.skip("a table of x86_64")
    assert not _try(group, name).stopped


SHARED_MEMORY_KEY = 0x6C69626D
# What the namespaces and mounts do by themselves, with the filter off: (argument, program, what it prints with it).
LAYERS = {
    "--unshare-net": ("import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)", "ECONNREFUSED"),
    "--unshare-pid": ("os.kill({pid}, 0)", "ESRCH"),
    "--unshare-ipc": ("libc = ctypes.CDLL(None, use_errno=True)\nif libc.shmget({key}, 0, 0) < 0:\n"
                      "    raise OSError(ctypes.get_errno(), '')", "ENOENT"),
    "--unshare-uts": ("raise OSError(0 if os.uname().nodename == 'sandbox' else 1, '')", "0"),
    "--remount-ro /": ("open('/runtime/new', 'w')", "EROFS"),
}


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("argument", LAYERS)
def test_each_layer_holds_without_the_filter(argument: str, taken: bool, monkeypatch) -> None:
    args = sandbox.bwrap_args
    monkeypatch.setattr(seccomp, "program", _off)
    if taken:
        monkeypatch.setattr(sandbox, "bwrap_args", lambda *a, **k: _without(args(*a, **k), argument.split()))
    libc = ctypes.CDLL(None, use_errno=True)
    segment = libc.shmget(SHARED_MEMORY_KEY, 4096, 0o1666)
    body, expected = LAYERS[argument]
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            body = body.format(port=server.getsockname()[1], pid=os.getpid(), key=SHARED_MEMORY_KEY)
            code = f"""
import ctypes, errno, os
try:
{textwrap.indent(body, "    ")}
    print("through")
except OSError as error:
    print(errno.errorcode.get(error.errno, error.errno))
"""
            outcome = run(code)
    finally:
        libc.shmctl(segment, 0, None)
    assert (outcome.stdout.decode().strip() == expected) is not taken, outcome


def _without(args: list[str], gone: list[str]) -> list[str]:
    gone = gone + ["--hostname", "sandbox"] if gone == ["--unshare-uts"] else gone
    if gone[0] == "--unshare-uts":
        return [a for a in args if a not in gone]
    at = next(i for i in range(len(args)) if args[i : i + len(gone)] == gone)
    return args[:at] + args[at + len(gone) :]


def test_a_mount_too_many_is_noticed(monkeypatch, tmp_path: Path) -> None:
    args = sandbox.bwrap_args
    monkeypatch.setattr(sandbox, "bwrap_args", lambda *a, **k: [*args(*a, **k), "--ro-bind", "/etc", "/etc"])
    assert not _try("files", "read /etc/passwd").stopped


def test_an_environment_handed_on_is_noticed(monkeypatch) -> None:
    popen = subprocess.Popen
    monkeypatch.setenv("A_SECRET", "x")
    monkeypatch.setattr(sandbox.subprocess, "Popen", lambda *a, **k: popen(*a, **{**k, "env": None}))
    assert not _try("processes", "the caller's environment").stopped


def test_a_descriptor_handed_on_is_noticed(monkeypatch, tmp_path: Path) -> None:
    popen = subprocess.Popen
    secret = os.open(tmp_path, os.O_RDONLY)
    monkeypatch.setattr(sandbox.subprocess, "Popen",
                        lambda *a, **k: popen(*a, **{**k, "pass_fds": (*k["pass_fds"], secret)}))
    try:
        assert not _try("files", "an open descriptor of the host").stopped
    finally:
        os.close(secret)


def test_an_unsealed_input_is_noticed(monkeypatch) -> None:
    monkeypatch.setattr(sandbox.fcntl, "fcntl", lambda *_: 0)
    assert not _try("files", "write to standard input").stopped


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a user to give up")
def test_root_kept_is_noticed(monkeypatch) -> None:
    monkeypatch.setattr(sandbox, "_FIRST_UID", 0)
    monkeypatch.setattr(sandbox.secrets, "randbelow", lambda _: 0)
    assert not _try("processes", "setuid(0)").stopped


def test_nothing_outlives_run() -> None:
    before = _alive()  # other tests of this process may keep workers
    code = "import threading, time\nthreading.Thread(target=time.sleep, args=(100,)).start()"
    assert run(code, limits=Limits(wall_s=0.5)).how == "timeout"
    assert _alive() <= before


@pytest.mark.parametrize("at", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_caller(at: signal.Signals) -> None:
    code = ("from libremoe.sandbox import Limits, run; print('begun', flush=True); "
            "run('while True: pass', limits=Limits(100, 100))")
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert caller.stdout is not None and caller.stdout.readline() == b"begun\n"
    deadline = time.monotonic() + 30
    while not (theirs := _alive(caller.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    theirs = _alive(caller.pid)
    assert theirs
    caller.send_signal(at)
    caller.wait()
    caller.stdout.close()
    while any(psutil.pid_exists(pid) for pid in theirs) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(pid) for pid in theirs)


def _alive(parent: int | None = None) -> set[int]:
    """Process ids below this (or that) process which belong to a sandbox."""
    return {p.pid for p in psutil.Process(parent).children(recursive=True) if p.name() in ("bwrap", "python")}


def test_leaving_the_block_ends_the_program() -> None:
    with start("while True: pass") as running:
        pid = running.process.pid
    assert not psutil.pid_exists(pid)


def test_without_bubblewrap_there_is_a_sentence_with_the_install_line(monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
        run("1")
    assert cli.main(["sandbox", "--self-test"]) == 2
    assert "apt-get install bubblewrap" in capsys.readouterr().err


def test_where_namespaces_are_refused_there_is_a_sentence(monkeypatch, tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(SandboxError, match="No permissions to create new namespace.*user namespaces"):
        run("1")


def test_a_bwrap_that_isolates_nothing_is_found_out(monkeypatch, tmp_path: Path) -> None:
    """check() refuses where a host's own bwrap runs the program as it is."""
    monkeypatch.setattr(seccomp, "program", _off)
    with pytest.raises(SandboxError, match="does not hold"):
        probes.check()


@pytest.mark.parametrize("name", ["", ".", "..", "/etc/x", "../x", "a/../../x", "a//b", "a/./b", "x\0y"])
def test_file_names_that_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(LibremoeError, match="no file name for the sandbox"):
        run("1", files={name: b""})


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(SandboxError, match="no_such_package"):
        run("1", packages=["no_such_package"])


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_numbers_of_system_calls_are_the_kernels(machine: str) -> None:
    """Where the C headers are installed; the generic table has the numbers of aarch64 on every machine."""
    if not HEADER[machine].is_file():
        pytest.skip("the kernel's headers are not installed")
    known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADER[machine].read_text()))
    known.setdefault("newfstatat", known.get("fstatat", ""))
    ours = {name: str(number) for name, number in seccomp.allowed(machine).items()}
    assert ours == {name: known.get(name) for name in ours}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_decides_as_it_says(machine: str) -> None:
    """Interpreted here, over every number and the arguments that matter: the allow-list and nothing else."""
    code = list(seccomp.struct.iter_unpack("<HBBI", seccomp.program(machine)))
    arch, _, clone, clone3, ioctl, prctl = seccomp._MACHINES[machine]
    free = set(seccomp.allowed(machine).values())
    allow, deny, kill = 0x7FFF0000, 0x00050001, 0x80000000
    for number in range(6000):
        expected = allow if number in free else 0x00050000 | 38 if number == clone3 else deny
        assert _decide(code, arch, number, 0, 0) == expected, number
    assert _decide(code, arch, clone, 0x3D0F00, 0) == allow  # what a thread of the C library asks for
    assert {_decide(code, arch, clone, 0x10000 | 1 << bit, 0) for bit in (7, 17, 25, 26, 27, 28, 29, 30)} == {deny}
    assert {_decide(code, arch, clone, flags, 0) for flags in (0, 17, 0x4111)} == {deny}
    assert {_decide(code, arch, ioctl, 0, r) for r in seccomp._IOCTLS} == {allow}
    assert {_decide(code, arch, ioctl, 0, r) for r in (0x5412, 0x541C, 0)} == {deny}
    assert {_decide(code, arch, prctl, p, 0) for p in seccomp._PRCTLS} == {allow}
    assert {_decide(code, arch, prctl, p, 0) for p in (1, 4, 22, 38)} == {deny}
    assert {_decide(code, other, 0, 0, 0) for other in (0x40000003, 0x40000028)} == {kill}
    if machine == "x86_64":
        assert _decide(code, arch, 0x40000000, 0, 0) == kill


def _decide(code: list[tuple[int, int, int, int]], arch: int, number: int, arg0: int, arg1: int) -> int:
    data = {0: number, 4: arch, 16: arg0, 24: arg1}
    at = value = 0
    while True:
        kind, yes, no, k = code[at]
        at += 1
        if kind == 0x06:
            return k
        if kind == 0x20:
            value = data[k]
        elif kind == 0x54:
            value &= k
        else:
            at += yes if (value == k if kind == 0x15 else value >= k) else no


def test_an_unknown_machine_gets_a_sentence() -> None:
    with pytest.raises(LibremoeError, match="riscv64"):
        seccomp.program("riscv64")


def test_the_command_says_yes_in_json(capsys) -> None:
    assert cli.main(["sandbox", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_the_command_reports_what_is_open(monkeypatch, capsys) -> None:
    found = [probes.Found("files", "a", True, "ENOENT"), probes.Found("files", "b", False, "NOT STOPPED")]
    monkeypatch.setattr(probes, "try_all", lambda: iter(found))
    assert cli.main(["sandbox", "--self-test"]) == 1
    said = capsys.readouterr().out
    assert "OPEN     files: b (NOT STOPPED)" in said and "1 of 2 stopped" in said
