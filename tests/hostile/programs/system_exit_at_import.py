# SystemExit(0) before any call.
# expect: failed Raised SystemExit
raise SystemExit(0)
