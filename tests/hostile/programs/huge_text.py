# Half a gigabyte of text.
# expect: failed
def solve(x): return "x" * (1 << 29)
