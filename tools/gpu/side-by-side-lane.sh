#!/usr/bin/env bash
# The lane of side-by-side.sh (see remote/): this file alone, as .carry/lane-NAME/start.sh. Waits for the wheels and the 0.5B; works on a copy of /tmp/tree; returns at once.
set -uo pipefail
L=/tmp/lane-$(basename "$(cd "$(dirname "$0")" && pwd)" | sed s/^lane-//)
mkdir -p "$L" "/tmp/out-${L#/tmp/lane-}"
pid=$(cat "$L/pid" 2> /dev/null) && kill -0 "$pid" 2> /dev/null && { echo "runs already"; exit; }
cat > "$L/run.sh" <<'R'
began=$SECONDS
for ((i = 0; i < 1200; i++)); do [ -e /tmp/ready-site ] && [ -e /tmp/ready-0.5b ] && break; sleep 0.5; done
[ -e "$L/tree" ] || cp -r /tmp/tree "$L/tree"
cp /tmp/ready/there.sh "$L/tree/tools/gpu/there.sh"
export MODEL=/tmp/cache/models/qwen2.5-coder-0.5b-instruct SECONDS_LEFT=$((SECONDS_LEFT - SECONDS + began)) ALONE=${ALONE:-$([ "${GPUS:-1}" -gt 1 ] && echo yes || echo no)}
export T=$L/tree OUT_HERE=/tmp/out-${L#/tmp/lane-}
echo "== 0.5B there after $((SECONDS - began)) s, $SECONDS_LEFT s left, GPU $CUDA_VISIBLE_DEVICES of $GPUS, alone: $ALONE" >> "$L/queue.log"
exec bash "$T/tools/gpu/side-by-side.sh"
R
cd "$L" || exit
export L
setsid bash run.sh > queue.out 2>&1 < /dev/null &
echo $! > pid
echo "started, pid $!"
