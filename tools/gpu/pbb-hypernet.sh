#!/usr/bin/env bash
# There, in the background (setsid), once the 0.5B is there: studies/pbb, "A hypernetwork trained for it".
#   L=/tmp/lane-p16 T=/tmp/lane-p16/tree bash tools/gpu/pbb-hypernet.sh [dry]
# $T: this tree; $L/corpus: train.jsonl and given.jsonl of `studies/pbb/pbb.py corpus`. Run again, it goes on where it was. SECONDS_LEFT: nothing
# goes on after that. "dry": the same on a CPU with the tiny model in $MODEL.
set -uo pipefail
T=${T:-/tmp/tree} L=${L:-/tmp/lane-p16} READY=${READY:-/tmp/ready} OUT_P=${OUT_P:-/tmp/out-p16}
SECONDS_LEFT=${SECONDS_LEFT:-1200} CORES=${CORES:-4}
dry=${1:-}
began=$SECONDS
mkdir -p "$L" "$OUT_P"
say() { echo "== $((SECONDS - began)) s: $*" | tee -a "$L/queue.log"; }
left() { echo $((SECONDS_LEFT - (SECONDS - began))); }
pack() { # what there is, without weights, in one file; what trains travels once, as it came
    tar c --exclude='*.safetensors' --exclude='*.pt' --exclude=trajectories.jsonl --exclude=leakage.json --exclude=corpus --exclude=tree -C "$L" . -C "$T" runs 2> /dev/null | xz -2 -T2 > "$OUT_P/p16.tmp"
    mv "$OUT_P/p16.tmp" "$OUT_P/p16.tar.xz"
}
(while sleep 25; do pack; done) &
packing=$!
trap 'kill $packing 2> /dev/null' EXIT
if [ -z "$dry" ]; then
    for mark in ready-site ready-0.5b; do
        while [ ! -e "/tmp/$mark" ]; do
            [ "$(left)" -gt 300 ] || { say "no $mark"; pack; exit 1; }
            sleep 0.5
        done
    done
    . "$READY/there.sh"
    export PYTHONPATH="$T/src:/tmp/site"
    set=()
else
    set=(--set "model.name=$MODEL" --set model.device=cpu --set model.dtype=float32 --set 'train.hypernet.taps=[0,1,2]' --set 'gate.simulations=100' --set 'gate.resamples=100'
        --set 'train.hypernet.encoder_settings={width=32,latents=4,blocks=1,heads=2}' --set track.enabled=false --set design.scored=6 --set sample.n=2 --set gate.n=2
        --set sample.max_new_tokens=4 --set adapt.swap_tasks=2 --set train.lora.rows=4 --set train.lora.schedule.steps=2 --set train.hypernet.groups=4
        --set train.hypernet.encoder_first.groups=4 --set train.hypernet.encoder_first.schedule.steps=2 --set train.hypernet.schedule.steps=3)
fi
export OMP_NUM_THREADS=$((CORES > 2 ? CORES / 2 : 1))
cd "$T" || exit
mkdir -p runs && ln -sfn "$L/corpus" runs/pbb-hypernet
[ -n "$dry" ] || [ -e "$L/steps" ] || { [ "$(left)" -ge 540 ] && echo 600 || echo 300; } > "$L/steps"
[ -n "$dry" ] || [ "$(cat "$L/steps")" = 600 ] || set=(--set "train.hypernet.schedule.steps=$(cat "$L/steps")")
PY=${PY:-python3}
for try in 1 2 3; do # one that falls (memory that another takes, say) goes on
    [ "$(left)" -gt 20 ] || break
    say "run, try $try: begins, ${set[*]:-as committed}"
    timeout -k 5 "$(left)" "$PY" -m rune run configs/pbb-hypernet-0.5b.toml --resume --jobs 2 ${set[@]+"${set[@]}"} >> "$L/run.log" 2>&1
    code=$?
    say "run: $code"
    [ $code -ne 0 ] && [ $code -ne 1 ] || break # 1: decided, and the gate failed
done
nvidia-smi --query-gpu=index,memory.used --format=csv,noheader >> "$L/queue.log" 2> /dev/null
say "done"
kill $packing 2> /dev/null
pack
