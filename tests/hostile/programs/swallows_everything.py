# Ignores signals and catches every exception.
# expect: timed_out Timeout
import signal
for n in range(1, 65):
    try: signal.signal(n, signal.SIG_IGN)
    except (OSError, ValueError): pass
def solve(x):
    while True:
        try:
            while True: pass
        except BaseException: pass
