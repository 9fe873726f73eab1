# Computes at import, with a megabyte of arguments on the way to it.
# expect: timed_out Timeout
# test: large
while True: pass
