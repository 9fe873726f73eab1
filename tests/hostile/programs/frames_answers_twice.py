# Answers right, and sends each answer again.
# expect: failed
# test: one by one
import json, os, socket, stat, struct, time
def say(kind, data):
    for fd in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, struct.pack("<IB", len(data), kind) + data)
        except OSError: pass
N = [0]
def solve(x):
    N[0] += 1
    if N[0] == 3:
        say(13, b"l\x03\x00\x00\x00i\xff\xff\xff\xff\xff\xff\xff\xffi\x05" + bytes(7) + b"i\x05" + bytes(7))
    return sorted(x)
