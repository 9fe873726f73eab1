#!/usr/bin/env bash
# There, from the folder that pbb-hypernet-carry.sh made: to /tmp/lane-p16, its queue in the background. Ends at once on a machine that is not set up.
# SECONDS_LEFT, CUDA_VISIBLE_DEVICES, CORES: what the queue may take (about 60 GB of one GPU, 12 minutes of half of it).
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd) L=${L:-/tmp/lane-p16} READY=${READY:-/tmp/ready}
[ -d "$READY" ] || { echo "no $READY: set the machine up first (ready.sh)"; exit 1; }
mkdir -p "$L/tree" "$L/corpus"
tar xJf "$here/tree.tar.xz" -C "$L/tree" && tar xJf "$here/corpus.tar.xz" -C "$L/corpus" || exit
cd "$L" || exit
(L=$L T=$L/tree setsid bash "$L/tree/tools/gpu/pbb-hypernet.sh" > "$L/queue.out" 2>&1 < /dev/null & echo $! > "$L/pid")
sleep 1
cat "$L/queue.log" 2> /dev/null
echo "started on GPU ${CUDA_VISIBLE_DEVICES:-all}, ${SECONDS_LEFT:-1200} s left"
