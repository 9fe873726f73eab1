# Uses a few threads.
# expect: passed
from concurrent.futures import ThreadPoolExecutor
def solve(x):
    with ThreadPoolExecutor(4) as pool: list(pool.map(abs, range(8)))
    return sorted(x)
