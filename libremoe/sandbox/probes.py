"""Programs that try to get out of the sandbox or to take more than their share, and how each must end.

`libremoe sandbox --self-test` runs them all, the tests too; check() runs a few before any model-written code is run.
A program ends well in one way only, the one that its entry names: an error with the given errno, a signal, a limit.
Anything else, a crash for another reason among it, counts as not stopped.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import socket
import tempfile
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from libremoe.sandbox import Limits, Outcome, SandboxError, run

LIMITS = Limits(wall_s=90.0, cpu_s=1, memory_bytes=256 << 20, work_bytes=8 << 20, file_bytes=4 << 20, n_files=500,
                output_bytes=1 << 16, n_threads=16)
SLOW_LIMITS = Limits(wall_s=1.0, cpu_s=10, memory_bytes=256 << 20, n_threads=16)  # for those that only the clock ends

# Calls of the kernel that are never for a sandboxed program: name=number on x86_64/number on aarch64. With arguments of
# nonsense they answer EPERM only where the filter stops them: the kernel itself would say EFAULT, EINVAL or EBADF.
CALLS = """
    unshare=272/97 setns=308/268 mount=165/40 umount2=166/39 pivot_root=155/41 chroot=161/51 open_tree=428/428
    move_mount=429/429 fsopen=430/430 fsmount=432/432 mount_setattr=442/442 bpf=321/280 perf_event_open=298/241
    io_uring_setup=425/425 userfaultfd=323/282 keyctl=250/219 add_key=248/217 request_key=249/218
    memfd_create=319/279 memfd_secret=447/447 shmget=29/194 semget=64/190 msgget=68/186 mq_open=240/180
    init_module=175/105 finit_module=313/273 delete_module=176/106 kexec_load=246/104 reboot=169/142
    swapon=167/224 swapoff=168/225 settimeofday=164/170 clock_settime=227/112 adjtimex=159/171 sethostname=170/161
    setdomainname=171/162 acct=163/89 quotactl=179/60 syslog=103/116 iopl=172/ ioperm=173/ modify_ldt=154/
    name_to_handle_at=303/264 open_by_handle_at=304/265 fanotify_init=300/262 inotify_init1=294/26 seccomp=317/277
    splice=275/76 vmsplice=278/75 tee=276/77 vhangup=153/58 migrate_pages=256/238 move_pages=279/239 mbind=237/235
    set_mempolicy=238/237 kcmp=312/272 pkey_alloc=330/289 ptrace=101/117 process_vm_readv=310/270
    process_vm_writev=311/271 pidfd_open=434/434 pidfd_getfd=438/438 capset=126/91 personality=135/92
    sched_setscheduler=144/119 sched_setattr=314/274 setpriority=141/140 mknodat=259/33 sync=162/81 syncfs=306/267
    socket=41/198 connect=42/203 bind=49/200 vfork=58/
"""

_PROLOGUE = """
import ctypes, errno, os, socket, stat, sys
def syscall(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    answer = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    if answer < 0:
        raise OSError(ctypes.get_errno(), "system call")
    return answer
class Stopped(Exception):
    pass
def attempt():
{body}
try:
    attempt()
except OSError as error:
    print("stopped by", errno.errorcode.get(error.errno, type(error).__name__))
except (MemoryError, RecursionError, RuntimeError, ValueError, Stopped) as error:
    print("stopped by", type(error).__name__)
else:
    print("NOT STOPPED")
"""


@dataclass(frozen=True)
class Probe:
    """by: how it must end: errno names or exception names, or "signal N", or Outcome.how; several, by spaces."""

    group: str
    name: str
    body: str
    by: str
    limits: Limits = LIMITS


@dataclass(frozen=True)
class Found:
    group: str
    name: str
    stopped: bool
    said: str  # how it ended


@dataclass(frozen=True)
class Bait:
    """Things of the host that a program must not reach."""

    file: str  # a file with a secret in it
    port: int  # a TCP listener on loopback
    name: str  # an abstract Unix socket that listens
    pid: int
    package: str


def probes(bait: Bait) -> list[Probe]:
    """All of them, with the bait's places filled in."""
    return [*_files(bait), *_network(bait), *_processes(bait), *_kernel(), *_resources()]


def _files(bait: Bait) -> Iterator[Probe]:
    places = ["/etc/passwd", "/etc/shadow", "/etc/hostname", "/root", "/home", "/proc/self/environ", "/proc/self/mem",
              "/proc/1/root", "/sys/kernel", "/dev/mem", "/dev/kmsg", "/dev/tty", "/dev/shm", "/var/log", "/run",
              "/boot", "/usr/bin", "/bin/sh", bait.file, bait.package]
    for place in places:
        name = {bait.file: "a file of the host", bait.package: "the program's own source"}.get(place, place)
        yield Probe("files", f"read {name}", f"os.close(os.open({place!r}, os.O_RDONLY))", "ENOENT")
    yield Probe("files", "read a host's file by ..", f"open('../../../../../../..' + {bait.file!r})", "ENOENT")
    yield Probe("files", "read a host's file by a link",
                f"os.symlink({bait.file!r}, 'link')\nopen('link')", "ENOENT")
    yield Probe("files", "an open descriptor of the host", """
        for fd in range(3, 1024):
            try:
                mode = os.fstat(fd).st_mode
            except OSError:
                continue
            if not (stat.S_ISREG(mode) and fd > 2):
                return
        raise Stopped""", "Stopped")
    yield Probe("files", "write to standard input", "os.write(0, b'x')", "EBADF EPERM")
    yield Probe("files", "change standard input's length", "os.ftruncate(0, 100)", "EPERM EINVAL")
    for place in ("os.__file__", "'/runtime/launcher.py'"):
        yield Probe("files", f"write to {place}", f"open({place}, 'r+')", "EROFS EACCES")
    for folder in ("/", "/etc", "/dev", "/runtime", "/lib", "/usr/lib", "/runtime/packages"):
        yield Probe("files", f"create a file in {folder}", f"open({folder!r} + '/new', 'w')", "EROFS EACCES ENOENT")
    yield Probe("files", "make the interpreter writable", "os.chmod('/runtime/bin/python', 0o777)", "EROFS EPERM")
    yield Probe("files", "replace the launcher", "os.rename('/runtime/launcher.py', '/runtime/x.py')",
                "EROFS EACCES EBUSY")
    yield Probe("files", "link to the interpreter", "os.link('/runtime/bin/python', 'python')", "EXDEV EPERM EROFS")
    yield Probe("files", "make a device", "os.mknod('disk', stat.S_IFBLK | 0o666, os.makedev(8, 0))", "EPERM")
    yield Probe("files", "a program with another user's rights", """
        open('x', 'w').close()
        os.chmod('x', 0o4755)
        os.chown('x', 0, 0)""", "EPERM EINVAL")


def _network(bait: Bait) -> Iterator[Probe]:
    for family in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG"):
        kind = "SOCK_RAW" if family == "AF_PACKET" else "SOCK_STREAM"
        yield Probe("network", f"a socket of {family}", f"socket.socket(socket.{family}, socket.{kind})", "EPERM")
    yield Probe("network", "a raw socket", "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", "EPERM")
    yield Probe("network", "a service of the host",
                f"socket.create_connection(('127.0.0.1', {bait.port}), 1).send(b'x')", "EPERM")
    yield Probe("network", "an abstract socket of the host",
                f"s = socket.socket(socket.AF_UNIX)\ns.connect('\\0' + {bait.name!r})", "EPERM")
    yield Probe("network", "a pair of sockets made to connect", f"""
        a, b = socket.socketpair()
        a.connect('\\0' + {bait.name!r})""", "EPERM")
    yield Probe("network", "a name looked up", "socket.getaddrinfo('example.org', 80)", "gaierror EAI EPERM ENOENT")
    yield Probe("network", "a page fetched", """
        import urllib.request
        urllib.request.urlopen('http://192.0.2.1/', timeout=1)""", "URLError EPERM")
    yield Probe("network", "a server", "socket.create_server(('', 0))", "EPERM")


def _processes(bait: Bait) -> Iterator[Probe]:
    yield Probe("processes", "fork", "os.fork()", "EPERM")
    yield Probe("processes", "a terminal with a process", "os.forkpty()", "EPERM ENOENT")
    yield Probe("processes", "spawn", "os.posix_spawn(sys.executable, ['python'], {})", "EPERM")
    yield Probe("processes", "subprocess", "import subprocess\nsubprocess.run([sys.executable, '-c', '1'])", "EPERM")
    yield Probe("processes", "a shell", "raise Stopped if os.system('true') else OSError(0, '')", "Stopped")
    yield Probe("processes", "multiprocessing", """
        import multiprocessing
        multiprocessing.get_context('fork').Process(target=print).start()""", "EPERM")
    yield Probe("processes", "become a shell", "os.execv('/bin/sh', ['sh'])", "ENOENT")
    yield Probe("processes", "fork after becoming another program", """
        program = ("import os, errno\\ntry:\\n os.fork()\\n"
                   "except OSError as e: print('stopped by', errno.errorcode[e.errno])")
        os.execv(sys.executable, [sys.executable, '-I', '-S', '-c', program])""", "EPERM")
    clone, clone3 = (220, 435) if platform.machine() == "aarch64" else (56, 435)
    yield Probe("processes", "clone without a thread", f"syscall({clone}, 17, 0, 0, 0, 0)", "EPERM")
    yield Probe("processes", "clone into new namespaces", f"syscall({clone}, 0x10020000 | 17, 0, 0, 0, 0)", "EPERM")
    yield Probe("processes", "a thread in a new namespace", f"syscall({clone}, 0x10010000, 0, 0, 0, 0)", "EPERM")
    yield Probe("processes", "clone3", f"syscall({clone3}, 0, 0)", "ENOSYS")
    yield Probe("processes", "a signal to the caller", f"os.kill({bait.pid}, 0)", "ESRCH")
    yield Probe("processes", "a signal to all", "os.kill(-1, 9)", "ESRCH EPERM")
    yield Probe("processes", "see another process", "raise Stopped if os.getpid() < 10 else ValueError", "Stopped")
    yield Probe("processes", "a name of another machine", """
        raise Stopped if os.uname().nodename == 'sandbox' else OSError(0, '')""", "Stopped")
    yield Probe("processes", "the caller's environment", """
        ours = {'HOME', 'LANG', 'LD_LIBRARY_PATH', 'OPENBLAS_NUM_THREADS', 'PWD', 'LC_CTYPE'}
        raise Stopped if set(os.environ) <= ours else OSError(0, '')""", "Stopped")
    for name in ("setuid", "setgid", "seteuid"):
        yield Probe("processes", f"{name}(0)", f"os.{name}(0)", "EPERM EINVAL")
    yield Probe("processes", "groups of root", "os.setgroups([0])", "EPERM EINVAL")
    for limit in ("AS", "CPU", "FSIZE", "NPROC", "NOFILE", "CORE", "MEMLOCK", "STACK"):
        yield Probe("processes", f"raise the limit {limit}", f"""
            import resource
            hard = resource.getrlimit(resource.RLIMIT_{limit})[1]
            if hard == resource.RLIM_INFINITY:
                return
            resource.setrlimit(resource.RLIMIT_{limit}, (hard + 1, hard + 1))""", "ValueError EPERM")
    prctl = 167 if platform.machine() == "aarch64" else 157
    for name, number in (("outlive the caller", 1), ("set securebits", 28), ("raise an ambient capability", 47),
                         ("move the memory map", 35), ("add a filter", 22), ("be dumpable", 4), ("adopt orphans", 36)):
        yield Probe("processes", f"prctl: {name}", f"syscall({prctl}, {number}, 0, 0, 0, 0)", "EPERM")


def _kernel() -> Iterator[Probe]:
    column = 1 if platform.machine() == "aarch64" else 0
    for entry in CALLS.split():
        name, numbers = entry.split("=")
        number = numbers.split("/")[column]
        if number:
            yield Probe("kernel", name, f"syscall({number}, -1, -1, -1, -1, -1)", "EPERM")
    ioctl = 29 if platform.machine() == "aarch64" else 16
    for name, request in (("push input into a terminal", 0x5412), ("paste into a console", 0x541C),
                          ("take a terminal", 0x540E), ("a block device's size", 0x1260)):
        yield Probe("kernel", f"ioctl: {name}", f"syscall({ioctl}, 0, {request}, 0)", "EPERM")
    yield Probe("kernel", "a number beyond the table", "syscall(5000)", "EPERM")
    if platform.machine() == "x86_64":
        yield Probe("kernel", "the x32 table", "syscall(0x40000000 + 39)", "signal 31")
        # mov eax, 20 (getpid); int 0x80; ret
        yield Probe("kernel", "the 32-bit table", """
            import mmap
            page = mmap.mmap(-1, 4096, prot=7)
            page.write(bytes.fromhex('b814000000cd80c3'))
            address = ctypes.addressof(ctypes.c_char.from_buffer(page))
            ctypes.CFUNCTYPE(ctypes.c_int)(address)()""", "signal 31")


def _resources() -> Iterator[Probe]:
    def endless(name: str, body: str, by: str, limits: Limits = LIMITS) -> Probe:
        return Probe("resources", name, body, by, limits)

    yield endless("memory in one piece", "bytearray(1 << 40)", "MemoryError")
    yield endless("memory in pieces", "kept = []\nwhile True:\n    kept.append(bytearray(1 << 20))", "MemoryError")
    yield endless("mapped memory", """
        import mmap
        kept = [mmap.mmap(-1, 1 << 24) for _ in iter(int, 1)]""", "ENOMEM")
    yield endless("a fast-growing text", "text = 'x'\nwhile True:\n    text += text", "MemoryError")
    yield endless("locked memory", """
        page = ctypes.create_string_buffer(1 << 20)
        if ctypes.CDLL(None, use_errno=True).mlock(page, 1 << 20):
            raise OSError(ctypes.get_errno(), '')""", "ENOMEM EPERM")
    yield endless("one large file", "f = open('x', 'wb')\nwhile True:\n    f.write(bytes(1 << 20))", "EFBIG")
    yield endless("a file with a hole", "os.truncate(os.open('x', os.O_CREAT | os.O_RDWR), 1 << 40)", "EFBIG")
    yield endless("files that fill the folder", """
        for i in range(100):
            with open(str(i), 'wb') as f:
                f.write(bytes(1 << 20))""", "ENOSPC")
    yield endless("deleted files that stay open", """
        kept = []
        for i in range(60):
            kept.append(open('x', 'wb'))
            kept[-1].write(bytes(1 << 20))
            kept[-1].flush()
            os.unlink('x')""", "ENOSPC")
    yield endless("many files", "i = 0\nwhile True:\n    open(f'f{i}', 'w').close()\n    i += 1", "files")
    yield endless("many folders", "i = 0\nwhile True:\n    os.mkdir(f'f{i}')\n    i += 1", "files")
    yield endless("many links", "i = 0\nwhile True:\n    os.symlink('x', f'f{i}')\n    i += 1", "files")
    yield endless("many descriptors", "kept = []\nwhile True:\n    kept.append(os.open('/dev/null', 0))", "EMFILE")
    yield endless("many pipes", "kept = []\nwhile True:\n    kept.append(os.pipe())", "EMFILE")
    yield endless("output without end", "while True:\n    print('x' * 1000)", "output")
    yield endless("errors without end", "while True:\n    os.write(2, b'x' * 1000)", "output")
    yield endless("output of threads", """
        import threading
        for _ in range(4):
            threading.Thread(target=lambda: [os.write(1, b'x' * 4096) for _ in iter(int, 1)]).start()""", "output")
    yield endless("threads without end", """
        import threading, time
        threading.stack_size(1 << 16)
        while True:
            threading.Thread(target=time.sleep, args=(9,), daemon=True).start()""", "RuntimeError")
    yield endless("processor time", "while True:\n    pass", "signal 24")
    yield endless("processor time, its signal ignored",
                  "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass", "signal 9")
    yield endless("processor time in threads", """
        import hashlib, threading
        for _ in range(4):
            threading.Thread(target=lambda: [hashlib.sha256(bytes(1 << 20)).digest() for _ in iter(int, 1)]).start()
        """, "signal 24")
    yield endless("a power without end", "return (9 ** 9) ** (9 ** 9)", "signal 24 MemoryError")
    yield endless("a slow regular expression", "import re\nre.match('(a+)+$', 'a' * 60 + 'b')", "signal 24")
    yield endless("sleep", "import time\ntime.sleep(1000)", "timeout", SLOW_LIMITS)
    yield endless("sleep, all signals ignored", """
        import signal, time
        for number in range(1, 32):
            if number not in (9, 19):
                signal.signal(number, signal.SIG_IGN)
        time.sleep(1000)""", "timeout", SLOW_LIMITS)
    yield endless("wait for input", "os.read(os.pipe()[0], 1)", "timeout", SLOW_LIMITS)
    yield endless("go on with closed output", "os.close(1)\nos.close(2)\nwhile True:\n    pass", "timeout", SLOW_LIMITS)
    yield endless("a thread that outlives the program", """
        import threading, time
        threading.Thread(target=time.sleep, args=(1000,)).start()
        sys.exit(0)""", "timeout", SLOW_LIMITS)
    yield endless("code at exit without end", """
        import atexit, time
        atexit.register(time.sleep, 1000)
        raise SystemExit""", "timeout", SLOW_LIMITS)
    yield endless("a new session", "import time\nos.setpgid(0, 0)\ntime.sleep(1000)", "timeout", SLOW_LIMITS)
    yield endless("stop itself", "import signal\nos.kill(os.getpid(), signal.SIGSTOP)", "timeout", SLOW_LIMITS)
    yield endless("recursion", "def f():\n    f()\nf()", "RecursionError")
    yield endless("deep nesting in C", """
        sys.setrecursionlimit(1 << 30)
        x = None
        for _ in range(300_000):
            x = [x]
        repr(x)""", "signal 11 signal 24 RecursionError MemoryError")
    yield endless("a core file", "os.abort()", "signal 6")


@contextlib.contextmanager
def bait() -> Iterator[Bait]:
    """Puts out a secret file, a listener and a named socket; afterwards nobody must have come to the listeners."""
    name = f"libremoe-{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="libremoe-bait-"))
        file.write("a secret of the host")
        file.flush()
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        named = stack.enter_context(socket.socket(socket.AF_UNIX))
        named.bind("\0" + name)
        named.listen()
        yield Bait(file.name, server.getsockname()[1], name, os.getpid(), str(Path(__file__).parent))
        for listener in (server, named):
            listener.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                listener.accept()
                raise SandboxError("a program in the sandbox reached a listener outside")
        if Path(file.name).read_text() != "a secret of the host":
            raise SandboxError("a program in the sandbox changed a file outside")


def try_one(probe: Probe) -> Found:
    """Run one and compare how it ended with how it must end."""
    code = _PROLOGUE.format(body=textwrap.indent(textwrap.dedent(probe.body).strip("\n"), "    "))
    outcome = run(code, limits=probe.limits)
    ended = _ending(outcome)
    expected = probe.by.replace("signal ", "signal_").split()
    return Found(probe.group, probe.name, ended.replace("signal ", "signal_") in expected, ended)


def _ending(outcome: Outcome) -> str:
    if outcome.how != "exited":
        return outcome.how
    if outcome.code is not None and outcome.code > 128:
        return f"signal {outcome.code - 128}"
    lines = outcome.stdout.decode(errors="replace").strip().splitlines()
    if lines and lines[-1].startswith("stopped by "):
        return lines[-1].removeprefix("stopped by ")
    return lines[-1] if lines else (outcome.stderr.decode(errors="replace").strip().splitlines() or ["nothing"])[-1]


def try_all(n_at_once: int = 2, groups: tuple[str, ...] = ()) -> Iterator[Found]:
    """Every probe (of these groups), in order. Raises SandboxError where there is no sandbox."""
    with bait() as found, ThreadPoolExecutor(n_at_once) as pool:
        yield from pool.map(try_one, [p for p in probes(found) if not groups or p.group in groups])


CHECKED_FIRST = ("read a file of the host", "create a file in /", "a socket of AF_INET", "fork", "unshare", "ptrace",
                 "memory in one piece", "one large file")


def check() -> None:
    """Is there a sandbox, and does it hold? A few probes, half a second. Raises SandboxError with what to do."""
    with bait() as found, ThreadPoolExecutor(2) as pool:
        tried = list(pool.map(try_one, [p for p in probes(found) if p.name in CHECKED_FIRST]))
    open_ = [f"{f.name} ({f.said})" for f in tried if not f.stopped]
    if open_ or len(tried) < len(CHECKED_FIRST):
        raise SandboxError(f"the sandbox does not hold here, so untrusted code is not run: {', '.join(open_)}. "
                           "`libremoe sandbox --self-test` says more")
