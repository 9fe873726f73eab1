#!/bin/bash
# There: unpacks the tree and the files once, waits for the wheels, then runs lane.sh. Started by start.sh.
# READY_SITE, SITE and what lane.sh reads from the environment stand in for the machine's places, as a dry run needs.
L=${L:-/tmp/lane-e15} BEGAN=$SECONDS GPUS_OURS=$CUDA_VISIBLE_DEVICES
echo "queue: GPUs $CUDA_VISIBLE_DEVICES, $SECONDS_LEFT s, $CORES cores, $(date +%T)"
[ -d "$L/tree/src" ] || { mkdir -p "$L/tree" && tar xJf "$L/tree.tar.xz" -C "$L/tree" && tar xJf "$L/files.tar.xz" -C "$L"; } || exit 1
while [ ! -f "${READY_SITE:-/tmp/ready-site}" ] && [ $((SECONDS - BEGAN)) -lt "$SECONDS_LEFT" ]; do sleep 0.5; done
[ -f /tmp/ready/there.sh ] && . /tmp/ready/there.sh
export CUDA_VISIBLE_DEVICES=$GPUS_OURS
export PYTHONPATH=$L/tree/src:${SITE:-/tmp/site} RUNE_CACHE=${RUNE_CACHE:-/tmp/cache} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True PYTHONUNBUFFERED=1
export T=$L/tree LANE=$L CORES SECONDS_LEFT=$((SECONDS_LEFT - SECONDS + BEGAN))
bash "$L/tree/studies/updates-real-looking/lane.sh"
echo "queue: end, $(date +%T)"
