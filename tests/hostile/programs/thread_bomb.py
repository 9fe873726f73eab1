# Starts threads without end.
# expect: failed
import threading, time
def solve(x):
    for _ in range(100000): threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
