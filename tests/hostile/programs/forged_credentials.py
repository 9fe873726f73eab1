# Says that it is another process, so that other clocks are read than its own.
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
def solve(x):
    for fd in list(sockets()):
        s = socket.socket(fileno=os.dup(fd))
        for pid in (1, 2, os.getppid()):
            try: s.sendmsg([struct.pack("<IB", 1, 13) + b"N"], [(socket.SOL_SOCKET, 2, struct.pack("3i", pid, os.getuid(), os.getgid()))])
            except OSError: pass
    while True: pass
