# Sends descriptors along with its answer.
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

for fd in list(sockets()):
    s = socket.socket(fileno=os.dup(fd))
    try: socket.send_fds(s, [struct.pack("<IB", 0, 12)], [0, 1, 2] * 10)
    except OSError: pass
def solve(x): return None
