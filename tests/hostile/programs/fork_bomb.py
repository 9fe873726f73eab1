# Forks without end.
# expect: failed
# needs: walls
import os
def solve(x):
    while True: os.fork()
