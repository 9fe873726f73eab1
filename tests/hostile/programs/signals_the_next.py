# Has a socket send SIGKILL to every process it can name: the child that waits for the next program is one.
# expect: failed WrongAnswer
# needs: walls
import fcntl, os, socket
F_SETOWN, F_SETSIG = 8, 10
def solve(x):
    for pid in range(1, 400):
        if pid == os.getpid(): continue
        a, b = socket.socketpair()
        try:
            fcntl.fcntl(a, F_SETOWN, pid)
            fcntl.fcntl(a, F_SETSIG, 9)
            fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC)
            b.send(b"x")
        except OSError: pass
        a.close(); b.close()
