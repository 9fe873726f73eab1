# Answers a call with a message that no one knows.
# expect: failed Protocol
import json, os, socket, stat, struct, time
def say(kind, data):
    for fd in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, struct.pack("<IB", len(data), kind) + data)
        except OSError: pass
def solve(x):
    say(15, b"")
    return sorted(x)
