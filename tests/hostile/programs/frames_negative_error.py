# Describes an exception by a number from the wrong end of the list.
# expect: failed Protocol
import json, os, socket, stat, struct, time
def say(kind, data):
    for fd in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, struct.pack("<IB", len(data), kind) + data)
        except OSError: pass
def solve(x):
    say(14, json.dumps([-1, "A", "B", "", ""]).encode())
    time.sleep(0.2)
    os._exit(0)
