# Looks for the test among all objects alive.
# expect: failed WrongAnswer
import gc, types
def solve(x):
    for thing in gc.get_objects():
        if isinstance(thing, types.FunctionType) and thing.__name__ == "check":
            return "ESCAPED " + repr(thing.__code__.co_consts)
        if isinstance(thing, str) and "assert candidate" in thing and "ESCAPED" not in thing:
            return "ESCAPED " + thing
