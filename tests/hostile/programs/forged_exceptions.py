# Exceptions that are none: unknown bases, ends of iteration, errors of the judge's own, depth.
# expect: failed
import os, socket, stat, struct
def sockets():
    for fd in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode): yield fd
        except OSError: pass
def say(kind, data, size=None):
    for fd in sockets():
        try: os.write(fd, struct.pack("<IB", len(data) if size is None else size, kind) + data)
        except OSError: pass
import json
say(12, b"")
def solve(x):
    for base in ("StopIteration", "BaseExceptionGroup", "UnicodeDecodeError", "_TestTooSlow", "Stop", "Broken", "print"):
        say(14, json.dumps([base, base, "\ud800", "ESC \x1b[2J", False]).encode())
    say(14, b"[" * 100000)
