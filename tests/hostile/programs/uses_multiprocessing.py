# Starts a pool of processes.
# expect: failed
# needs: walls
import multiprocessing
def solve(x):
    with multiprocessing.get_context("fork").Pool(2) as pool: return "ESCAPED " + repr(pool.map(abs, [1]))
