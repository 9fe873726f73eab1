#!/bin/bash
# Two studies: memory, then phase4-grid; with GRID_GPU, the number of another GPU, the grid there from the start. Started as
#   SECONDS_LEFT=1300 setsid bash lane.sh > /tmp/lane-memory.log 2>&1 < /dev/null &
#   T (a tree of the repository) · LANE (files: memory/ of `memory.py corpus`)
#   WORK (what stays) · OUT_MEMORY (what comes back, renewed every 25 s)
# Every part is skipped if it would not fit or was done; started again, the lane goes on. Nobody else may use its GPUs: an engine takes a
# share of what is free when it starts, and beside others that was room for one row (README.md). So it waits until FREE_GB are free.
set -u
T=${T:-/tmp/tree} LANE=${LANE:-/tmp/lane-memory} WORK=${WORK:-/tmp/work-memory} OUT_MEMORY=${OUT_MEMORY:-/tmp/out-memory}
SECONDS_LEFT=${SECONDS_LEFT:-1300} READY=${READY:-/tmp/ready-0.5b} PYTHON=${PYTHON:-python3} SMOKE=${SMOKE:-}
SETS=${SETS:-} GRID_SETS=${GRID_SETS:-} DEVICE=${DEVICE:-cuda} PAIRS=${PAIRS:-30} JOBS=${JOBS:-3} GRID_GPU=${GRID_GPU:-} FREE_GB=${FREE_GB:-100}
END=$((SECONDS + SECONDS_LEFT))
mkdir -p "$WORK/done" "$OUT_MEMORY"
exec 9> "$WORK/lock"
flock -n 9 || { echo "a lane is at work in $WORK"; exit 1; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
M="$WORK/memory" G="$WORK/grid"
[ -d "$M" ] || cp -r "$LANE/memory" "$M"
left() { echo $((END - SECONDS)); }
say() { echo "$(date +%T) $* ($(left) s left)" >> "$WORK/lane.log"; }

part() { # NAME NEEDS COMMAND…: once, if NEEDS seconds are left; its output in WORK/NAME.log
    local name=$1 needs=$2 began=$SECONDS
    shift 2
    [ -e "$WORK/done/$name" ] && return 0
    [ "$(left)" -gt "$needs" ] || { say "$name: no time"; return 1; }
    if timeout "$(left)" "$@" >> "$WORK/$name.log" 2>&1 9>&-; then
        echo $((SECONDS - began)) > "$WORK/done/$name"
        say "$name took $((SECONDS - began))"
    else
        say "$name FAILED with $? after $((SECONDS - began)): $(tail -n 1 "$WORK/$name.log" | cut -c1-300)"
        return 1
    fi
}
part_again() { part "$@" || part "$@"; } # what is done is not done again

export XZ_OPT=-4
pack() {
    rm -rf "$WORK/.pack" && mkdir -p "$WORK/.pack"
    "$PYTHON" - "$M/registry/registry.sqlite" "$WORK/.pack/registry.sqlite" << 'PY'
import sqlite3, sys
try:
    sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True).backup(sqlite3.connect(sys.argv[2]))
except sqlite3.Error as error:
    print(error)
PY
    (cd "$WORK" && find . \( -name '*.jsonl' -o -name '*.json' -o -name '*.log' -o -path './done/*' \) -type f \
        -not -path './grid/*' -not -path './.pack/*' -not -path './memory/registry/objects/*' > .list
     [ -f .pack/registry.sqlite ] && echo .pack/registry.sqlite >> .list
     tar cJf "$OUT_MEMORY/.memory" -T .list
     [ $? -le 1 ] && mv "$OUT_MEMORY/.memory" "$OUT_MEMORY/memory.tar.xz") # 1: a file grew while it was read
    [ -d "$G" ] && (cd "$G" && find . -type f \( -name '*.json' -o -name '*.toml' -o -name '*.log' -o -name 'metrics.jsonl' \
        -o -name 'verdicts.jsonl' -o -name 'samples.jsonl' -o -name 'treatments.jsonl' \) > ../.list-grid
        tar cJf "$OUT_MEMORY/.grid" -T ../.list-grid
        [ $? -le 1 ] && mv "$OUT_MEMORY/.grid" "$OUT_MEMORY/grid.tar.xz")
}
(while sleep 25; do pack; done) > /dev/null 2>&1 9>&- &
PACKER=$!
trap 'kill $PACKER; pack' EXIT

while [ ! -f "$READY" ] && [ $SECONDS -lt $END ]; do sleep 0.5; done

room() { # GPU: waits until FREE_GB are free there, and says what it waits for; at once where there is no GPU
    local free
    while [ "$DEVICE" = cuda ] && [ "$(left)" -gt 60 ]; do
        free=$(nvidia-smi -i "$1" --query-gpu=memory.free --format=csv,noheader,nounits) || break
        [ "$free" -ge $((FREE_GB * 954)) ] && break # MiB
        say "GPU $1: $free MiB free, $FREE_GB GB are wanted; whoever else is there has to end first"
        sleep 5
    done
}
room "${CUDA_VISIBLE_DEVICES:-0}"
say start

grid() { # CUDA_VISIBLE_DEVICES as it is, or GRID_GPU
    [ -z "$GRID_GPU" ] || export CUDA_VISIBLE_DEVICES=$GRID_GPU
    room "${CUDA_VISIBLE_DEVICES:-0}"
    cd "$T/studies/phase4-grid" && part grid 120 nice -n 2 "$PYTHON" grid.py work --jobs "$JOBS" --set "run.folder=$G" \
        --set "phase.override='phase 2 failed; the grid asks about the generator, on bfloat16'" $GRID_SETS
}

memory() {
    cd "$T/studies/memory" || return
    local evolve="$PYTHON -m rune adapters evolve --config $M/memory.toml --registry $M/registry $SETS"
    local both="evolve.trajectories=['corpus/lessons.jsonl','corpus/later.jsonl']"
    part_again check 60 "$PYTHON" memory.py check --out "$M" $SETS || return
    part_again add 60 "$PYTHON" memory.py add --out "$M" $SMOKE $SETS || return
    part_again consolidate 60 $evolve || return
    part_again update 60 $evolve --set evolve.update=true --set "$both"
    part bare 60 "$PYTHON" memory.py bare --out "$M" $SETS
    part_again test 60 "$PYTHON" memory.py test --out "$M" $SMOKE $SETS
    (merge svd 0.5 svd; merge plain 0.5 cat linear; merge sum 1.0 cat svd linear) &
    (merge ties_svd 0.5 ties_svd=0.5 dare_ties_svd=0.5; merge ties 0.5 ties=0.5 dare_ties=0.5) &
    (merge dare_svd 0.5 dare_linear_svd=0.5 magnitude_prune_svd=0.5; merge dare 0.5 dare_linear=0.5 magnitude_prune=0.5) &
    local number
    for number in $(jobs -p); do [ "$number" = "$PACKER" ] || [ "$number" = "${GRID:-}" ] || wait "$number"; done
    part forget 30 $evolve --set evolve.forget_below=0.45
    part test-again 40 "$PYTHON" memory.py test --out "$M" $SMOKE $SETS
    part replay-consolidate 25 $evolve --set "$both" --replay 1
    part replay-merge 25 $evolve --replay "$("$PYTHON" -c "
import sqlite3; print(sqlite3.connect('$M/registry/registry.sqlite').execute(\"select min(number) from operations where kind = 'merge'\").fetchone()[0])")"
}
merge() { # NAME WEIGHT METHOD[=DENSITY]…
    local name=$1 weight=$2 methods="" one
    shift 2
    for one in "$@"; do
        methods+="{method='${one%%=*}',device='$DEVICE'"
        [ "$one" = "${one#*=}" ] || methods+=",density=${one#*=}"
        methods+="},"
    done
    part_again "merge-$name" 60 "$PYTHON" -m rune adapters evolve --config "$M/memory.toml" --registry "$M/registry" $SETS \
        --set "evolve.merges=$PAIRS" --set "evolve.methods=[${methods%,}]" --set "evolve.parent_weight=$weight"
}

if [ -n "$GRID_GPU" ]; then
    grid & GRID=$!
    memory
    wait "$GRID"
else
    memory
    grid
fi
say end
