# Claims that the machinery is broken, to be judged again or to stop the run.
# expect: failed Protocol
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

say(10, b"disk on fire")
say(0, b"disk on fire")
def solve(x): return None
