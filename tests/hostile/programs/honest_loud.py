# Prints a quarter of a gigabyte, and is right.
# expect: passed
import os, sys
def solve(x):
    for _ in range(16):
        print("x" * (1 << 24))
        os.write(1, b"x" * (1 << 16)); os.write(2, b"y" * (1 << 16))
    return sorted(x)
