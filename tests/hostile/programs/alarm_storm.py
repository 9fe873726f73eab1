# A signal every microsecond, handled.
# expect: timed_out Timeout
import signal
signal.signal(signal.SIGALRM, lambda *a: None)
signal.setitimer(signal.ITIMER_REAL, 1e-6, 1e-6)
def solve(x):
    while True: pass
