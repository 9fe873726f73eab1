# Traces every call to change results.
# expect: failed WrongAnswer
import sys, threading
def tracer(frame, event, arg):
    frame.f_trace_lines = True
    return tracer
sys.settrace(tracer); sys.setprofile(lambda *a: None); threading.settrace(tracer)
def solve(x): return x
