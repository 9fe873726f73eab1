#!/bin/bash
# Two studies: memory, and phase4-grid: its corpus from the start, its trainings after the memory, or at once on another GPU, GRID_GPU. Started as
#   SECONDS_LEFT=1300 setsid bash lane.sh > /tmp/lane-memory.log 2>&1 < /dev/null &
#   T (a tree of the repository) · LANE (files: memory/ of `memory.py corpus`)
#   WORK (what stays) · OUT_MEMORY (what comes back, renewed every 25 s)
# Every part is skipped if it would not fit or was done; started again, the lane goes on. Nobody else may use its GPUs: an engine takes a
# share of what is free when a call starts, and out of that share the room for its adapters first, all as wide as the widest: in the test 170 of rank 128, 24 GB.
# So it waits until FREE_GB are free, gives the test 0.6, and puts nothing beside it. A training of the grid takes up to 55 GB and most of the GPU's time: two at once, and
# no merges beside them (gpu.log of 2026-11-28). What grid/ in LANE, an earlier grid's records, has scored is not made again.
set -u
T=${T:-/tmp/tree} LANE=${LANE:-/tmp/lane-memory} WORK=${WORK:-/tmp/work-memory} OUT_MEMORY=${OUT_MEMORY:-/tmp/out-memory}
SECONDS_LEFT=${SECONDS_LEFT:-1300} READY=${READY:-/tmp/ready-0.5b} PYTHON=${PYTHON:-python3} SMOKE=${SMOKE:-}
SETS=${SETS:-} GRID_SETS=${GRID_SETS:-} DEVICE=${DEVICE:-cuda} PAIRS=${PAIRS:-30} JOBS=${JOBS:-2} GRID_GPU=${GRID_GPU:-} FREE_GB=${FREE_GB:-100}
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
    if run_for "$needs" "$@" >> "$WORK/$name.log" 2>&1 9>&-; then
        echo $((SECONDS - began)) > "$WORK/done/$name"
        say "$name took $((SECONDS - began))"
    else
        say "$name FAILED with $? after $((SECONDS - began)): $(tail -n 1 "$WORK/$name.log" | cut -c1-300)"
        return 1
    fi
}
run_for() { # NEEDS COMMAND…: until KEEP seconds before the end; a function of this file is quick and goes without
    local seconds=$(($(left) - ${KEEP:-0}))
    if [ "$(type -t "$2")" = function ]; then "${@:2}"; else timeout $((seconds > $1 ? seconds : $1)) "${@:2}"; fi
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
LOGGER=
if [ "$DEVICE" = cuda ]; then
    (while :; do # what is used, every 5 s, in all and by process
        { date +%T; nvidia-smi --query-gpu=index,utilization.gpu,memory.used --format=csv,noheader
          nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader; } | paste -sd';'
        sleep 5
    done >> "$WORK/gpu.log") 2>&1 9>&- &
    LOGGER=$!
fi
trap 'kill $PACKER $LOGGER; pack' EXIT

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

GO="$WORK/done/go" # the grid's trainings wait for it, on the memory's GPU
grid() { # CUDA_VISIBLE_DEVICES as it is, or GRID_GPU
    if [ -n "$GRID_GPU" ]; then
        export CUDA_VISIBLE_DEVICES=$GRID_GPU
        room "$GRID_GPU"
        touch "$GO"
    fi
    cd "$T/studies/phase4-grid" && part_again grid 60 nice -n 2 "$PYTHON" grid.py work --jobs "$JOBS" --after "$GO" --done "$LANE/grid" --set "run.folder=$G" \
        --set "phase.override='phase 2 failed; the grid asks about the generator, on bfloat16'" $GRID_SETS
}

share() { [ "$DEVICE" != cuda ] || echo "--set engine.settings.memory_fraction=$1"; } # of what is free

memory() {
    cd "$T/studies/memory" || return
    local evolve="$PYTHON -m rune adapters evolve --config $M/memory.toml --registry $M/registry $SETS"
    local both="evolve.trajectories=['corpus/lessons.jsonl','corpus/later.jsonl']" BESIDE LEARNED
    part_again check 60 "$PYTHON" memory.py check --out "$M" $SETS || return
    part_again add 60 "$PYTHON" memory.py add --out "$M" $SMOKE $SETS || return
    part_again beside 60 "$PYTHON" memory.py beside --out "$M" $SMOKE $SETS & BESIDE=$!
    part learned 60 timeout 240 "$PYTHON" memory.py learned --out "$M" $SMOKE $SETS & LEARNED=$!
    part_again consolidate 60 $evolve || { wait "$BESIDE" "$LEARNED"; return; }
    part_again update 60 $evolve --set evolve.update=true --set "$both"
    part bare 60 "$PYTHON" memory.py bare --out "$M" $SETS
    wait "$BESIDE" "$LEARNED"
    part_again test 60 "$PYTHON" memory.py test --out "$M" $SMOKE $SETS $(share 0.6)
    export KEEP=150 # seconds, for what stands behind the merges
    # One call an operator: what is cut off loses that one. Choosing among the entries of ΔW is slow, so these come last.
    (merge plain 0.5 svd cat linear; merge dare 0.5 dare_linear=0.5; merge prune 0.5 magnitude_prune=0.5
     merge ties_svd 0.5 ties_svd=0.5; merge dare_ties_svd 0.5 dare_ties_svd=0.5) & local one=$!
    (merge sum 1.0 cat svd linear; merge ties 0.5 ties=0.5; merge dare_ties 0.5 dare_ties=0.5
     merge dare_svd 0.5 dare_linear_svd=0.5; merge prune_svd 0.5 magnitude_prune_svd=0.5) & local other=$!
    wait "$one" "$other"
    KEEP=0
    part forget 30 $evolve --set evolve.forget_below=0.45
    part test-again 40 "$PYTHON" memory.py test --out "$M" $SMOKE $SETS $(share 0.6)
    part replay-consolidate 25 $evolve --set "$both" --replay 1
    part replay-merge 25 $evolve --replay "$("$PYTHON" -c "
import sqlite3; print(sqlite3.connect('$M/registry/registry.sqlite').execute(\"select min(number) from operations where kind = 'merge'\").fetchone()[0])")"
    part harm 40 "$PYTHON" memory.py harm --out "$M" $SMOKE $SETS $(share 0.4)
    part weights 10 bring_weights
}
bring_weights() { # at most four files of less than 15 MB
    rm -rf "$WORK/weights" "$WORK"/.weights.tar*
    "$PYTHON" memory.py weights --out "$M" --to "$WORK/weights" $SMOKE $SETS && tar cf "$WORK/.weights.tar" -C "$WORK" weights \
        && split -b 14900000 -d -a 1 "$WORK/.weights.tar" "$OUT_MEMORY/memory-weights.tar."
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

grid & GRID=$!
memory
touch "$GO" # whatever came of it
wait "$GRID"
say end
