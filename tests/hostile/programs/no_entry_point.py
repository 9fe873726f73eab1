# Does not define what was asked for.
# expect: failed MissingEntryPoint
def other(x): return sorted(x)
