# Burns CPU time before any call.
# expect: timed_out Timeout
while True: pass
