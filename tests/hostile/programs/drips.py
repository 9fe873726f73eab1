# Never silent for long and never done: a value every fiftieth of a second.
# expect: timed_out Timeout
# test: walks
import time
def solve(x):
    while True:
        time.sleep(0.02)
        yield 1
