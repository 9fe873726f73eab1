# Looks for what its process was given: descriptors, environment.
# expect: failed WrongAnswer
import ctypes, os, stat
def solve(x):
    held = []
    for fd in range(64):
        try: held.append((fd, stat.S_ISSOCK(os.fstat(fd).st_mode)))
        except OSError: pass
    if [s for _, s in held] != [False] * 3 + [True]: return f"ESCAPED descriptors {held}"
    block = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    names = set()
    for i in range(1000):
        if not block or not block[i]: break
        names.add(block[i].split(b"=")[0].decode())
    more = names - {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LC_CTYPE"}
    if more: return f"ESCAPED environment {more}"
