# SystemExit(0) before any call.
# expect: failed SystemExit
raise SystemExit(0)
