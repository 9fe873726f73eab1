# The same in a call, with every field empty.
# expect: failed Raised
import json, os, socket, stat, struct, time
def say(kind, data):
    for fd in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, struct.pack("<IB", len(data), kind) + data)
        except OSError: pass
def solve(x):
    say(14, json.dumps([0, "", "", "", ""]).encode())
    time.sleep(0.2)
    os._exit(0)
