# Says with a frame of its own that it raised an exception without a name, while loading.
# expect: failed Raised
import json, os, socket, stat, struct, time
def say(kind, data):
    for fd in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, struct.pack("<IB", len(data), kind) + data)
        except OSError: pass
say(14, json.dumps([0, "", "", "", ""]).encode())
time.sleep(0.2)
os._exit(0)
