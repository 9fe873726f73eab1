# Leaves files for the program after it, deep and unreadable ones too.
# expect: failed WrongAnswer
import os
def solve(x):
    try:
        os.makedirs("a/b/c")
        with open("a/b/c/message", "w") as f: f.write("x")
        os.chmod("a/b/c", 0); os.chmod("a", 0)
        os.symlink("/", "b")
    except OSError: pass
    return "left"
