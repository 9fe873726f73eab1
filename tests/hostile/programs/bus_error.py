# Reads a mapped file behind its end.
# expect: failed
import mmap
def solve(x):
    with open("f", "w+b") as f:
        f.truncate(1 << 16)
        m = mmap.mmap(f.fileno(), 1 << 16)
        f.truncate(0)
    return m[5000]
