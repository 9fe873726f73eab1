# Writes where others read.
# expect: failed WrongAnswer
# needs: walls
import os, sys
def solve(x):
    places = ["/tmp/rune-escaped", "/var/tmp/rune-escaped", "/dev/shm/rune-escaped", "/rune-escaped", "/etc/rune-escaped"]
    places += [os.path.join(p, "rune_escaped.py") for p in sys.path if p]
    for path in places:
        try:
            with open(path, "w") as f: f.write("x")
            return "ESCAPED " + path
        except OSError: pass
