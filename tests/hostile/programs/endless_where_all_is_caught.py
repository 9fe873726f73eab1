# Never answers a test that catches everything.
# expect: timed_out Timeout
# test: catches
def solve(x):
    while True: pass
