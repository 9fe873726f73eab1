# Reads files of the machine.
# expect: failed WrongAnswer
# needs: walls
import os
def solve(x):
    for path in ("/etc/passwd", "/etc/shadow", "/etc/hostname", "/root/.bashrc", "/root/.profile", "/proc/1/environ",
                 "/proc/self/environ", "/proc/version", "/sys/kernel/notes", "/var/log/dpkg.log", "/tmp/rune-canary"):
        try:
            with open(path, "rb") as f: return "ESCAPED " + path
        except OSError: pass
    for path in ("/home", "/tmp", "/var", "/opt"):
        try:
            if os.listdir(path): return "ESCAPED " + path
        except OSError: pass
