# Its first thread ends; another goes on computing.
# expect: timed_out Timeout
import ctypes, platform, threading
def burn():
    while True: pass
def solve(x):
    threading.Thread(target=burn, daemon=True).start()
    ctypes.CDLL(None).syscall(60 if platform.machine() == "x86_64" else 93, 0)
