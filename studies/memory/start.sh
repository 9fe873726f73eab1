#!/bin/bash
# There, once, from a folder that `pack.sh` made: unpacks it to /tmp/lane-memory and starts the lane; returns at once.
#   SECONDS_LEFT=1300 CUDA_VISIBLE_DEVICES=0 GRID_GPU=1 CORES=8 bash FOLDER/start.sh      each GPU to itself; one: without GRID_GPU
# Ends with 1 where the machine was not made ready (tools/gpu/ready.sh): nothing could run.
HERE=$(cd "$(dirname "$0")" && pwd)
LANE=/tmp/lane-memory SECONDS_LEFT=${SECONDS_LEFT:-1300}
[ -f /tmp/ready/there.sh ] || { echo "/tmp/ready/there.sh is not there; make the machine ready first (tools/gpu/README.md)"; exit 1; }
mkdir -p $LANE && cp "$HERE"/* $LANE/ || exit 1
set -a
[ ! -f "$HERE/lane.env" ] || . "$HERE/lane.env" # what else the lane reads; `CORES=` there: all processors
set +a
export HERE LANE SECONDS_LEFT
setsid bash -c '
    BEGAN=$SECONDS
    [ -d $LANE/tree/src ] || { mkdir -p $LANE/tree && tar xJf $LANE/tree.tar.xz -C $LANE/tree && tar xJf $LANE/files.tar.xz -C $LANE \
        && cp -r $LANE/runs $LANE/tree/; } || exit 1
    while [ ! -f /tmp/ready-0.5b ] && [ $((SECONDS - BEGAN)) -lt $SECONDS_LEFT ]; do sleep 0.5; done
    . /tmp/ready/there.sh
    unset MODEL
    export PYTHONPATH=$LANE/tree/src:/tmp/site TOKENIZERS_PARALLELISM=false T=$LANE/tree
    export SECONDS_LEFT=$((SECONDS_LEFT - SECONDS + BEGAN))
    if [ -n "${CORES:-}" ] && command -v taskset > /dev/null; then
        exec taskset -c "$(python3 -c "import os; print(*sorted(os.sched_getaffinity(0))[-int(os.environ[\"CORES\"]):], sep=\",\")")" \
            bash $T/studies/memory/lane.sh
    fi
    exec bash $T/studies/memory/lane.sh' > /tmp/lane-memory.log 2>&1 < /dev/null &
