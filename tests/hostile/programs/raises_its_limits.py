# Raises its own limits, then takes memory.
# expect: failed
# needs: walls
import resource
def solve(x):
    for name in ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE"):
        try: resource.setrlimit(getattr(resource, name), (resource.RLIM_INFINITY,) * 2); return "ESCAPED " + name
        except (OSError, ValueError): pass
    return bytearray(1 << 40)
