#!/usr/bin/env bash
# There, in the background (setsid), after ready.sh: ours, PEFT and vLLM side by side on one GPU, then Programming by Backprop.
#   L=/tmp/lane-d bash side-by-side.sh [dry]
# Every step is bounded and writes as it goes; one that fails leaves its traceback in $L/*.log and the next begins. Run again, it goes on:
# parts and stages that are there are skipped. vLLM starts in the background, in attempts, each bounded; while it is measured everything
# else of this queue is stopped (SIGSTOP). Each attempt's processes write their stack on SIGUSR1, so that a hang tells where.
# SECONDS_LEFT: no step goes on after that. ALONE=no: another lane comes to this GPU, so vLLM is measured once. "dry": the same on a CPU with the tiny model in $MODEL, and no vLLM to import.
set -uo pipefail
T=${T:-/tmp/tree} L=${L:-/tmp/lane-d} SITE=${SITE:-/tmp/sitev}
mkdir -p "$L" "$L/bench" "$L/vllm" "$L/stacks"
cd "$T" || exit
[ "${1:-}" = dry ] || . tools/gpu/there.sh
PY=${PY:-python3} SECONDS_LEFT=${SECONDS_LEFT:-1320}
began=$SECONDS
say() { echo "== $((SECONDS - began)) s: $*" | tee -a "$L/queue.log"; }
left() { echo $((SECONDS_LEFT - (SECONDS - began))); }
step() { # step NAME SECONDS COMMAND…: bounded, its output in NAME.log, its end in queue.log
    local name=$1 most=$2 code
    shift 2
    [ "$most" -lt "$(left)" ] || most=$(left)
    [ "$most" -gt 5 ] || { say "$name: no time left"; return 1; }
    say "$name: begins"
    timeout -k 5 "$most" "$@" >> "$L/$name.log" 2>&1
    code=$?
    say "$name: $code"
    return $code
}
wait_for() { # wait_for FILE SECONDS
    for ((i = 0; i < 2 * $2; i++)); do [ -e "$1" ] && return; sleep 0.5; done
    return 1
}
tree() { # tree PID: it and all that descend from it
    local p
    for p in $(pgrep -P "$1"); do tree "$p"; done
    echo "$1"
}
pack() { # what there is, without weights, in two files below 15 MB
    local out=${OUT_D:-/tmp/out-d}
    mkdir -p "$out"
    tar c --exclude='*.safetensors' --exclude='*.tgz' --exclude=stacks-on -C "$L" . 2> /dev/null | xz -1 -T2 > "$out/lane-d.tmp"
    mv "$out/lane-d.tmp" "$out/lane-d.tar.xz"
    tar c --exclude='*.safetensors' -C "$T/runs" . 2> /dev/null | xz -1 -T4 > "$out/runs.tmp"
    mv "$out/runs.tmp" "$out/lane-d-runs.tar.xz"
}
dry=${1:-}
(while sleep 20; do pack; done) &
packing=$!
bench=(bench/generate.py --model "$MODEL" --out "$L/bench" --guard-seconds 20)
if [ -n "$dry" ]; then
    bench+=(--num-tasks 6 --n 2 --max-new-tokens 8 --in-flight 4)
    ours="ours_none ours_8 session_1 session_10" peft="peft_swap peft_8"
    tiny=(--set "model.name=$MODEL" --set model.device=cpu --set 'train.hypernet.taps=[0,1,2]' --set 'gate.simulations=100'
        --set 'train.hypernet.encoder_settings={width=32,latents=4,blocks=1,heads=2}' --set 'gate.resamples=200' --set track.enabled=false
        --set design.scored=8 --set sample.n=2 --set gate.n=2 --set sample.max_new_tokens=8)
    sizes=0.5b ready_limit=90
else
    bench+=(--device cuda)
    ours="ours_none ours_8 ours_164 session_1 session_10 session_100 session_1000" peft="peft_swap peft_8"
    tiny=() sizes="0.5b 1.5b" ready_limit=270
fi

# 1. Ours, alone on the GPU; then PEFT.
step self-check 60 "$PY" "${bench[@]}" --self-check
step ours 180 "$PY" "${bench[@]}" --parts $ours
touch "$L/ours-over"
step peft 100 "$PY" "${bench[@]}" --parts $peft
touch "$L/peft-over"

# 2. vLLM, as soon as its wheels are there; beside it, as long as it starts, step 3.
attempt() { # attempt NAME LABEL JSON VARIABLE=VALUE…: start vLLM so, and measure; 0 if it was measured
    local name=$1${2:+-$2} label=$2 options=$3 hold="$L/vllm/$1${2:+-$2}.go" pid limit code
    shift 3
    limit=$ready_limit
    rm -f "$hold" "$hold.ready"
    say "vllm-$name: begins"
    env PYTHONPATH="$L/stacks-on:$T/src:$SITE:/tmp/site" STACKS="$L/stacks/$name" VLLM_HOST_IP=127.0.0.1 VLLM_USE_FLASHINFER_SAMPLER=0 \
        VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 VLLM_CACHE_ROOT="/tmp/vllm-cache-$name" "$@" \
        "$PY" "${bench[@]}" --engines vllm --vllm "$options" --label "$label" --hold "$hold" > "$L/vllm-$name.log" 2>&1 < /dev/null &
    pid=$!
    for ((i = 0; i < 2 * limit; i++)); do
        [ -e "$hold.ready" ] && break
        kill -0 $pid 2> /dev/null || break
        sleep 0.5
    done
    if [ ! -e "$hold.ready" ]; then
        if kill -0 $pid 2> /dev/null; then # it stands still: where?
            for p in $(tree $pid); do kill -USR1 "$p" 2> /dev/null; done
            sleep 2
            kill -9 $(tree $pid) 2> /dev/null
            say "vllm-$name: not started in $limit s"
        else
            wait $pid
            say "vllm-$name: $? before it was measured"
        fi
        return 1
    fi
    say "vllm-$name: started"
    wait_for "$L/peft-over" 200
    for _ in 1 2; do # twice: one may have been started meanwhile
        others=$(for p in $(cat "$L/beside.pid" 2> /dev/null); do tree "$p"; done)
        [ -z "$others" ] || kill -STOP $others 2> /dev/null
    done
    sleep 1
    nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader >> "$L/vllm/$name.beside" 2> /dev/null
    touch "$hold"
    say "vllm-$name: measured, the others stopped"
    for ((i = 0; i < 2 * 280; i++)); do kill -0 $pid 2> /dev/null || break; sleep 0.5; done
    kill -9 $(tree $pid) 2> /dev/null
    wait $pid
    code=$?
    say "vllm-$name: $code"
    if [ -z "$first_measured" ]; then # ours once more, in the same quiet
        first_measured=$name first_variables=("$@")
        step ours-again 60 "$PY" "${bench[@]}" --label again --parts ours_none ours_164
    fi
    [ -z "$others" ] || kill -CONT $others 2> /dev/null
    return $code
}
common='"attention_backend": "FLASH_ATTN", "max_num_seqs": 1024, "kv_cache_memory_bytes": 32000000000, "gpu_memory_utilization": 0.35'
sizes_of_graphs='"compilation_config": {"cudagraph_capture_sizes": [1,2,4,8,16,32,64,96,128,192,256,320,384,448,512,576,640,704,768,832]}'
through_vllm() {
    wait_for /tmp/ready-vllm "${WHEELS:-420}" || { [ -n "$dry" ] || { say "vllm: no wheels"; touch "$L/quiet-over"; return; }; }
    wait_for "$L/ours-over" 400
    first_measured=
    mkdir -p "$L/stacks-on"
    cat > "$L/stacks-on/sitecustomize.py" <<'P'
import faulthandler, os, signal
_file = open(f"{os.environ.get('STACKS', '/tmp/stacks')}-{os.getpid()}.txt", "w")
faulthandler.register(signal.SIGUSR1, file=_file, all_threads=False)  # of the thread that gets it: others' running stacks are not safe to walk
P
    env PYTHONPATH="$SITE" "$PY" -X importtime -c 'import vllm' 2>&1 | sort -t'|' -k2 -n -r | head -n 20 > "$L/vllm/import.txt" &
    attempt v2 '' "{$common, $sizes_of_graphs}" VLLM_LOGGING_LEVEL=INFO ||
        attempt v1-in-process '' "{$common, $sizes_of_graphs}" VLLM_USE_V2_MODEL_RUNNER=0 VLLM_ENABLE_V1_MULTIPROCESSING=0 ||
        attempt eager '' "{$common, \"enforce_eager\": true}" VLLM_USE_V2_MODEL_RUNNER=0 VLLM_ENABLE_V1_MULTIPROCESSING=0
    touch "$L/quiet-over"
    [ -n "$first_measured" ] && [ "${ALONE:-yes}" = yes ] || return
    ready_limit=150 # what of its own choice costs vLLM: room for as many adapters as requests, or for few
    attempt "$first_measured" room-512 "{$common, $sizes_of_graphs, \"max_loras\": 512}" "${first_variables[@]}"
    attempt "$first_measured" room-8 "{$common, $sizes_of_graphs, \"max_loras\": 8}" "${first_variables[@]}"
}
through_vllm &
vllm=$!

# 3. Programming by Backprop: the ceiling first; a size that does not reach it is not asked.
ask() { # ask SIZE SECONDS
    local size=$1 config=configs/pbb-easy-$1 run
    [ "$size" = 0.5b ] || [ -n "$dry" ] || wait_for "/tmp/ready-$size" 600 || { say "pbb-$size: no model"; return; }
    step "pbb-$size-ceiling" 150 "$PY" -m rune run "$config-ceiling.toml" --resume ${tiny[@]+"${tiny[@]}"} ${tiny[@]+--set 'adapt.arms=["vanilla","teacher"]'}
    run=$(ls -d runs/pbb-easy-"$size"-ceiling-* | head -n 1)
    if "$PY" studies/pbb/pbb.py ceiling "$run" >> "$L/queue.log" 2>&1 || [ -n "$dry" ]; then
        step "pbb-$size" "$2" "$PY" -m rune run "$config.toml" --resume --jobs 2 ${tiny[@]+"${tiny[@]}"}
    else
        say "pbb-$size: the ceiling is below 10, not asked"
    fi
}
step pbb-corpus 60 "$PY" studies/pbb/pbb.py corpus --config configs/pbb-easy-0.5b.toml --out runs/pbb-easy
: > "$L/beside.pid"
for size in $sizes; do
    ask "$size" 1100 &
    echo $! >> "$L/beside.pid"
done
wait $(cat "$L/beside.pid")
wait $vllm

# 4. Why, if ours is slower: where the steps of the full batch go.
[ -n "$dry" ] || step profile 60 "$PY" "${bench[@]}" --parts profile
kill $packing
say done
pack
