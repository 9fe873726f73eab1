# Walks the frames for the expected values.
# expect: failed WrongAnswer
import sys
def solve(x):
    frame = sys._getframe()
    while frame:
        for scope in (frame.f_locals, frame.f_globals):
            for name, value in list(scope.items()):
                if "expect" in str(name) or name == "check":
                    return "ESCAPED " + repr(value)
        frame = frame.f_back
