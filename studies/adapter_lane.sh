#!/usr/bin/env bash
# A lane (tools/gpu/README.md) of a study that stands on adapter_lane.py: this file as start.sh, beside it files.tar.xz (corpus/ and, where the study reads them, data/ and lessons/) and lane.env.
#   lane.env: SCRIPT=private-libraries/private_libraries.py (below studies/), EXTRA="--larger" (said to every call), JUDGE=yes (verdicts there too), MODEL and READY (another size), WORKERS (a GPU; 3),
#   MEMORY (of each, as a share; 0.31), CARRIED (how many files of an earlier run lie in /tmp/state-NAME, as soon as all are there), PLANNED (seconds of all starts together, where a later one goes on: a training that the time does not hold stops with its state)
#   CUDA_VISIBLE_DEVICES · SECONDS_LEFT · CORES · for a dry run SMOKE=--smoke, SITE, SITE_READY, TREE, PYTHON, L, OUT
# Works on a copy of /tmp/tree, goes on where it was when it is started again, returns at once. What comes back lies in /tmp/out-NAME: NAME.tar.xz (records) and NAME-state.0 … (at most five pieces of 14.5 MB:
# states of unfinished trainings, generators as int8). To go on on another machine, put all of them to /tmp/state-NAME (.carry/state-NAME/0/… for remote/calls.py): they are unpacked where there is no work yet.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ -f "$here/lane.env" ] && { set -a; . "$here/lane.env"; set +a; }
NAME=${NAME:-$(basename "$here" | sed s/^lane-//)}
L=${L:-/tmp/lane-$NAME} OUT=${OUT:-/tmp/out-$NAME}
mkdir -p "$L" "$OUT"
[ "$here" = "$L" ] || cp "$here"/* "$L"/
pid=$(cat "$L/pid" 2> /dev/null) && kill -0 "$pid" 2> /dev/null && { echo "runs already"; exit; }
cat > "$L/run.sh" <<'R'
say() { echo "== $SECONDS s: $*" >> "$L/queue.log"; }
left() { echo $((SECONDS_LEFT - SECONDS)); }
pack() { # records, and marks of what is done; not of teachers, which stay, nor of what failed, which is tried again elsewhere
    (cd "$L" && { find work \( -name '*.jsonl' -o -name '*.json' -o -name '*.log' \) -type f; find work/done -type f -size 0 ! -name 'teachers-*' 2> /dev/null; echo queue.log; } |
        tar cf - -T - | xz -T2 -4 > "$OUT/.records" && mv "$OUT/.records" "$OUT/$NAME.tar.xz")
}
state() { # the unfinished first, then what may ship, as far as five pieces hold it
    cd "$L/work" || return
    local all=() some=() bytes=0 file
    for file in */carry.safetensors */model.safetensors; do [ -e "$file" ] && [ ! -e "done/${file%/*}" ] && all+=("$file"); done
    for file in */model.int8.safetensors; do [ -e "$file" ] && [ -e "done/${file%/*}" ] && all+=("$file"); done
    for file in ${all[@]+"${all[@]}"}; do
        bytes=$((bytes + $(stat -c %s "$file")))
        [ $bytes -lt 72000000 ] && some+=("$file") || { say "no room for $file"; bytes=$((bytes - $(stat -c %s "$file"))); }
    done
    [ ${#some[@]} -gt 0 ] && [ "$(stat -c '%n %Y' "${some[@]}")" != "$(cat "$L/packed" 2> /dev/null)" ] || return
    stat -c '%n %Y' "${some[@]}" > "$L/packed"
    tar cf - "${some[@]}" | gzip -1 | split -b 14500000 -d -a 1 - "$OUT/.piece." && rm -f "$OUT/$NAME-state."? && for file in "$OUT"/.piece.?; do mv "$file" "$OUT/$NAME-state.${file##*.}"; done
}
STATE=${STATE:-/tmp/state-$NAME}
while [ ! -e "${SITE_READY:-/tmp/ready-site}" ] || [ ! -e "$READY" ] || [ "$(ls "$STATE" 2> /dev/null | wc -l)" -lt "$CARRIED" ]; do
    [ "$(left)" -gt 60 ] || { say "nothing to begin with"; exit; }
    sleep 0.5
done
[ -e "$L/tree" ] || cp -r "${TREE:-/tmp/tree}" "$L/tree"
[ -e "$L/files" ] || { mkdir "$L/files" && tar xJf "$L/files.tar.xz" -C "$L/files"; }
if [ ! -e "$L/work" ]; then
    mkdir "$L/work"
    if [ -e "$STATE/$NAME.tar.xz" ]; then
        tar xJf "$STATE/$NAME.tar.xz" -C "$L" && say "goes on, $(ls "$L/work/done" 2> /dev/null | wc -l) parts done"
        ! ls "$STATE/$NAME-state."? > /dev/null 2>&1 || { cat "$STATE/$NAME-state."? | tar xzf - -C "$L/work" && say "states: $(cd "$L/work" && find . -name carry.safetensors | xargs)"; } || say "the states do not unpack: these trainings begin anew"
    fi
fi
GPUS=${CUDA_VISIBLE_DEVICES:-none}
[ -e /tmp/ready/there.sh ] && { kept=$MODEL; . /tmp/ready/there.sh; MODEL=$kept; }
export PYTHONPATH=$L/tree/src:${SITE:-/tmp/site} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
cd "$L/tree/studies/$(dirname "$SCRIPT")" || exit
COMMON="--corpus $L/files/corpus --out $L/work $EXTRA $SMOKE"
for name in data lessons; do [ -e "$L/files/$name" ] && COMMON="$COMMON --$name $L/files/$name"; done
rm -f "$L/work/end"
(n=0; while sleep 25; do pack; n=$((n + 1)); [ $((n % 3)) = 0 ] && (state); done) > /dev/null 2>&1 &
packing=$!
trap 'kill $packing 2> /dev/null; pack; (state)' EXIT
worker() { # number, GPU; three tries: what is done is not done again
    for try in 1 2 3; do
        [ "$(left)" -gt 20 ] || break
        CUDA_VISIBLE_DEVICES=${2#none} timeout -k 5 "$(left)" "$PYTHON" "$(basename "$SCRIPT")" draw $COMMON --worker "$1" --workers "$ALL" --model "$MODEL" \
            --memory "$MEMORY" --seconds "$(left)" --planned "$PLANNED" >> "$L/work/draw-$1.log" 2>&1 && break
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
export MODEL=${MODEL:-qwen2.5-coder-0.5b-instruct} READY=${READY:-/tmp/ready-0.5b} WORKERS=${WORKERS:-3} MEMORY=${MEMORY:-0.31} PLANNED=${PLANNED:-0} CARRIED=${CARRIED:-0} EXTRA=${EXTRA:-} SMOKE=${SMOKE:-}
setsid bash run.sh > queue.out 2>&1 < /dev/null &
echo $! > pid
echo "started, pid $!"
