#!/bin/bash
# The whole study on one GPU, started as: setsid lane.sh > /tmp/lane-b/lane.log 2>&1 &
#   T (a tree of the repository) · LANE (files: lessons/, corpus/, data/) · OUT_B (what comes back, pieces < 15 MB)
# Results are packed every 20 s, so that a cut-off loses only what was not done.
set -u
T=${T:-/tmp/tree} LANE=${LANE:-/tmp/lane-b} OUT_B=${OUT_B:-/tmp/out-b} WORK=${WORK:-/tmp/work-b}
SECONDS_LEFT=${SECONDS_LEFT:-1150} SMOKE=${SMOKE:-} MODEL_A=${MODEL_A:-qwen2.5-coder-0.5b-instruct}
MODEL_B=${MODEL_B:-qwen2.5-coder-1.5b-instruct} READY=${READY:-/tmp/ready-1.5b} PYTHON=${PYTHON:-python3}
END=$((SECONDS + SECONDS_LEFT))
mkdir -p "$OUT_B" "$WORK/a" "$WORK/b"
cd "$T/studies/updates-distilled" || exit 1
export OMP_NUM_THREADS=4

pack() { # small records in one piece, trained weights in another
    for size in a b; do
        (cd "$WORK/$size" && find . -name '*.jsonl' -o -name '*.json' -o -name '*.log' | grep -v '/speed' | tar cJf "$OUT_B/.$size" -T - \
            && mv "$OUT_B/.$size" "$OUT_B/lane-b-records-$size.tar.xz")
        for weights in "$WORK/$size"/*/model.safetensors; do
            [ -f "$weights" ] || continue
            name=$(basename "$(dirname "$weights")")
            [ -f "$OUT_B/lane-b-$size-$name.tgz" ] || tar czf "$OUT_B/lane-b-$size-$name.tgz" -C "$WORK/$size" "$name/model.safetensors"
        done
    done
    cp "$WORK"/*.log "$OUT_B/" 2>/dev/null
}
(while sleep 20; do pack; done) > /dev/null 2>&1 &
PACKER=$!
trap 'kill $PACKER; pack' EXIT

COMMON="--data $LANE/data --lessons $LANE/lessons --corpus $LANE/corpus $SMOKE"
while [ ! -f "${READY_A:-/tmp/ready-0.5b}" ] && [ $SECONDS -lt $END ]; do sleep 0.5; done
for try in 1 2; do # what is done is not drawn again
    timeout $((END - SECONDS)) "$PYTHON" distilled.py draw $COMMON --model "$MODEL_A" --out "$WORK/a" --memory "${MEMORY:-0.285}" \
        --train-seconds "${TRAIN_SECONDS:-120}" --seconds $((END - SECONDS - 120)) >> "$WORK/a.log" 2>&1 && break
done
while [ ! -f "$READY" ] && [ $SECONDS -lt $END ]; do sleep 0.5; done
if [ $SECONDS -lt $END ]; then
    timeout $((END - SECONDS)) "$PYTHON" distilled.py larger $COMMON --model "$MODEL_B" --out "$WORK/b" --memory "${MEMORY:-0.285}" \
        --choice "$WORK/a/choice.json" --train-seconds "${TRAIN_SECONDS_B:-90}" --seconds $((END - SECONDS - 60)) >> "$WORK/b.log" 2>&1
fi
