# Runs a shell.
# expect: failed
# needs: walls
import subprocess
def solve(x): return "ESCAPED " + subprocess.run(["/bin/sh", "-c", "id"], capture_output=True, text=True).stdout
