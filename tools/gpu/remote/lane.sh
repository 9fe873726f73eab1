#!/usr/bin/env bash
# There, from the repository's root: bash /tmp/ready/lane.sh NAME:GPUS:CORES …   (e15:0,3:8 h12:-:38) starts .carry/lane-NAME/start.sh, which must return at once, with
# CUDA_VISIBLE_DEVICES, GPUS (how many there are), CORES and SECONDS_LEFT. Where there are fewer GPUs than a lane's numbers say, they are taken modulo; fewer processors: its share.
# END: seconds after the first call at which lanes end.
GPUS=$(nvidia-smi -L 2> /dev/null | wc -l)
left=$((${END:-1480} - ($(date +%s) - $(cat /tmp/began))))
for lane in "$@"; do
    IFS=: read -r name wanted cores <<< "$lane"
    mine=$(for gpu in ${wanted//,/ }; do [ "$gpu" = - ] || [ "$GPUS" = 0 ] || echo $((gpu % GPUS)); done | sort -nu | paste -sd,)
    most=$((cores * $(nproc) / 64 + 1)) # written for 64 processors
    [ -e ".carry/lane-$name/start.sh" ] || { echo "LANE $name: no .carry/lane-$name/start.sh"; continue; }
    export SECONDS_LEFT=$left CUDA_VISIBLE_DEVICES=$mine GPUS CORES=$((cores < most ? cores : most))
    timeout 20 bash ".carry/lane-$name/start.sh" 2>&1 | tail -n 4 | cut -c1-300
    echo "LANE $name: started, GPUs ${mine:-none} of $GPUS, $CORES cores, $left s"
done
