# Returns sixty million NULs and one wide character, of which a message is to be made.
# expect: failed
def solve(x): return "\0" * 60_000_000 + "\u2603"
