# Never silent for long and never done, by CPU time.
# expect: timed_out Timeout
# test: walks
def solve(x):
    while True:
        for _ in range(200_000): pass
        yield 1
