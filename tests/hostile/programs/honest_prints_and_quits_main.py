# A main guard and a changed recursion limit.
# expect: passed
import sys
sys.setrecursionlimit(5000)
def solve(x): return sorted(x)
if __name__ == "__main__":
    raise SystemExit("not run by a test")
