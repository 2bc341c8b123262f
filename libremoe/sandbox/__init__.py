"""Run untrusted Python: `run(code, stdin, files, limits) -> Outcome`, and start() for programs that talk to others.

Made of bubblewrap (namespaces and mounts), seccomp (an allow-list of system calls) and rlimits; Linux only.

It stops: reading or writing any file of the host beyond the Python library and the system's shared libraries, which are
read-only; every socket, so all networks, loopback too; new processes (threads are allowed, up to a number); signals to,
tracing of and looking at other processes (there is no /proc); gaining privileges, also by setuid programs; new
namespaces and mounts; kernel interfaces beyond the allow-list, among them BPF, io_uring, keys, userfaultfd; memory,
processor time, wall time, output, bytes and number of files, open files, threads beyond the limits; what goes on
after the end: the whole process tree is gone when run() returns, and when the caller dies.

It does not stop: faults of the kernel itself within the allowed calls; covert channels by timing or load between
programs on one machine; a program's use of what its limits allow; reading which processor and kernel version this is.
It does not judge what a program prints: stdout and stderr are untrusted bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import marshal
import os
import secrets
import selectors
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal

from libremoe.errors import LibremoeError
from libremoe.sandbox import seccomp

INSTALL = "install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap; Fedora: dnf install bubblewrap)"
STARTUP_S = 20.0  # from bubblewrap's start to the program's first line, on a machine that is busy
_POLL_S = 0.05
_NOBODY = 65534
_BUILD = sysconfig.get_config_vars()  # read here, as two threads that ask first at once get half an answer
_FIRST_UID = 1 << 30  # started by root: a user id for each run from here on, which no account and no other run has


class SandboxError(LibremoeError):
    """The sandbox itself cannot run here; the sentence says what to install or allow."""


@dataclass(frozen=True)
class Limits:
    """What a program may take. Exceeding memory is a MemoryError within it; see Outcome.how for the rest."""

    wall_s: float = 10.0
    cpu_s: int = 10  # whole seconds of one process, as RLIMIT_CPU counts
    memory_bytes: int = 1 << 30  # of address space
    work_bytes: int = 64 << 20  # of all files in /work
    file_bytes: int = 32 << 20  # of one file
    n_files: int = 2000
    output_bytes: int = 1 << 20  # of stdout and of stderr, each
    n_threads: int = 32
    n_open_files: int = 64


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    how: "exited" by itself (code is its status; 128 + n where signal n ended it, also those of the processor limit),
    "timeout" (wall_s passed), "output" (more than output_bytes; what fits is kept), "files" (more than n_files).
    """

    how: Literal["exited", "timeout", "output", "files"]
    code: int | None
    stdout: bytes
    stderr: bytes
    seconds: float  # from the program's first line to its end


def run(code: str, stdin: bytes = b"", files: Mapping[str, bytes] | None = None, limits: Limits | None = None,
        packages: Sequence[str] = ()) -> Outcome:
    """Run Python source as a program of its own, in an empty folder /work.

    stdin: what it reads. files: relative path -> content, put into its folder. packages: names of installed packages
    that it may import, such as numpy, beside the standard library.
    Raises SandboxError where there is no sandbox here, LibremoeError for a file name that leaves the folder.
    """
    with start(code, stdin, files, limits, packages) as running:
        return running.wait()


def start(code: str, stdin: bytes = b"", files: Mapping[str, bytes] | None = None, limits: Limits | None = None,
          packages: Sequence[str] = (), argv: Sequence[str] = (), pass_fds: Sequence[int] = ()) -> Running:
    """Like run(), without waiting. argv: sys.argv[1:]. pass_fds: descriptors that stay open in it, with their numbers.

    Use the result in a `with` block, in the thread that started it: when that thread ends, the kernel ends the program.
    """
    limits = limits or Limits()
    bwrap = find_bwrap()
    uid = _FIRST_UID + secrets.randbelow(1 << 30) if os.geteuid() == 0 else None
    payload = {
        "code": code, "files": dict(checked_names(files or {})), "argv": list(argv), "uid": uid, "cpu_s": limits.cpu_s,
        "rlimits": rlimits(limits),
    }
    ready, child_ready = socket.socketpair()
    with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as childs:
        on_failure.callback(ready.close)
        childs.callback(child_ready.close)
        fds = [_sealed(content, childs) for content in (marshal.dumps(payload), seccomp.program(), stdin)]
        command = [bwrap, *bwrap_args(limits, tuple(packages), as_root=uid is not None), "--seccomp", str(fds[1]),
                   "--", "/runtime/bin/python", "-I", "-S", "-B", "/runtime/launcher.py", str(fds[0]),
                   str(child_ready.fileno())]
        process = subprocess.Popen(
            # No environment, and a session of its own: neither secrets nor the terminal are there to be taken.
            command, stdin=fds[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/", env={},
            pass_fds=(fds[0], fds[1], child_ready.fileno(), *pass_fds), start_new_session=True,
        )
        on_failure.pop_all()
    return Running(process, ready, limits)


@dataclass
class Running:
    """A program that was started. wait() once; leaving the `with` block ends it in any case."""

    process: subprocess.Popen[bytes]
    ready: socket.socket
    limits: Limits
    _output: dict[str, bytearray] = field(default_factory=lambda: {"stdout": bytearray(), "stderr": bytearray()})

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.ready.close()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def kill(self) -> None:
        """Ends the whole process tree: with bubblewrap dies the first process of its namespace, and so all others."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def wait(self) -> Outcome:
        """Wait for the end, by itself or by a limit. Raises SandboxError where the sandbox could not be set up."""
        begun, folder = None, -1
        deadline = time.monotonic() + STARTUP_S
        how: Literal["exited", "timeout", "output", "files"] = "exited"
        with selectors.DefaultSelector() as selector:
            selector.register(self.ready, selectors.EVENT_READ, "ready")
            for name in self._output:
                selector.register(getattr(self.process, name), selectors.EVENT_READ, name)
            try:
                while selector.get_map():
                    for key, _ in selector.select(min(_POLL_S, max(0.0, deadline - time.monotonic()))):
                        if key.data == "ready":
                            folder = self._take_folder()
                            selector.unregister(self.ready)
                            if folder < 0:
                                self._setup_failed()
                            begun = time.monotonic()
                            deadline = begun + self.limits.wall_s
                        elif not self._take_output(key.data, key.fd):
                            selector.unregister(key.fileobj)
                    if selector.get_map() and time.monotonic() >= deadline:  # after all that came in time
                        how = "timeout"
                        break
                    if any(len(o) > self.limits.output_bytes for o in self._output.values()):
                        how = "output"
                        break
                    if folder >= 0 and _count_files(folder) > self.limits.n_files:
                        how = "files"
                        break
                if begun is None:
                    self._setup_failed()
                if how == "exited":  # it closed its output, and may go on without
                    how = self._await_exit(deadline)
            finally:
                if folder >= 0:
                    os.close(folder)
                self.kill()
        seconds = time.monotonic() - (begun or 0.0)
        kept = {name: bytes(o[: self.limits.output_bytes]) for name, o in self._output.items()}
        code = self.process.returncode if how == "exited" else None
        return Outcome(how, code, kept["stdout"], kept["stderr"], seconds)

    def _await_exit(self, deadline: float) -> Literal["exited", "timeout"]:
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return "timeout"
        return "exited"

    def _take_folder(self) -> int:
        """The descriptor of /work, sent by the launcher; -1 where the sandbox ended before it could."""
        try:
            said, fds, *_ = socket.recv_fds(self.ready, 1, 1)
        except OSError:
            return -1
        return fds[0] if said and fds else -1

    def _take_output(self, name: str, fd: int) -> bool:
        piece = os.read(fd, 1 << 16)
        self._output[name] += piece
        return bool(piece)

    def _setup_failed(self) -> None:
        self.kill()
        rest = self.process.stderr.read(4096) if self.process.stderr is not None else b""
        said = (bytes(self._output["stderr"]) + rest).decode(errors="replace").strip().splitlines()
        raise SandboxError(f"the sandbox cannot start here: {said[-1][:300] if said else 'it ended without a word'}. "
                           "bubblewrap needs user namespaces: allow them (sysctl kernel.unprivileged_userns_clone=1, "
                           "user.max_user_namespaces above 0; in a container, its own settings)")


def find_bwrap() -> str:
    """The path of bubblewrap. Raises SandboxError with the install line where there is none."""
    if not sys.platform.startswith("linux"):
        raise SandboxError(f"the sandbox needs Linux with bubblewrap; this is {sys.platform}")
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxError(f"running untrusted code needs bubblewrap, and bwrap is not on the path: {INSTALL}")
    return found


def rlimits(limits: Limits) -> dict[str, int]:
    """What the launcher takes upon itself, soft and hard alike, so that nothing can be raised again."""
    return {
        "RLIMIT_AS": limits.memory_bytes, "RLIMIT_FSIZE": limits.file_bytes, "RLIMIT_NOFILE": limits.n_open_files,
        "RLIMIT_NPROC": limits.n_threads + 1,  # one more: the first process of the namespace, bubblewrap's own
        "RLIMIT_STACK": 8 << 20, "RLIMIT_CORE": 0, "RLIMIT_MEMLOCK": 0, "RLIMIT_MSGQUEUE": 0,
    }


def bwrap_args(limits: Limits, packages: tuple[str, ...], *, as_root: bool) -> list[str]:
    """The arguments that make the sandbox, without the filter and the program."""
    if as_root:  # a user namespace would map the program to root; the launcher becomes a user of its own instead
        user = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        user = ["--unshare-user", "--uid", str(_NOBODY), "--gid", str(_NOBODY)]
    return [
        *user, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try",
        "--hostname", "sandbox", "--die-with-parent",
        "--setenv", "HOME", "/work", "--setenv", "LANG", "C.UTF-8", "--setenv", "LD_LIBRARY_PATH", "/runtime/lib",
        "--setenv", "OPENBLAS_NUM_THREADS", "1",  # each thread of it would reserve address space
        *_runtime(packages),
        "--dev-bind", "/dev/null", "/dev/null", "--dev-bind", "/dev/zero", "/dev/zero",
        "--dev-bind", "/dev/urandom", "/dev/urandom",
        "--perms", "1777", "--size", str(limits.work_bytes), "--tmpfs", "/work", "--symlink", "/work", "/tmp",
        "--remount-ro", "/", "--chdir", "/",
    ]


@cache
def _runtime(packages: tuple[str, ...]) -> tuple[str, ...]:
    """Mounts of this interpreter at /runtime, of the system's shared libraries, and of packages."""
    stdlib = Path(sysconfig.get_path("stdlib")).resolve()
    # By _base_executable: in a virtual environment sys.executable is a link.
    binary = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    args = []
    # Made by name, so that they are open to the launcher's new user.
    for made in ("runtime", "runtime/bin", "runtime/lib", "runtime/packages", "lib", "usr", "usr/lib", "etc", "dev"):
        args += ["--perms", "0755", "--dir", f"/{made}"]
    args += ["--ro-bind", str(binary), "/runtime/bin/python", "--ro-bind", str(stdlib), f"/runtime/lib/{stdlib.name}"]
    for hidden in ("site-packages", "dist-packages", "test"):
        if (stdlib / hidden).is_dir():
            place = f"/runtime/lib/{stdlib.name}/{hidden}"
            args += ["--tmpfs", place, "--remount-ro", place]
    for library in Path(_BUILD.get("LIBDIR") or "/nowhere").glob("libpython3*.so*"):
        args += ["--ro-bind", str(library), f"/runtime/lib/{library.name}"]
    args += ["--ro-bind", str(Path(__file__).with_name("launcher.py")), "/runtime/launcher.py"]
    multiarch = _BUILD.get("MULTIARCH") or "nowhere"
    for system in (f"/lib/{multiarch}", f"/usr/lib/{multiarch}", "/lib64", "/usr/lib64"):
        if Path(system).is_dir():
            args += ["--ro-bind", system, system]
    if Path("/etc/ld.so.cache").is_file():
        args += ["--ro-bind", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for name in packages:
        args += _package(name)
    return tuple(args)


def _package(name: str) -> list[str]:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SandboxError(f"the package {name} is not installed here, and this program needs it")
    folder = Path(next(iter(spec.submodule_search_locations))).resolve()
    args = ["--ro-bind", str(folder), f"/runtime/packages/{name}"]
    libraries = folder.with_name(f"{name}.libs")  # where wheels put the shared libraries that they bring
    return [*args, "--ro-bind", str(libraries), f"/runtime/packages/{name}.libs"] if libraries.is_dir() else args


def checked_names(files: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """files as they are. Raises LibremoeError for a name that is not a plain relative path."""
    for name in files:
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or "\0" in name or str(path) != name or name == ".":
            raise LibremoeError(f"{name!r} is no file name for the sandbox: give a plain relative path")
    return files


def _sealed(content: bytes, stack: contextlib.ExitStack) -> int:
    """A descriptor to read content from; nobody who holds it can change or extend it."""
    fd = os.memfd_create("sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    stack.callback(os.close, fd)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS,
                fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _count_files(folder: int) -> int:
    status = os.fstatvfs(folder)
    return status.f_files - status.f_ffree
