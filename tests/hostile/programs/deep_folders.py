# Folders nested so deep that no call takes their path.
# expect: failed
import os
def solve(x):
    for _ in range(500):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    os.chmod(".", 0)
    return "left"
