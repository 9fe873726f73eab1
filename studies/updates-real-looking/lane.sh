#!/bin/bash
# The study on one or two GPUs: three workers of the 0.5B on the first, its controls and then the 1.5B on the last.
#   T (a tree of the repository) · LANE (files: lessons/, corpus/, data/) · OUT_E (what comes back) · WORK (what stays)
#   CUDA_VISIBLE_DEVICES · SECONDS_LEFT · CORES · SIZES ("small", "large" or both). Records are packed every 25 s.
#   Started again, it goes on.
set -u
T=${T:-/tmp/tree} LANE=${LANE:-/tmp/lane-e15} OUT_E=${OUT_E:-/tmp/out-e15} WORK=${WORK:-/tmp/work-e15}
SIZES=${SIZES:-small large} SECONDS_LEFT=${SECONDS_LEFT:-1300} CORES=${CORES:-8} SMOKE=${SMOKE:-} PYTHON=${PYTHON:-python3}
SMALL=${LANE_SMALL:-qwen2.5-coder-0.5b-instruct} LARGE=${LANE_LARGE:-qwen2.5-coder-1.5b-instruct}
READY_S=${READY_S:-/tmp/ready-0.5b} READY_L=${READY_L:-/tmp/ready-1.5b} WORKERS=${WORKERS:-0 1 2}
END=$((SECONDS + SECONDS_LEFT))
A=${CUDA_VISIBLE_DEVICES-0} B=${CUDA_VISIBLE_DEVICES-0}
A=${A%%,*} B=${B##*,}
M_SMALL=0.31 M_CONTROLS=0.25 M_LARGE=0.40 M_LARGE_TOO=0.30
if [ "$A" = "$B" ] && [ -n "$A" ]; then # one GPU, which nobody else may use: a worker is reckoned to need 43 GB
    WORKERS="0 1"
    [ "$SIZES" = "small large" ] && M_CONTROLS=0.16 M_LARGE=0.31 M_LARGE_TOO=0.16 WORKERS=0
fi
mkdir -p "$OUT_E" "$WORK/larger"
exec 9> "$WORK/lock" # held by what it starts too
flock -n 9 || { echo "a lane is at work in $WORK; to start again, end it first: fuser $WORK/lock names its processes"; exit 1; }
cd "$T/studies/updates-real-looking" || exit 1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

pack() {
    (cd "$WORK" && find . \( -name '*.jsonl' -o -name '*.json' -o -name '*.log' \) -type f | grep -v /speed |
        tar cf - -T - | xz -T4 -4 > "$OUT_E/.records" && mv "$OUT_E/.records" "$OUT_E/e15-records.tar.xz")
}
weights() { # generators of what is chosen and of what may ship, 6 and 11 MB as 16-bit numbers before packing
    local there
    there=$(cd "$WORK" && ls {.,larger}/four-all{,-and-conventions}/model.safetensors 2> /dev/null)
    [ -n "$there" ] && [ "$there" != "$(cat "$WORK/packed" 2> /dev/null)" ] && tar czf "$OUT_E/.weights" -C "$WORK" $there &&
        mv "$OUT_E/.weights" "$OUT_E/e15-weights.tgz" && echo "$there" > "$WORK/packed"
}
(while sleep 25; do pack; weights; done) > /dev/null 2>&1 9>&- &
PACKER=$!
trap 'kill $PACKER; pack; weights' EXIT

FILES="--data $LANE/data --corpus $LANE/corpus --lessons $LANE/lessons $SMOKE"
worker() { # GPU, memory, log, arguments; three tries, what is done is not done again
    local gpu=$1 memory=$2 log=$3
    shift 3
    for try in 1 2 3; do
        [ $SECONDS -lt $END ] || break # timeout 0 would be no limit
        CUDA_VISIBLE_DEVICES=$gpu timeout $((END - SECONDS)) "$PYTHON" real_looking.py draw $FILES --memory "$memory" \
            --seconds $((END - SECONDS)) "$@" >> "$WORK/$log.log" 2>&1 && break
        sleep 1
    done
}
judge() { # folder, processors
    for try in 1 2 3 4 5; do
        [ $SECONDS -lt $END ] || break
        CUDA_VISIBLE_DEVICES= timeout $((END - SECONDS)) "$PYTHON" real_looking.py judge $FILES --out "$1" --judges "$2" --follow \
            >> "$1/judge.log" 2>&1 && break
        sleep 2
    done
}
wait_for() { while [ ! -f "$1" ] && [ $SECONDS -lt $END ]; do sleep 0.5; done; }

rm -f "$WORK/end" "$WORK/larger/end"
JUDGES= ALL=
if [[ $SIZES = *small* ]]; then
    wait_for "$READY_S"
    judge "$WORK" $((CORES / 4 + 1)) &
    JUDGES=$!
    for n in $WORKERS; do
        worker "$A" $M_SMALL "draw-$n" --out "$WORK" --worker "$n" --model "$SMALL" &
        ALL="$ALL $!"
    done
    worker "$B" $M_CONTROLS draw-3 --out "$WORK" --worker 3 --first controls --model "$SMALL" &
    ALL="$ALL $!"
else
    M_LARGE=0.45 M_LARGE_TOO=0.35 # alone on their GPU
fi
[[ $SIZES = *large* ]] && wait_for "$READY_L"
if [[ $SIZES = *large* ]] && [ $SECONDS -lt $END ]; then
    judge "$WORK/larger" $((CORES / 4)) &
    JUDGES="$JUDGES $!"
    worker "$B" $M_LARGE draw-10 --out "$WORK/larger" --larger --worker 10 --model "$LARGE" &
    ALL="$ALL $!"
    worker "$B" $M_LARGE_TOO draw-11 --out "$WORK/larger" --larger --worker 11 --first controls --model "$LARGE" &
    ALL="$ALL $!"
fi
wait $ALL
touch "$WORK/end" "$WORK/larger/end"
wait $JUDGES
