# An object that runs code when unpickled.
# expect: failed
import os
class Bomb:
    def __reduce__(self): return (os.system, ("touch /tmp/rune-escaped-pickle",))
def solve(x): return Bomb()
