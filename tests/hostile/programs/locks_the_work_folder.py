# Forbids everybody, and so the next program and the cleaner, the work folder.
# expect: failed
import os, stat
def solve(x):
    if os.getcwd() == "/":  # no folder of its own: to set the mode that it has is proof enough
        os.chmod("/", stat.S_IMODE(os.stat("/").st_mode))
        return "ESCAPED mode of /"
    os.chmod(".", 0)
    return "locked"
