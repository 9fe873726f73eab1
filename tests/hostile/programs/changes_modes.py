# Changes mode and times of files that it can only read (to what they are: the attempt is proof enough).
# expect: failed WrongAnswer
# needs: walls
import os, stat, sys
def solve(x):
    for path in ("/", "/dev", "/dev/null", "/dev/zero", "/lib", "/usr/lib", "/etc", "/tmp", os.__file__, *sys.path):
        try: found = os.stat(path)
        except OSError: continue
        for change in (lambda: os.chmod(path, stat.S_IMODE(found.st_mode)),
                       lambda: os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns)),
                       lambda: os.chown(path, found.st_uid, found.st_gid),
                       lambda: os.setxattr(path, "user.rune", b"x")):
            try: change()
            except OSError: continue
            return "ESCAPED " + path
