# Ends the process with success before any call.
# expect: failed Crash
import os
os._exit(0)
