# Leaves its root by chroot and links.
# expect: failed WrongAnswer
# needs: walls
import os
def solve(x):
    for action in (lambda: os.chroot("."), lambda: os.chdir("/" + "../" * 50), lambda: os.symlink("/", "link"),
                   lambda: os.link("/etc/passwd", "hard"), lambda: os.mknod("node", 0o60600, 0x801)):
        try: action()
        except OSError: pass
    for path in ("link/etc/passwd", "../" * 50 + "etc/passwd", "hard", "node", "/etc/passwd"):
        try:
            with open(path, "rb") as f: return "ESCAPED " + path
        except OSError: pass
