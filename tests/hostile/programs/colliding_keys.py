# A dict whose keys all collide in the judge.
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

say(12, b"")
m = (1 << 61) - 1
n = 8000
body = b"d" + struct.pack("<I", n) + b"".join(b"I" + struct.pack("<I", 16) + (i * m).to_bytes(16, "little") + b"N" for i in range(n))
say(13, body)
def solve(x): return None
