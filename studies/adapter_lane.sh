#!/usr/bin/env bash
# A lane (tools/gpu/README.md) of a study that stands on adapter_lane.py: this file as start.sh, beside it files.tar.xz (corpus/ and, where the study reads them, data/ and lessons/) and lane.env.
#   lane.env: SCRIPT=private-libraries/private_libraries.py (below studies/), JUDGE=yes (verdicts there too), MODEL and READY (another size), WORKERS (a GPU; 3), MEMORY (of each, as a share; 0.31)
#   CUDA_VISIBLE_DEVICES · SECONDS_LEFT · CORES · for a dry run SMOKE=--smoke, SITE, SITE_READY, TREE, PYTHON
# Works on a copy of /tmp/tree, goes on where it was when it is started again, returns at once. Records come back in /tmp/out-NAME/NAME.tar.xz, the generators (6 MB each for the 0.5B) in NAME-weights.tgz.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ -f "$here/lane.env" ] && { set -a; . "$here/lane.env"; set +a; }
NAME=${NAME:-$(basename "$here" | sed s/^lane-//)}
L=${L:-/tmp/lane-$NAME} OUT=${OUT:-/tmp/out-$NAME}
mkdir -p "$L/work" "$OUT"
[ "$here" = "$L" ] || cp "$here"/* "$L"/
pid=$(cat "$L/pid" 2> /dev/null) && kill -0 "$pid" 2> /dev/null && { echo "runs already"; exit; }
cat > "$L/run.sh" <<'R'
say() { echo "== $SECONDS s: $*" >> "$L/queue.log"; }
left() { echo $((SECONDS_LEFT - SECONDS)); }
pack() {
    (cd "$L" && { find work \( -name '*.jsonl' -o -name '*.json' -o -name '*.log' \) -type f | grep -v /pace/; echo queue.log; } |
        tar cf - -T - | xz -T2 -4 > "$OUT/.records" && mv "$OUT/.records" "$OUT/$NAME.tar.xz")
    (cd "$L/work" && there=$(ls */model*.safetensors 2> /dev/null) && [ "$there" != "$(cat "$L/packed" 2> /dev/null)" ] &&
        tar czf "$OUT/.weights" $there && mv "$OUT/.weights" "$OUT/$NAME-weights.tgz" && echo "$there" > "$L/packed")
}
while [ ! -e "${SITE_READY:-/tmp/ready-site}" ] || [ ! -e "$READY" ]; do
    [ "$(left)" -gt 60 ] || { say "nothing to begin with"; exit; }
    sleep 0.5
done
[ -e "$L/tree" ] || cp -r "${TREE:-/tmp/tree}" "$L/tree"
[ -e "$L/files" ] || { mkdir "$L/files" && tar xJf "$L/files.tar.xz" -C "$L/files"; }
GPUS=${CUDA_VISIBLE_DEVICES:-none}
[ -e /tmp/ready/there.sh ] && { kept=$MODEL; . /tmp/ready/there.sh; MODEL=$kept; }
export PYTHONPATH=$L/tree/src:${SITE:-/tmp/site} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
cd "$L/tree/studies/$(dirname "$SCRIPT")" || exit
COMMON="--corpus $L/files/corpus --out $L/work $SMOKE"
for name in data lessons; do [ -e "$L/files/$name" ] && COMMON="$COMMON --$name $L/files/$name"; done
rm -f "$L/work/end"
(while sleep 25; do pack; done) > /dev/null 2>&1 &
packing=$!
trap 'kill $packing 2> /dev/null; pack' EXIT
worker() { # number, GPU; three tries: what is done is not done again
    for try in 1 2 3; do
        [ "$(left)" -gt 20 ] || break
        CUDA_VISIBLE_DEVICES=${2#none} timeout -k 5 "$(left)" "$PYTHON" "$(basename "$SCRIPT")" draw $COMMON --worker "$1" --workers "$ALL" --model "$MODEL" \
            --memory "$MEMORY" --seconds "$(left)" >> "$L/work/draw-$1.log" 2>&1 && break
        sleep 1
    done
}
count=0 workers=
ALL=$(($(echo ${GPUS//,/ } | wc -w) * WORKERS))
say "begin, GPUs $GPUS, $ALL workers, $(left) s"
for round in $(seq "$WORKERS"); do
    for gpu in ${GPUS//,/ }; do
        worker $count "$gpu" & workers="$workers $!"
        count=$((count + 1))
    done
done
if [ "${JUDGE:-}" = yes ]; then
    (for try in 1 2 3; do
        CUDA_VISIBLE_DEVICES= timeout "$(left)" "$PYTHON" "$(basename "$SCRIPT")" judge $COMMON --judges $((CORES / 2 + 1)) --follow >> "$L/work/judge.log" 2>&1 && break
        sleep 2
    done) &
    judging=$!
fi
wait $workers
touch "$L/work/end"
[ "${JUDGE:-}" = yes ] && wait $judging
say "end"
R
cd "$L" || exit
export L OUT NAME OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} SECONDS_LEFT=${SECONDS_LEFT:-1200} CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0} PYTHON=${PYTHON:-python3} CORES=${CORES:-4} SCRIPT
export MODEL=${MODEL:-qwen2.5-coder-0.5b-instruct} READY=${READY:-/tmp/ready-0.5b} WORKERS=${WORKERS:-3} MEMORY=${MEMORY:-0.31} SMOKE=${SMOKE:-}
setsid bash run.sh > queue.out 2>&1 < /dev/null &
echo $! > pid
echo "started, pid $!"
