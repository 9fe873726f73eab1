# An answer that comes byte by byte.
# expect: timed_out Timeout
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
import time
def solve(x):
    say(13, b"s", size=1 << 20)
    while True:
        for fd in sockets(): os.write(fd, b"x")
        time.sleep(0.02)
