# Coroutines, gathered, in a loop of its own.
# expect: passed
# needs: walls
import asyncio
async def later(value):
    await asyncio.sleep(0)
    return value
async def work(x): return sorted(await asyncio.gather(*map(later, x)))
def solve(x): return asyncio.run(work(x))
