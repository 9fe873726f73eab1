# Stays inside C code.
# expect: timed_out Timeout
import re
def solve(x): re.match(r"(a+)+$", "a" * 60 + "b")
