#!/usr/bin/env bash
# There: all that phase2-pbb.sh has so far → $OUT: the small files, and each run without its weights. Run it as often as wanted.
T=${T:-/tmp/tree} L=${L:-/tmp/lane-a}
tar c -C "$L" . 2> /dev/null | xz -1 -T4 > "$OUT/lane-a.tar.xz"
for run in "$T"/runs/*/; do
    name=$(basename "$run")
    [ -e "$run/manifest.json" ] || continue
    tar c --exclude='*.safetensors' -C "$T/runs" "$name" 2> /dev/null | xz -1 -T8 > "$OUT/$name.tar.xz"
done
tail -n 25 "$L/queue.log"
for log in "$L"/*.log; do echo "$(basename "$log"): $(tail -c 200 "$log" | tr '\r' '\n' | grep -v '^$' | tail -n 1 | cut -c1-180)"; done
nvidia-smi --query-gpu=memory.used,utilization.gpu --format=csv,noheader
ls -la "$OUT"
