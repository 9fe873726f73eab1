# Connects, binds, talks to abstract sockets.
# expect: failed WrongAnswer
# needs: walls
import socket
def solve(x):
    for family, kind, address in ((socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 22)), (socket.AF_INET, socket.SOCK_DGRAM, ("8.8.8.8", 53)),
                                  (socket.AF_UNIX, socket.SOCK_STREAM, "\0abstract"), (socket.AF_INET, socket.SOCK_RAW, ("127.0.0.1", 0))):
        try:
            s = socket.socket(family, kind)
            s.settimeout(0.2)
            s.connect(address)
            return "ESCAPED " + repr(address)
        except OSError: pass
    try:
        s = socket.socket(); s.bind(("0.0.0.0", 0)); s.listen()
        return "ESCAPED bound"
    except OSError: pass
