#!/usr/bin/env bash
# There, in the background (setsid), after ready.sh: speeds alone on the GPU, then phase 2, then Programming by Backprop.
#   L=/tmp/lane-a bash phase2-pbb.sh [dry]
# Every step is bounded and writes as it goes; one that fails leaves its traceback in $L/*.log and the next begins.
# "dry" runs the same steps on a CPU with the tiny model in $MODEL; TIMES=6 for a machine that is slower by that.
set -uo pipefail
T=${T:-/tmp/tree} L=${L:-/tmp/lane-a}
mkdir -p "$L"
cd "$T" || exit
[ "${1:-}" = dry ] || . tools/gpu/there.sh
PY=${PY:-python3}
began=$SECONDS
say() { echo "== $((SECONDS - began)) s: $*" | tee -a "$L/queue.log"; }
step() { # step NAME SECONDS COMMAND…: bounded, its output in NAME.log, its end in queue.log
    local name=$1 most=$2
    shift 2
    say "$name: begins"
    timeout $((most * ${TIMES:-1})) "$@" > "$L/$name.log" 2>&1
    say "$name: $?"
}
wait_for() { # wait_for FILE SECONDS
    for ((i = 0; i < $2; i++)); do [ -e "$1" ] && return; sleep 1; done
    return 1
}

if [ "${1:-}" = dry ]; then
    gen=(--model "$MODEL" --num-tasks 6 --n 2 --max-new-tokens 8 --in-flight 4 --guard-seconds 10)
    check=("${gen[@]}") serve=("${gen[@]}") parts="ours_none ours_8" counts="session_0 session_1 session_10" peft="peft_swap peft_8"
    tiny=(--set "model.name=$MODEL" --set model.device=cpu --set 'train.hypernet.taps=[0,1,2]' --set 'gate.simulations=100'
        --set 'train.hypernet.encoder_settings={width=32,latents=4,blocks=1,heads=2}' --set 'gate.resamples=200' --set track.enabled=false)
    phase2=("${tiny[@]}" --set design.tasks=6 --set sample.n=2 --set gate.n=2 --set sample.max_new_tokens=8 --set gate.floor=0.0
        --set train.lora.schedule.steps=2 --set train.hypernet.schedule.steps=2 --set train.hypernet.encoder_first.schedule.steps=2
        --set train.hypernet.groups=2 --set train.hypernet.encoder_first.groups=2 --set train.lora.rows=2)
    pbb=("${tiny[@]}" --set design.scored=8 --set sample.n=2 --set gate.n=2 --set sample.max_new_tokens=8)
    jobs2=2 jobs3=1 large=
else
    gen=(--device cuda --model "$MODEL" --guard-seconds 20)
    check=("${gen[@]}") serve=("${gen[@]}" --max-new-tokens 128)
    parts="ours_none ours_164" counts="session_0 session_1 session_10 session_100 session_1000" peft="peft_swap peft_8"
    phase2=() pbb=() jobs2=4 jobs3=3 large=yes
fi

# 1. Is the decode loop right on this device, by batch and by submitted requests? One that fails does not stop the queue.
step self-check 90 "$PY" bench/generate.py "${check[@]}" --out "$L/check" --self-check &
step stream-check 90 "$PY" bench/generate.py "${check[@]}" --out "$L/check" --parts stream_check --strict
wait

# 2. Speeds and memory, alone on the GPU.
step speed-bf16 60 "$PY" bench/generate.py "${gen[@]}" --out "$L/bf16" --parts $parts
step speed-nf4 75 "$PY" bench/generate.py "${gen[@]}" --out "$L/nf4" --quantize nf4 --parts $parts
if [ ! -e "$L/nf4/ours_none.json" ]; then # its kernels may not be recordable: then everything of phase 2 goes without graphs
    step speed-nf4-eager 75 "$PY" bench/generate.py "${gen[@]}" --out "$L/nf4" --quantize nf4 --eager --parts $parts
    phase2+=(--set 'engine.settings={graphs=false}')
fi
step served 120 "$PY" bench/generate.py "${serve[@]}" --out "$L/served" --parts $counts
touch "$L/quiet-over" # others may use the GPU from here
step swapping 110 "$PY" bench/generate.py "${serve[@]}" --out "$L/served" --parts $peft &
swapping=$!

# 3. Phase 2, beside it how much memory its processes take.
(while sleep 2; do nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader,nounits 2> /dev/null | sed "s/^/$((SECONDS - began)),/"; done >> "$L/memory.csv") &
watching=$!
step phase2 480 "$PY" -m rune run configs/phase2-0.5b-short.toml --resume --jobs $jobs2 ${phase2[@]+"${phase2[@]}"} &
deciding=$!
# Once all six cells are being scored the GPU is free; the decision over them takes a processor for a minute or two.
while kill -0 $deciding 2> /dev/null && [ "$(cat runs/phase2-0.5b-short-*/cells/*/manifest.json 2> /dev/null | grep -c '"score"')" -lt 6 ]; do
    sleep 1
done
wait $swapping

# 4. Programming by Backprop: what waits for launches shares the GPU.
step pbb-0.5b 300 "$PY" -m rune run configs/pbb-0.5b.toml --resume --jobs $jobs3 ${pbb[@]+"${pbb[@]}"} &
one=$!
step pbb-0.5b-reason 300 "$PY" -m rune run configs/pbb-0.5b-reason.toml --resume ${pbb[@]+"${pbb[@]}"} &
two=$!
if [ -n "$large" ] && wait_for /tmp/ready-1.5b 120; then
    step pbb-1.5b 360 "$PY" -m rune run configs/pbb-1.5b.toml --resume --jobs 2 ${pbb[@]+"${pbb[@]}"} &
    three=$!
    step pbb-1.5b-reason 360 "$PY" -m rune run configs/pbb-1.5b-reason.toml --resume ${pbb[@]+"${pbb[@]}"}
    wait $three
fi
wait $one $two $deciding
kill $watching
say done
