# Takes every place for a name that the folder has, with names that are no text, options or spaces.
# expect: not-passed
import os
def solve(x):
    for name in (b"\xff\xfe", b"a\nb", b"-rf", b" ", b"x" * 255): os.makedirs(name + b"/" + name)
    for i in range(2000): open(f"f{i}", "w").close()
    return "left"
