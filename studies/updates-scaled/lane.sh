#!/bin/bash
# Both studies on one GPU, started as: setsid bash lane.sh > /tmp/lane-c.log 2>&1 < /dev/null &
#   T (a tree of the repository) · LANE (files: lessons/, corpus/, data/) · OUT_C (what comes back) · WORK (what stays)
# Records are packed every 20 s, so that a cut-off loses only what was not done. Started again, it goes on.
set -u
T=${T:-/tmp/tree} LANE=${LANE:-/tmp/lane-c} OUT_C=${OUT_C:-/tmp/out-c} WORK=${WORK:-/tmp/work-c}
SECONDS_LEFT=${SECONDS_LEFT:-1200} PHASE4_SECONDS=${PHASE4_SECONDS:-230} SMOKE=${SMOKE:-} PYTHON=${PYTHON:-python3}
MODEL=${LANE_MODEL:-qwen2.5-coder-0.5b-instruct} READY=${READY:-/tmp/ready-0.5b}
END=$((SECONDS + SECONDS_LEFT))
mkdir -p "$OUT_C" "$WORK"
exec 9> "$WORK/lock" # held by what it starts too
flock -n 9 || { echo "a lane is at work in $WORK; to start again, end it first: fuser $WORK/lock names its processes"; exit 1; }
cd "$T/studies/updates-scaled" || exit 1
export OMP_NUM_THREADS=4

pack() {
    (cd "$WORK" && find . \( -name '*.jsonl' -o -name '*.json' -o -name '*.log' -o -path './done/*' \) -type f | grep -v /speed |
        tar cJf "$OUT_C/.records" -T - && mv "$OUT_C/.records" "$OUT_C/lane-c-records.tar.xz")
}
weights() { # the generators, 6 MB each as 16-bit numbers: three files under 15 MB at most
    [ -f "$WORK/choice.json" ] || return
    tar czf "$OUT_C/.weights" -C "$WORK" real+1000/model.safetensors && mv "$OUT_C/.weights" "$OUT_C/lane-c-weights.tgz"
}
(while sleep 20; do pack; done) > /dev/null 2>&1 9>&- &
PACKER=$!
trap 'kill $PACKER; pack; weights' EXIT

COMMON="--data $LANE/data --corpus $LANE/corpus --lessons $LANE/lessons --out $WORK --model $MODEL $SMOKE"
while [ ! -f "$READY" ] && [ $SECONDS -lt $END ]; do sleep 0.5; done
rm -f "$WORK/end"
(for try in 1 2 3 4 5; do # beside what the GPU does
    [ $SECONDS -lt $END ] || break
    CUDA_VISIBLE_DEVICES= timeout $((END - SECONDS)) "$PYTHON" scaled.py judge $COMMON --follow >> "$WORK/judge.log" 2>&1 && break
    sleep 2
done) &
JUDGE=$!
for try in 1 2 3; do # what is done is not done again
    [ $SECONDS -lt $END ] || break # timeout 0 would be no limit
    timeout $((END - SECONDS)) "$PYTHON" scaled.py draw $COMMON --memory "${MEMORY:-0}" --train-seconds "${TRAIN_SECONDS:-50}" \
        --seconds $((END - SECONDS - PHASE4_SECONDS)) >> "$WORK/draw.log" 2>&1 && break
done
for try in 1 2; do
    [ $SECONDS -lt $END ] && timeout $((END - SECONDS)) "$PYTHON" ../phase4/phase4.py draw $COMMON --memory "${MEMORY:-0}" \
        --seconds $((END - SECONDS)) >> "$WORK/phase4.log" 2>&1 && break
done
touch "$WORK/end"
wait $JUDGE
