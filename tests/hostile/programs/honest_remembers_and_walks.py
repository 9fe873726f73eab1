# A generator that sleeps a little and is right.
# expect: passed
# test: walks
import time
def solve(x):
    for item in sorted(x):
        time.sleep(0.15)
        yield item
