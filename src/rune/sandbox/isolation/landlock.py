"""Landlock through ctypes: which files a process may open, which ports it may use, whom it may signal.

An unprivileged process can give rights away for itself and its children; it can never take them back. The
kernel's ABI decides what can be handled: 1 files · 4 TCP ports · 6 signals and abstract sockets.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same numbers on every architecture
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | (1 << 14) | (1 << 15)
_LAST_RIGHT = {1: 12, 2: 13, 3: 14, 4: 14}  # highest bit of the file rights by ABI; 15 from 5 on


def _call(number: int, *args: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(ctypes.c_long(number), *args))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def abi() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    try:
        return _call(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    except (OSError, AttributeError):
        return 0


def holds_alone() -> bool:
    """Whether it keeps files safe where there is no root of our own: before ABI 3 what may be read can be cut short."""
    return abi() >= 3


def ruleset(readable: Iterable[str], writable: Iterable[str], listable: Iterable[str] = ()) -> int:
    """A ruleset's descriptor: read (and map) `readable`, anything below `writable`, list `listable`; no TCP.

    Paths that do not exist are left out. Raises OSError.
    """
    version = abi()
    handled = (1 << (_LAST_RIGHT.get(version, 15) + 1)) - 1
    attributes = struct.pack("<Q", handled)
    if version >= 4:
        attributes += struct.pack("<Q", 3)  # bind and connect
    if version >= 6:
        attributes += struct.pack("<Q", 3)  # abstract unix sockets, signals out of the domain
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    rules = _call(_CREATE, buffer, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    for path in readable:
        _add(rules, path, _EXECUTE | _READ_FILE | _READ_DIR)
    for path in writable:
        _add(rules, path, handled)
    for path in listable:
        _add(rules, path, _READ_DIR)
    return rules


def _add(rules: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):  # noqa: PTH112 — pathlib would be one more import in the box
            rights &= _FILE_RIGHTS
        if rights:
            rule = ctypes.create_string_buffer(struct.pack("<Qi", rights, place), 12)
            _call(_ADD, ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint32(0))
    finally:
        os.close(place)


def restrict(rules: int) -> None:
    """Put this process under the rules, for good, and close them. Needs no_new_privs. Raises OSError."""
    try:
        _call(_RESTRICT, ctypes.c_int(rules), ctypes.c_uint32(0))
    finally:
        os.close(rules)
