"""Forks children that are stopped at each of their system calls on a folder's files (ptrace, Linux on x86-64).

At a stop a call can be made to fail with any error, to write less than it was asked to, or be the last thing that the
process does. What the calls wrote, synced and named can be recorded.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Calls by number, each with the positions of its arguments that are paths and of those that are open files.
CALLS: dict[int, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    0: ("read", (), (0,)), 1: ("write", (), (0,)), 2: ("open", (0,), ()), 3: ("close", (), (0,)),
    4: ("stat", (0,), ()), 5: ("fstat", (), (0,)), 6: ("lstat", (0,), ()), 8: ("lseek", (), (0,)),
    9: ("mmap", (), (4,)), 16: ("ioctl", (), (0,)), 17: ("pread64", (), (0,)), 18: ("pwrite64", (), (0,)),
    19: ("readv", (), (0,)), 20: ("writev", (), (0,)), 21: ("access", (0,), ()), 40: ("sendfile", (), (0, 1)),
    72: ("fcntl", (), (0,)), 73: ("flock", (), (0,)), 74: ("fsync", (), (0,)), 75: ("fdatasync", (), (0,)),
    76: ("truncate", (0,), ()), 77: ("ftruncate", (), (0,)), 78: ("getdents", (), (0,)), 82: ("rename", (0, 1), ()),
    83: ("mkdir", (0,), ()), 84: ("rmdir", (0,), ()), 86: ("link", (0, 1), ()), 87: ("unlink", (0,), ()),
    88: ("symlink", (0, 1), ()), 89: ("readlink", (0,), ()), 90: ("chmod", (0,), ()), 91: ("fchmod", (), (0,)),
    217: ("getdents64", (), (0,)), 257: ("openat", (1,), ()), 258: ("mkdirat", (1,), ()),
    262: ("newfstatat", (1,), (0,)), 263: ("unlinkat", (1,), ()), 264: ("renameat", (1, 3), ()),
    265: ("linkat", (1, 3), ()), 268: ("fchmodat", (1,), ()), 269: ("faccessat", (1,), ()),
    285: ("fallocate", (), (0,)), 316: ("renameat2", (1, 3), ()), 326: ("copy_file_range", (), (0, 2)),
    332: ("statx", (1,), (0,)), 439: ("faccessat2", (1,), ()),
}  # fmt: skip
WRITES = ("write", "pwrite64")
MAX_PATH = 4096

_REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax",
    "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_TRACEME, _GETREGS, _SETREGS, _SYSCALL, _SETOPTIONS = 0, 12, 13, 24, 0x4200
_MARK_CALLS, _KILL_WITH_ME = 1, 0x100000
_LIBRARY: Any = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in _REGISTERS]


@dataclass(frozen=True)
class Fault:
    """What becomes of the `at`-th call on the folder.

    Args:
        errno: the call is not made and fails so; 0: it is made.
        short: if it writes, it writes a third.
        kills: the process ends by SIGKILL, before the call, or after it if that is `short`.
    """

    at: int
    errno: int = 0
    short: bool = False
    kills: bool = False


@dataclass(frozen=True)
class Call:
    """A call that was made: its name, the paths of its arguments, the result, and what matters for the disk.

    Args:
        data, offset: what was written and where.
        flags: of an opened file.
        length: that a file was cut to.
    """

    name: str
    paths: tuple[str, ...]
    result: int = 0
    data: bytes = b""
    offset: int = 0
    flags: int = 0
    length: int = 0


class Tracee:
    """A forked child that is stopped at each system call."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @classmethod
    def fork(cls) -> Tracee | None:
        """Forks; in the child it returns None, and the parent has to `run` what it gets."""
        pid = os.fork()
        if pid == 0:
            _ptrace(_TRACEME, 0, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            return None
        os.waitpid(pid, 0)
        _ptrace(_SETOPTIONS, pid, _MARK_CALLS | _KILL_WITH_ME)
        return cls(pid)

    def run(self, folder: Path, fault: Fault | None = None, record: bool = False) -> tuple[int, list[Call]]:
        """Runs the child to its end; returns its exit status (-9 if killed) and its calls on files in the folder.

        record: whether the calls come with what they wrote.
        """
        calls: list[Call] = []
        entered: Call | None = None
        is_entry, pending = True, 0
        while True:
            with contextlib.suppress(ProcessLookupError):  # it was killed a moment ago
                _ptrace(_SYSCALL, self.pid, pending)
            _, status = os.waitpid(self.pid, 0)
            if not os.WIFSTOPPED(status):
                return os.waitstatus_to_exitcode(status), calls
            pending = os.WSTOPSIG(status)
            if pending != signal.SIGTRAP | 0x80:
                continue
            pending = 0
            if is_entry:
                entered = self._entry(str(folder), fault, len(calls), record)
            elif entered is not None:
                calls.append(self._exit(entered, fault, len(calls)))
            is_entry = not is_entry

    def _entry(self, folder: str, fault: Fault | None, index: int, record: bool) -> Call | None:
        registers = self._registers()
        name, path_arguments, files = CALLS.get(registers.orig_rax, ("", (), ()))
        if not name:
            return None
        arguments = [int(getattr(registers, register)) for register in _ARGUMENTS]
        paths = [self._text(arguments[position]) for position in path_arguments]
        if not any(paths):
            paths = [self._path_of(arguments[position]) for position in files]
        if not any(path == folder or path.startswith(folder + "/") for path in paths):
            return None
        call = self._recorded(name, tuple(paths), arguments) if record else Call(name, tuple(paths))
        if fault is not None and fault.at == index:
            if fault.short and name in WRITES:
                registers.rdx = max(1, registers.rdx // 3)
            if fault.kills and not fault.short:
                os.kill(self.pid, signal.SIGKILL)
                return call
            if fault.errno:
                registers.orig_rax = 2**64 - 1  # no call: it is not made
            _ptrace(_SETREGS, self.pid, ctypes.byref(registers))
        return call

    def _recorded(self, name: str, paths: tuple[str, ...], arguments: list[int]) -> Call:
        if name in WRITES:
            data = self._memory(arguments[1], arguments[2])
            info = Path(f"/proc/{self.pid}/fdinfo/{arguments[0]}").read_text()
            offset = int(info.split()[1])
            if int(info.split()[3], 8) & os.O_APPEND:
                offset = os.stat(paths[0]).st_size
            return Call(name, paths, data=data, offset=arguments[3] if name == "pwrite64" else offset)
        flags = arguments[2] if name == "openat" else arguments[1] if name == "open" else 0
        return Call(name, paths, flags=flags, length=arguments[1] if name.endswith("truncate") else 0)

    def _exit(self, call: Call, fault: Fault | None, index: int) -> Call:
        registers = self._registers()
        if fault is not None and fault.at == index:
            if fault.errno:
                registers.rax = 2**64 - fault.errno
                _ptrace(_SETREGS, self.pid, ctypes.byref(registers))
            if fault.kills:
                os.kill(self.pid, signal.SIGKILL)
        result = ctypes.c_longlong(registers.rax).value
        return Call(call.name, call.paths, result, call.data[: max(result, 0)], call.offset, call.flags, call.length)

    def _registers(self) -> Any:
        registers = Registers()
        _ptrace(_GETREGS, self.pid, ctypes.byref(registers))
        return registers

    def _memory(self, address: int, size: int) -> bytes:
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(size)

    def _text(self, address: int) -> str:
        if address == 0:
            return ""
        page = 4096 - address % 4096  # the next page may not be there
        text = self._memory(address, page)
        if b"\0" not in text:
            text += self._memory(address + page, MAX_PATH)
        return os.fsdecode(text.partition(b"\0")[0])

    def _path_of(self, number: int) -> str:
        try:
            return os.readlink(f"/proc/{self.pid}/fd/{ctypes.c_int(number).value}")
        except OSError:
            return ""


def unsupported() -> str:
    """Says why system calls cannot be stopped at here; '' if they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "system calls are traced on Linux on x86-64 only"
    try:
        child = Tracee.fork()
        if child is None:
            os._exit(7)
        status, _ = child.run(Path("/none"))
    except OSError as error:
        return f"processes cannot be traced here ({error})"
    return "" if status == 7 else f"a traced process ended with status {status}"


def _ptrace(request: int, pid: int, data: Any) -> None:
    pointer = data if request in (_GETREGS, _SETREGS) else ctypes.c_void_p(data)
    if _LIBRARY.ptrace(ctypes.c_long(request), ctypes.c_long(pid), None, pointer) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
