# Becomes root, or gets capabilities back.
# expect: failed WrongAnswer
# needs: walls
import os
def solve(x):
    before = os.getresuid()
    for action in (lambda: os.setuid(1), lambda: os.setresuid(1, 1, 1), lambda: os.setgid(1), lambda: os.setgroups([1])):
        try: action()
        except OSError: continue
        if os.getresuid() != before: return "ESCAPED"
    try: os.setuid(0 if before[0] else 1)
    except OSError: return None
    return "ESCAPED" if os.getuid() != before[0] else None
