"""The system calls that a program may make: a list of what is allowed, as a BPF filter installed through ctypes.

Two filters stack. The fork server installs the list below (what Python programs need, plus what the server
itself needs to fork, kill and clean up). Each child adds a short one before it sees any untrusted code, which
takes the server's own calls away: no new process, no mount, no change of user, no signal to anyone else.
Everything not allowed fails with EPERM (clone3 with ENOSYS, so that libc falls back to clone for threads).
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

_X86_64 = """
read=0 write=1 close=3 fstat=5 lseek=8 mmap=9 mprotect=10 munmap=11 brk=12 rt_sigaction=13 rt_sigprocmask=14
rt_sigreturn=15 ioctl=16 pread64=17 pwrite64=18 readv=19 writev=20 preadv=295 pwritev=296 preadv2=327
pwritev2=328 access=21 faccessat=269 faccessat2=439 sched_yield=24 mremap=25 msync=26 mincore=27 madvise=28
dup=32 dup2=33 dup3=292 pause=34 nanosleep=35 clock_nanosleep=230 getitimer=36 alarm=37 setitimer=38 getpid=39
sendto=44 recvfrom=45 sendmsg=46 recvmsg=47 shutdown=48 socketpair=53 getsockname=51 getpeername=52
setsockopt=54 getsockopt=55 exit=60 exit_group=231 uname=63 fcntl=72 flock=73 fsync=74 fdatasync=75
truncate=76 ftruncate=77 getdents64=217 getcwd=79 chdir=80 fchdir=81 rename=82 renameat=264 renameat2=316
mkdir=83 mkdirat=258 rmdir=84 unlink=87 unlinkat=263 symlink=88 symlinkat=266 link=86 linkat=265 readlink=89
readlinkat=267 chmod=90 fchmod=91 fchmodat=268 umask=95 gettimeofday=96 getrlimit=97 getrusage=98 sysinfo=99
times=100 getuid=102 getgid=104 geteuid=107 getegid=108 getppid=110 getpgrp=111 getpgid=121 getsid=124
getgroups=115 getresuid=118 getresgid=120 sigaltstack=131 statfs=137 fstatfs=138 gettid=186 futex=202
sched_getaffinity=204 sched_getparam=143 sched_getscheduler=145 sched_get_priority_max=146
sched_get_priority_min=147 getpriority=140 set_tid_address=218 restart_syscall=219 clock_gettime=228
clock_getres=229 timer_create=222 timer_settime=223 timer_gettime=224 timer_delete=226 timer_getoverrun=225
epoll_create=213 epoll_create1=291 epoll_ctl=233 epoll_wait=232 epoll_pwait=281 poll=7 ppoll=271 select=23
pselect6=270 open=2 openat=257 openat2=437 newfstatat=262 stat=4 lstat=6 statx=332 set_robust_list=273
get_robust_list=274 utimensat=280 utime=132 utimes=235 futimesat=261 fallocate=285 fadvise64=221 eventfd=284
eventfd2=290 pipe=22 pipe2=293 getrandom=318 rseq=334 membarrier=324 getcpu=309 prlimit64=302 arch_prctl=158
tee=276 splice=275 sendfile=40 copy_file_range=326 close_range=436 tgkill=234 tkill=200 kill=62
rt_sigpending=127 rt_sigtimedwait=128 rt_sigsuspend=130 timerfd_create=283 timerfd_settime=286
timerfd_gettime=287 wait4=61 waitid=247 prctl=157 clone=56 setrlimit=160 fork=57 vfork=58 clone3=435
seccomp=317 setsid=112
"""
_AARCH64 = """
read=63 write=64 close=57 fstat=80 lseek=62 mmap=222 mprotect=226 munmap=215 brk=214 rt_sigaction=134
rt_sigprocmask=135 rt_sigreturn=139 ioctl=29 pread64=67 pwrite64=68 readv=65 writev=66 preadv=69 pwritev=70
preadv2=286 pwritev2=287 faccessat=48 faccessat2=439 sched_yield=124 mremap=216 msync=227 mincore=232
madvise=233 dup=23 dup3=24 nanosleep=101 clock_nanosleep=115 getitimer=102 setitimer=103 getpid=172 sendto=206
recvfrom=207 sendmsg=211 recvmsg=212 shutdown=210 socketpair=199 getsockname=204 getpeername=205
setsockopt=208 getsockopt=209 exit=93 exit_group=94 uname=160 fcntl=25 flock=32 fsync=82 fdatasync=83
truncate=45 ftruncate=46 getdents64=61 getcwd=17 chdir=49 fchdir=50 renameat=38 renameat2=276 mkdirat=34
unlinkat=35 symlinkat=36 linkat=37 readlinkat=78 fchmod=52 fchmodat=53 umask=166 gettimeofday=169
getrlimit=163 getrusage=165 sysinfo=179 times=153 getuid=174 getgid=176 geteuid=175 getegid=177 getppid=173
getpgid=155 getsid=156 getgroups=158 getresuid=148 getresgid=150 sigaltstack=132 statfs=43 fstatfs=44
gettid=178 futex=98 sched_getaffinity=123 sched_getparam=121 sched_getscheduler=120 sched_get_priority_max=125
sched_get_priority_min=126 getpriority=141 set_tid_address=96 restart_syscall=128 clock_gettime=113
clock_getres=114 timer_create=107 timer_settime=110 timer_gettime=108 timer_delete=111 timer_getoverrun=109
epoll_create1=20 epoll_ctl=21 epoll_pwait=22 ppoll=73 pselect6=72 openat=56 openat2=437 newfstatat=79
statx=291 set_robust_list=99 get_robust_list=100 utimensat=88 fallocate=47 fadvise64=223 eventfd2=19 pipe2=59
getrandom=278 rseq=293 membarrier=283 getcpu=168 prlimit64=261 tee=77 splice=76 sendfile=71
copy_file_range=285 close_range=436 tgkill=131 tkill=130 kill=129 rt_sigpending=136 rt_sigtimedwait=137
rt_sigsuspend=133 timerfd_create=85 timerfd_settime=86 timerfd_gettime=87 wait4=260 waitid=95 prctl=167
clone=220 setrlimit=164 clone3=435
seccomp=277 setsid=157
"""


def _table(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in (pair.split("=") for pair in text.split())}


_ARCHES = {"x86_64": (0xC000003E, _table(_X86_64)), "aarch64": (0xC00000B7, _table(_AARCH64))}
# Allowed to the server only; the child's filter takes them away.
_SERVER_ONLY = ("fork", "vfork", "setsid")
_MODES = ("chmod", "fchmod", "fchmodat", "utime", "utimes", "utimensat", "futimesat", "truncate")

_EPERM, _ENOSYS = 1, 38
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_NR, _ARCH, _ARG0, _ARG0_HIGH, _ARG1 = 0, 4, 16, 20, 24
_CLONE_THREAD = 0x00010000
_OWN_PID = 0x7FFFFFF1  # stands for the process that installs the filter; no process has that number
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 38, 22, 1, 36
# Terminal tests and non-blocking switches: TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# fcntl's commands on descriptors, flags, locks and pipe sizes. Not F_SETOWN and F_SETSIG: with them a socket sends any
# signal to any process of the user, and a program could kill the child that waits for the next one.
_FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1031, 1032)

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def supported() -> bool:
    """Whether filters are written for this machine (Linux on x86_64 or aarch64)."""
    return sys.platform == "linux" and os.uname().machine in _ARCHES and sys.maxsize > 1 << 32


def _ret(value: int) -> Instruction:
    return (_RET, 0, 0, value)


def _deny(errno: int = _EPERM) -> Instruction:
    return _ret(_ERRNO | errno)


def _load(offset: int) -> Instruction:
    return (_LD, 0, 0, offset)


def _prologue() -> list[Instruction]:
    arch, _ = _ARCHES[os.uname().machine]
    program = [_load(_ARCH), (_JEQ, 1, 0, arch), _ret(_KILL), _load(_NR)]
    if os.uname().machine == "x86_64":
        program += [(_JGE, 0, 1, 0x40000000), _deny(_ENOSYS)]  # the x32 numbers
    return program


def _only(call: int, second: tuple[int, ...]) -> list[Instruction]:
    """`call` is allowed with one of these values as its second argument, and else denied."""
    matches = [(_JEQ, len(second) - i, 0, value) for i, value in enumerate(second)]
    return [(_JEQ, 0, len(second) + 3, call), _load(_ARG1), *matches, _deny(), _ret(_ALLOW)]


def server_filter(*, modes: bool) -> Filter:
    """What the fork server may call: the allow-list. Children inherit it.

    `modes`: whether a file's mode and times may be changed. Landlock does not know of them, so not where files in sight
    belong to this user.
    """
    _, numbers = _ARCHES[os.uname().machine]
    numbers = {name: number for name, number in numbers.items() if modes or name not in _MODES}
    program = _prologue()
    program += [(_JEQ, 0, 1, numbers.pop("clone3")), _deny(_ENOSYS)]
    program += [(_JEQ, 0, 4, numbers.pop("prlimit64")), _load(_ARG0), (_JEQ, 0, 1, 0), _ret(_ALLOW), _deny()]
    program += _only(numbers.pop("ioctl"), _IOCTLS) + _only(numbers.pop("fcntl"), _FCNTLS)
    # The commonest calls first: a filter is a list that is walked from the top.
    common = ("recvfrom", "sendto", "read", "write", "mmap", "munmap", "brk", "close", "newfstatat", "openat", "futex")
    ordered = [numbers[n] for n in common] + [v for n, v in numbers.items() if n not in common]
    for number in ordered:
        program += [(_JEQ, 0, 1, number), _ret(_ALLOW)]
    program.append(_deny())
    return Filter(program)


def child_filter() -> Filter:
    """What is taken from a child, see `_child_program`."""
    return Filter(_child_program())


def _child_program() -> list[Instruction]:
    """What is taken from a child: it starts threads but no process, and signals nobody but itself (`_OWN_PID`)."""
    _, numbers = _ARCHES[os.uname().machine]
    program = _prologue()
    for name in _SERVER_ONLY:
        if name in numbers:
            program += [(_JEQ, 0, 1, numbers[name]), _deny()]
    program += [(_JEQ, 0, 4, numbers["clone"]), _load(_ARG0), (_JSET, 0, 1, _CLONE_THREAD), _ret(_ALLOW), _deny()]
    program += [(_JEQ, 0, 4, numbers["prctl"]), _load(_ARG0), (_JEQ, 0, 1, _PR_SET_PDEATHSIG), _deny(), _ret(_ALLOW)]
    for name in ("kill", "tgkill"):
        program += [(_JEQ, 0, 4, numbers[name]), _load(_ARG0), (_JEQ, 0, 1, _OWN_PID), _ret(_ALLOW), _deny()]
    program += [(_JEQ, 0, 1, numbers["tkill"]), _deny(), _ret(_ALLOW)]
    return program


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


class Filter:
    """A filter ready to be installed: after a fork only one prepared call is left to make."""

    def __init__(self, program: list[Instruction]) -> None:
        code = b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
        self._own_pids = [8 * i + 4 for i, instruction in enumerate(program) if instruction[3] == _OWN_PID]
        self._buffer = ctypes.create_string_buffer(code, len(code))
        self._program = _Program(len(code) // 8, ctypes.cast(self._buffer, ctypes.c_void_p))
        self._address = ctypes.addressof(self._program)

    def install(self) -> None:
        """Put it on this process. Raises OSError. Needs no_new_privs (see `lock_privileges`)."""
        for offset in self._own_pids:
            struct.pack_into("<I", self._buffer, offset, os.getpid())
        prctl(_PR_SET_SECCOMP, 2, self._address)


def lock_privileges() -> None:
    """no_new_privs: nothing this process executes can gain rights. Raises OSError."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent() -> None:
    """SIGKILL for this process when the thread that started it ends."""
    prctl(_PR_SET_PDEATHSIG, 9)


def live_without_parent() -> None:
    """`die_with_parent` undone."""
    prctl(_PR_SET_PDEATHSIG, 0)


def adopt_orphans() -> None:
    """Grandchildren whose parent died become children of this process, so that it can end them."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def prctl(option: int, arg: int = 0, pointer: int = 0) -> None:
    """Linux prctl(2); raises OSError."""
    if _prctl(option, arg, pointer, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if sys.platform == "linux":
    _prctl = ctypes.CDLL(None, use_errno=True).prctl
    _prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
