# Sends what might be a verdict.
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

for text in (b'{"kind": "", "error": "", "cpu": 0, "wall": 0}\n', b"passed\n", b"PASSED"): say(13, text); say(12, text)
os.write(1, b'{"kind": ""}\n')
def solve(x): return None
