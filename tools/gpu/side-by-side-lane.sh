#!/usr/bin/env bash
# The lane of side-by-side.sh (see remote/): this file alone, as .carry/lane-NAME/start.sh. Waits for the wheels and the 0.5B; works on a copy of /tmp/tree; returns at once.
# Needs a GPU to itself, and 16 processors: nothing else may run beside it. SECONDS_LEFT of 950 are enough for all but the last step, 650 for all that is not HTTP.
set -uo pipefail
NAME=$(basename "$(cd "$(dirname "$0")" && pwd)" | sed s/^lane-//)
L=/tmp/lane-$NAME
mkdir -p "$L" "/tmp/out-$NAME"
pid=$(cat "$L/pid" 2> /dev/null) && kill -0 "$pid" 2> /dev/null && { echo "runs already"; exit; }
cat > "$L/run.sh" <<'R'
began=$SECONDS
for ((i = 0; i < 1200; i++)); do [ -e /tmp/ready-site ] && [ -e /tmp/ready-0.5b ] && break; sleep 0.5; done
[ -e "$L/tree" ] || { rm -rf "$L/tree.half" && cp -r /tmp/tree "$L/tree.half" && mv "$L/tree.half" "$L/tree"; }
cp /tmp/ready/there.sh "$L/tree/tools/gpu/there.sh"
export MODEL=/tmp/cache/models/qwen2.5-coder-0.5b-instruct SECONDS_LEFT=$((SECONDS_LEFT - SECONDS + began)) T=$L/tree OUT_HERE=/tmp/out-$NAME
echo "== 0.5B there after $((SECONDS - began)) s, $SECONDS_LEFT s left, GPU $CUDA_VISIBLE_DEVICES of $GPUS, $(nproc) processors" >> "$L/queue.log"
exec bash "$T/tools/gpu/side-by-side.sh"
R
cd "$L" || exit
export L NAME
setsid bash run.sh > queue.out 2>&1 < /dev/null &
echo $! > pid
echo "started, pid $!"
