# Becomes another program.
# expect: failed
# needs: walls
import os
def solve(x): os.execv("/bin/true", ["true"])
