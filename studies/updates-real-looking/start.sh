#!/bin/bash
# There, from the folder that pack.sh made: CUDA_VISIBLE_DEVICES=0,3 SECONDS_LEFT=1300 CORES=8 bash start.sh
# Copies itself to /tmp/lane-e15, starts the queue in the background and returns. While one is alive a second is refused.
[ -e /tmp/ready ] || [ -n "${READY_SITE:-}" ] || { echo "no /tmp/ready here: the machine was not set up (tools/gpu/README.md)"; exit 1; }
H=$(cd "$(dirname "$0")" && pwd)
[ -f "$H/lane.env" ] && { set -a; . "$H/lane.env"; set +a; } # NAME=value lines, as SIZES=large
L=${L:-/tmp/lane-e15}
mkdir -p "$L"
[ "$H" = "$L" ] || cp "$H"/* "$L"/
export L SECONDS_LEFT=${SECONDS_LEFT:-1300} CORES=${CORES:-8} CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0}
setsid bash "$L/queue.sh" >> "$L/queue.log" 2>&1 < /dev/null &
sleep 1
tail -n 2 "$L/queue.log"
