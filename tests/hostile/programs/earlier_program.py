# Looks for an earlier program in inherited memory.
# expect: failed WrongAnswer
import gc, re
def solve(x):
    for thing in gc.get_objects():
        if isinstance(thing, (dict, list, tuple)) and re.search("EARLIER [0-9]", repr(thing)[:100000]):
            return "ESCAPED an earlier program"
