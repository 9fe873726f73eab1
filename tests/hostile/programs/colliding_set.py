# A set whose members all collide in the judge.
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
m = (1 << 61) - 1
n = 8000
body = b"".join(b"I" + struct.pack("<I", 16) + (i * m).to_bytes(16, "little") for i in range(n))
say(12, b"")
say(13, b"S" + struct.pack("<I", n) + body)
def solve(x): return None
