# Reads files of the machine.
# expect: failed WrongAnswer
# needs: walls
# A sandbox may show the way to its own interpreter (a checkout in /home or /tmp), and nothing beside it.
import os, sys
OWN = {part for prefix in (sys.prefix, sys.base_prefix) for part in prefix.split("/")[2:3]}
def solve(x):
    for path in ("/etc/passwd", "/etc/shadow", "/etc/hostname", "/root/.bashrc", "/root/.profile", "/proc/1/environ",
                 "/proc/self/environ", "/proc/version", "/sys/kernel/notes", "/var/log/dpkg.log", "/tmp/rune-canary"):
        try:
            with open(path, "rb") as f: return "ESCAPED " + path
        except OSError: pass
    for path in ("/home", "/tmp", "/var", "/opt"):
        try:
            if set(os.listdir(path)) - OWN: return "ESCAPED " + path
        except OSError: pass
