# Lowers the limits and the priority of the process that forks.
# expect: failed WrongAnswer
# needs: walls
import os, resource
def solve(x):
    for pid in (1, os.getppid()):
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, 1))
            return "ESCAPED prlimit"
        except (OSError, ValueError): pass
        for action in (lambda: os.setpriority(os.PRIO_PROCESS, pid, 19), lambda: os.sched_setaffinity(pid, {0})):
            try: action()
            except OSError: continue
            return "ESCAPED priority"
