"""The system calls that a sandboxed program may make, as a classic BPF program for seccomp.

An allow-list: what Python needs to compute, to read and write files in its folder, to start threads, and to wait. All
else answers EPERM: sockets, processes, tracing, mounts, namespaces, keys, BPF, io_uring, memory without a file limit.
Three calls are allowed by argument: clone (threads only), ioctl (asking a terminal or a pipe), prctl (naming a thread).
clone3 answers ENOSYS, as its flags lie in memory where a filter cannot look; the C library then uses clone.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux. Layout of the program
and of its input: linux/filter.h and linux/seccomp.h (struct sock_filter: u16 code, u8 jt, u8 jf, u32 k).
"""

from __future__ import annotations

import platform
import struct

from libremoe.errors import LibremoeError

_X86_64 = """
    access=21 alarm=37 arch_prctl=158 brk=12 chdir=80 chmod=90 chown=92 clock_getres=229 clock_gettime=228
    clock_nanosleep=230 close=3 close_range=436 copy_file_range=326 creat=85 dup=32 dup2=33 dup3=292
    epoll_create=213 epoll_create1=291 epoll_ctl=233 epoll_pwait=281 epoll_pwait2=441 epoll_wait=232 eventfd=284
    eventfd2=290 execve=59 exit=60 exit_group=231 faccessat=269 faccessat2=439 fadvise64=221 fallocate=285
    fchdir=81 fchmod=91 fchmodat=268 fchown=93 fchownat=260 fcntl=72 fdatasync=75 flock=73 fstat=5 fstatfs=138
    fsync=74 ftruncate=77 futex=202 futimesat=261 get_robust_list=274 getcpu=309 getcwd=79 getdents=78
    getdents64=217 getegid=108 geteuid=107 getgid=104 getgroups=115 getitimer=36 getpeername=52 getpgid=121
    getpgrp=111 getpid=39 getppid=110 getpriority=140 getrandom=318 getresgid=120 getresuid=118 getrlimit=97
    getrusage=98 getsid=124 getsockname=51 getsockopt=55 gettid=186 gettimeofday=96 getuid=102 kill=62 lchown=94
    link=86 linkat=265 lseek=8 lstat=6 madvise=28 membarrier=324 mincore=27 mkdir=83 mkdirat=258 mlock=149 mmap=9
    mprotect=10 mremap=25 msync=26 munlock=150 munmap=11 nanosleep=35 newfstatat=262 open=2 openat=257 openat2=437
    pause=34 pipe=22 pipe2=293 poll=7 ppoll=271 pread64=17 preadv=295 preadv2=327 prlimit64=302 pselect6=270
    pwrite64=18 pwritev=296 pwritev2=328 read=0 readlink=89 readlinkat=267 readv=19 recvfrom=45 recvmsg=47
    rename=82 renameat=264 renameat2=316 restart_syscall=219 rmdir=84 rseq=334 rt_sigaction=13 rt_sigpending=127
    rt_sigprocmask=14 rt_sigreturn=15 rt_sigsuspend=130 rt_sigtimedwait=128 sched_get_priority_max=146
    sched_get_priority_min=147 sched_getaffinity=204 sched_getparam=143 sched_getscheduler=145
    sched_rr_get_interval=148 sched_setaffinity=203 sched_yield=24 select=23 sendfile=40 sendmsg=46 sendto=44
    set_robust_list=273 set_tid_address=218 setgid=106 setgroups=116 setitimer=38 setpgid=109 setresgid=119
    setresuid=117 setrlimit=160 setsid=112 setsockopt=54 setuid=105 shutdown=48 sigaltstack=131 signalfd=282
    signalfd4=289 socketpair=53 stat=4 statfs=137 statx=332 symlink=88 symlinkat=266 sysinfo=99 tgkill=234
    time=201 timer_create=222 timer_delete=226 timer_getoverrun=225 timer_gettime=224 timer_settime=223
    timerfd_create=283 timerfd_gettime=287 timerfd_settime=286 times=100 tkill=200 truncate=76 umask=95 uname=63
    unlink=87 unlinkat=263 utime=132 utimensat=280 utimes=235 wait4=61 waitid=247 write=1 writev=20
"""
_AARCH64 = """
    brk=214 chdir=49 clock_getres=114 clock_gettime=113 clock_nanosleep=115 close=57 close_range=436
    copy_file_range=285 dup=23 dup3=24 epoll_create1=20 epoll_ctl=21 epoll_pwait=22 epoll_pwait2=441 eventfd2=19
    execve=221 exit=93 exit_group=94 faccessat=48 faccessat2=439 fadvise64=223 fallocate=47 fchdir=50 fchmod=52
    fchmodat=53 fchown=55 fchownat=54 fcntl=25 fdatasync=83 flock=32 fstat=80 fstatfs=44 fsync=82 ftruncate=46
    futex=98 get_robust_list=100 getcpu=168 getcwd=17 getdents64=61 getegid=177 geteuid=175 getgid=176
    getgroups=158 getitimer=102 getpeername=205 getpgid=155 getpid=172 getppid=173 getpriority=141 getrandom=278
    getresgid=150 getresuid=148 getrlimit=163 getrusage=165 getsid=156 getsockname=204 getsockopt=209 gettid=178
    gettimeofday=169 getuid=174 kill=129 linkat=37 lseek=62 madvise=233 membarrier=283 mincore=232 mkdirat=34
    mlock=228 mmap=222 mprotect=226 mremap=216 msync=227 munlock=229 munmap=215 nanosleep=101 newfstatat=79
    openat=56 openat2=437 pipe2=59 ppoll=73 pread64=67 preadv=69 preadv2=286 prlimit64=261 pselect6=72 pwrite64=68
    pwritev=70 pwritev2=287 read=63 readlinkat=78 readv=65 recvfrom=207 recvmsg=212 renameat=38 renameat2=276
    restart_syscall=128 rseq=293 rt_sigaction=134 rt_sigpending=136 rt_sigprocmask=135 rt_sigreturn=139
    rt_sigsuspend=133 rt_sigtimedwait=137 sched_get_priority_max=125 sched_get_priority_min=126
    sched_getaffinity=123 sched_getparam=121 sched_getscheduler=120 sched_rr_get_interval=127
    sched_setaffinity=122 sched_yield=124 sendfile=71 sendmsg=211 sendto=206 set_robust_list=99 set_tid_address=96
    setgid=144 setgroups=159 setitimer=103 setpgid=154 setresgid=149 setresuid=147 setrlimit=164 setsid=157
    setsockopt=208 setuid=146 shutdown=210 sigaltstack=132 signalfd4=74 socketpair=199 statfs=43 statx=291
    symlinkat=36 sysinfo=179 tgkill=131 timer_create=107 timer_delete=111 timer_getoverrun=109 timer_gettime=108
    timer_settime=110 timerfd_create=85 timerfd_gettime=87 timerfd_settime=86 times=153 tkill=130 truncate=45
    umask=166 uname=160 unlinkat=35 utimensat=88 wait4=260 waitid=95 write=64 writev=66
"""
# machine -> (AUDIT_ARCH of linux/audit.h, allowed calls, clone, clone3, ioctl, prctl)
_MACHINES = {
    "x86_64": (0xC000003E, _X86_64, 56, 435, 16, 157),
    "aarch64": (0xC00000B7, _AARCH64, 220, 435, 29, 167),
}
_X32_BIT = 0x40000000  # a second table of calls on x86_64, with other numbers

_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06  # BPF_LD|W|ABS, JEQ|K, JGE|K, ALU|AND|K, RET|K
_NR, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24  # offsets in struct seccomp_data; the low halves of arguments, little-endian
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38

CLONE_THREAD = 0x00010000
CLONE_NEW_ANY = 0x7E020080  # every namespace flag of linux/sched.h
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIONCLEX FIOCLEX
_PRCTLS = (15, 16, 0x53564D41)  # PR_SET_NAME PR_GET_NAME PR_SET_VMA (names of memory areas, by the C library)


def allowed(machine: str | None = None) -> dict[str, int]:
    """Name -> number of each call that is allowed whatever its arguments. Raises LibremoeError for other machines."""
    _, table, *_ = _machine(machine)
    return {name: int(number) for name, number in (entry.split("=") for entry in table.split())}


def program(machine: str | None = None) -> bytes:
    """The filter, as `bwrap --seccomp` takes it: an array of struct sock_filter. machine: as platform.machine()."""
    arch, _, clone, clone3, ioctl, prctl = _machine(machine)
    code = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NR)]
    if arch == _MACHINES["x86_64"][0]:
        code += [(_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _KILL)]
    code += [(_EQUAL, 0, 1, clone3), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    code += _when(clone, [
        (_LOAD, 0, 0, _ARG0), (_AND, 0, 0, CLONE_THREAD | CLONE_NEW_ANY), (_EQUAL, 0, 1, CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | _EPERM),
    ])
    code += _when(ioctl, _one_of(_ARG1, _IOCTLS))
    code += _when(prctl, _one_of(_ARG0, _PRCTLS))
    for number in allowed(machine).values():
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    code.append((_RETURN, 0, 0, _ERRNO | _EPERM))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def _machine(machine: str | None) -> tuple[int, str, int, int, int, int]:
    name = machine or platform.machine()
    if name not in _MACHINES:
        raise LibremoeError(f"the sandbox knows the system calls of {' and '.join(_MACHINES)}, not of {name}")
    return _MACHINES[name]


def _when(number: int, body: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """body returns on every way through it, so that what follows still has the call's number loaded."""
    return [(_EQUAL, 0, len(body), number), *body]


def _one_of(argument: int, values: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    code = [(_LOAD, 0, 0, argument)]
    for value in values:
        code += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    return [*code, (_RETURN, 0, 0, _ERRNO | _EPERM)]
