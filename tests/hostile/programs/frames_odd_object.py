# Answers with an object of a kind that there is not.
# expect: failed Protocol
import json, os, socket, stat, struct, time
def say(kind, data):
    for fd in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, struct.pack("<IB", len(data), kind) + data)
        except OSError: pass
def solve(x):
    say(13, b"H" + bytes(8) + b"s\x04\x00\x00\x00list" + b"s\x04\x00\x00\x00list")
    time.sleep(0.2)
    os._exit(0)
