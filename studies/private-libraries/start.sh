#!/usr/bin/env bash
# A lane (tools/gpu/README.md): this file and corpus.tar.xz in .carry/lane-NAME/. Works on a copy of /tmp/tree, goes on where it was when it is started again, returns at once.
#   CUDA_VISIBLE_DEVICES (one GPU is used) · SECONDS_LEFT · MODEL, READY (another size) · WORKERS, MEMORY (of each, as a share) · SMOKE=--smoke and SITE for a dry run
# Records come back in /tmp/out-NAME/NAME.tar.xz, the generators (6 MB each for the 0.5B) in NAME-weights.tgz. Judged at home: the tests need pandas.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ -f "$here/lane.env" ] && { set -a; . "$here/lane.env"; set +a; } # NAME=value lines
NAME=$(basename "$here" | sed s/^lane-//)
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
    (cd "$L/work" && tar czf "$OUT/.weights" training-*/model*.safetensors 2> /dev/null && mv "$OUT/.weights" "$OUT/$NAME-weights.tgz")
}
while [ ! -e "${SITE_READY:-/tmp/ready-site}" ] || [ ! -e "$READY" ]; do
    [ "$(left)" -gt 60 ] || { say "nothing to begin with"; exit; }
    sleep 0.5
done
[ -e "$L/tree" ] || cp -r "${TREE:-/tmp/tree}" "$L/tree"
[ -e "$L/corpus" ] || { mkdir "$L/corpus" && tar xJf "$L/corpus.tar.xz" -C "$L/corpus"; }
GPU=${CUDA_VISIBLE_DEVICES%%,*}
[ -e /tmp/ready/there.sh ] && . /tmp/ready/there.sh
export CUDA_VISIBLE_DEVICES=$GPU PYTHONPATH=$L/tree/src:${SITE:-/tmp/site} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
cd "$L/tree/studies/private-libraries" || exit
(while sleep 25; do pack; done) > /dev/null 2>&1 &
packing=$!
trap 'kill $packing 2> /dev/null; pack' EXIT
worker() { # three tries: what is done is not done again
    for try in 1 2 3; do
        [ "$(left)" -gt 20 ] || break
        timeout -k 5 "$(left)" "$PYTHON" private_libraries.py draw --corpus "$L/corpus" --out "$L/work" --worker "$1" --model "$MODEL" \
            --memory "$MEMORY" --seconds "$(left)" $SMOKE >> "$L/work/draw-$1.log" 2>&1 && break
        sleep 1
    done
}
say "begin, GPU $GPU, $(left) s"
all=
for n in $WORKERS; do worker "$n" & all="$all $!"; done
wait $all
say "end"
R
cd "$L" || exit
export L OUT NAME OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} SECONDS_LEFT=${SECONDS_LEFT:-1200} CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0} PYTHON=${PYTHON:-python3}
export MODEL=${MODEL:-qwen2.5-coder-0.5b-instruct} READY=${READY:-/tmp/ready-0.5b} WORKERS=${WORKERS:-0 1 2} MEMORY=${MEMORY:-0.3} SMOKE=${SMOKE:-}
setsid bash run.sh > queue.out 2>&1 < /dev/null &
echo $! > pid
echo "started, pid $!"
