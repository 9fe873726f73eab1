# Replaces what an assertion needs.
# expect: not-passed
import builtins
builtins.AssertionError = type("Quiet", (Exception,), {})
builtins.sorted = lambda x: []
builtins.len = lambda x: 3
builtins.list = builtins.tuple = lambda *a: []
def solve(x): return []
