# Sleeps at import, with a megabyte of arguments on the way to it.
# expect: timed_out Timeout
# test: large
import time
time.sleep(1000)
