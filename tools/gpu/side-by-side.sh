#!/usr/bin/env bash
# There, in the background (setsid), after ready.sh: ours, vLLM and PEFT side by side on one GPU, then Phase 1 on the 1.5B.
#   L=/tmp/side bash side-by-side.sh [dry]
# Every step is bounded and writes as it goes; one that fails leaves its traceback in $L/*.log and the next begins. Run again, it goes on: parts and cells that are
# there are skipped. vLLM is started several times at once, in different ways (its start takes minutes and hardly the GPU), while PEFT is measured and our own checks
# run; each then waits, idle, until it is measured, one after another and nothing beside it. A process of vLLM's writes its stack on SIGUSR1, so that a hang tells where.
# SECONDS_LEFT: no step goes on after that. ALONE=no: other work comes to this GPU, so only vLLM's first part is measured and Phase 1 is left out.
# "dry": the same on a CPU with the tiny model in $MODEL; a vLLM that cannot be imported shows that attempts which fail cost nothing else.
set -uo pipefail
T=${T:-/tmp/tree} L=${L:-/tmp/side} SITE=${SITE:-/tmp/sitev} OUT_HERE=${OUT_HERE:-$L/out}
mkdir -p "$L/bench" "$L/vllm" "$L/stacks" "$L/stacks-on" "$OUT_HERE"
cd "$T" || exit
dry=${1:-}
[ -n "$dry" ] || . tools/gpu/there.sh
[ -n "$dry" ] || export PYTHONPATH=$T/src:/tmp/site
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
    timeout -k 5 "$most" "$@" >> "$L/$name.log" 2>&1 < /dev/null
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
pack() { # what there is, without weights, in one file
    local all="$L/all"
    mkdir -p "$all"
    ln -sfn "$T/runs" "$all/runs"
    tar ch --exclude='*.safetensors' --exclude='*.pt' --exclude='*.tgz' --exclude=stacks-on --exclude=./out --exclude=./tree --exclude='tree.tar.xz' -C "$L" . 2> /dev/null |
        xz -1 -T2 > "$OUT_HERE/g18.tmp"
    mv "$OUT_HERE/g18.tmp" "$OUT_HERE/g18.tar.xz"
}
(while sleep 20; do pack; done) &
packing=$!
trap 'kill $packing 2> /dev/null' EXIT
bench=(bench/generate.py --model "$MODEL" --out "$L/bench" --guard-seconds 20 --served-seconds 60)
if [ -n "$dry" ]; then
    bench+=(--num-tasks 6 --n 2 --max-new-tokens 8 --in-flight 4)
    ours="ours_none ours_8 session_0 session_1 session_10" peft="peft_swap peft_8"
    tiny=(--set "model.name=$MODEL" --set model.device=cpu --set 'train.hypernet.taps=[0,1,2]' --set 'gate.simulations=100' --set 'gate.resamples=200'
        --set 'train.hypernet.encoder_settings={width=32,latents=4,blocks=1,heads=2}' --set track.enabled=false --set sample.n=2 --set gate.n=2
        --set sample.max_new_tokens=8 --set collect.max_new_tokens=8 --set collect.tasks=6 --set collect.chains=2 --set collect.keep=6 --set collect.max_attempts=2
        --set train.hypernet.schedule.steps=2 --set train.hypernet.schedule.checkpoint_every=2 --set train.lora.schedule.steps=2
        --set train.lora.schedule.checkpoint_every=2 --set 'design.temperatures=[0.8]' --set design.tasks=24 --set design.folds=2)
    ready_limit=60
else
    bench+=(--device cuda)
    ours="ours_none ours_8 ours_164 session_0 session_1 session_10 session_100 session_1000" peft="peft_swap peft_8"
    tiny=() ready_limit=300
fi
cat > "$L/stacks-on/sitecustomize.py" <<'P'
import faulthandler, os, signal
_file = open(f"{os.environ.get('STACKS', '/tmp/stacks')}-{os.getpid()}.txt", "w")
faulthandler.register(signal.SIGUSR1, file=_file, all_threads=False)  # of the thread that gets it: others' running stacks are not safe to walk
P

# 1. Ours, alone on the GPU.
step ours 220 "$PY" "${bench[@]}" --parts $ours
step no-prefix 60 "$PY" "${bench[@]}" --prefix-bytes 0 --label no-prefix --parts session_1 session_1000

# 2. vLLM's starts.
common='"attention_backend": "FLASH_ATTN", "max_num_seqs": 1024, "kv_cache_memory_bytes": 16000000000, "gpu_memory_utilization": 0.15'
graphs='"compilation_config": {"cudagraph_capture_sizes": [1,2,4,8,16,32,64,96,128,192,256,320,384,448,512,576,640,704,768,832]}'
batch="vllm_check vllm_164 vllm_none vllm_8" served="vllm_session_0 vllm_session_1 vllm_session_10 vllm_session_100 vllm_session_1000"
# vLLM pins each tensor of each adapter by itself, a second an adapter on such a machine; out of one pinned piece it is quicker.
pinned=PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True,pinned_reserve_segment_size_mb:16384
declare -A pids
begin() { # begin NAME LABEL "PARTS" JSON VARIABLE=VALUE…: start vLLM so, in the background, up to where it could be measured
    local name=$1 label=$2 parts=$3 options=$4 hold="$L/vllm/$1.go"
    shift 4
    rm -f "$hold" "$hold.ready"
    say "vllm-$name: begins"
    env PYTHONPATH="$L/stacks-on:$T/src:$SITE:/tmp/site" STACKS="$L/stacks/$name" VLLM_HOST_IP=127.0.0.1 VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_NO_USAGE_STATS=1 \
        DO_NOT_TRACK=1 VLLM_CACHE_ROOT="/tmp/vllm-cache-$name" TORCHINDUCTOR_COMPILE_THREADS=4 OMP_NUM_THREADS=2 VLLM_LOGGING_LEVEL=INFO "$@" \
        "$PY" "${bench[@]}" --parts $parts --vllm "$options" --label "$label" --hold "$hold" > "$L/vllm-$name.log" 2>&1 < /dev/null &
    pids[$name]=$!
}
drop() { # drop NAME: end it
    kill -9 $(tree "${pids[$1]}") 2> /dev/null
    wait "${pids[$1]}" 2> /dev/null
}
measure() { # measure NAME SECONDS: wait until it has started, then let it measure; 0 if it came to its end
    local name=$1 hold="$L/vllm/$1.go" pid=${pids[$1]} most=$2 code
    until [ -e "$hold.ready" ]; do
        kill -0 "$pid" 2> /dev/null || { wait "$pid"; say "vllm-$name: $? before it was measured"; return 1; }
        if [ $((SECONDS - starts)) -gt $ready_limit ] || [ "$(left)" -lt 30 ]; then # it stands still: where?
            for p in $(tree "$pid"); do kill -USR1 "$p" 2> /dev/null; done
            sleep 2
            drop "$name"
            say "vllm-$name: not started in $((SECONDS - starts)) s"
            return 1
        fi
        sleep 0.5
    done
    [ "$most" -lt "$(left)" ] || most=$(left)
    nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader >> "$L/vllm/$name.beside" 2> /dev/null
    nvidia-smi --query-gpu=index,utilization.gpu --format=csv,noheader >> "$L/vllm/$name.beside" 2> /dev/null
    touch "$hold"
    say "vllm-$name: measured"
    for ((i = 0; i < 2 * most; i++)); do kill -0 "$pid" 2> /dev/null || break; sleep 0.5; done
    if kill -0 "$pid" 2> /dev/null; then
        for p in $(tree "$pid"); do kill -USR1 "$p" 2> /dev/null; done
        sleep 1
        drop "$name"
        say "vllm-$name: stopped after $most s"
        return 1
    fi
    wait "$pid"
    code=$?
    say "vllm-$name: $code"
    return $code
}
alone=${ALONE:-yes}
vllm=
if [ -n "$dry" ] || wait_for /tmp/ready-vllm "${WHEELS:-300}"; then
    vllm=yes starts=$SECONDS
    begin v2 '' "$batch $served" "{$common, $graphs}" $pinned
    sleep 3
    begin v1 '' "$batch $served" "{$common, $graphs}" VLLM_USE_V2_MODEL_RUNNER=0 VLLM_ENABLE_V1_MULTIPROCESSING=0
    if [ "$alone" = yes ]; then # what of its own choice costs vLLM: room for as many adapters as requests, or for few
        sleep 3
        begin room-512 room-512 "vllm_164 vllm_session_1000" "{$common, $graphs, \"max_loras\": 512}" $pinned
        sleep 3
        begin room-8 room-8 "vllm_8 vllm_session_1" "{$common, $graphs, \"max_loras\": 8}" $pinned
    fi
else
    say "vllm: no wheels"
fi

# 3. Meanwhile PEFT and what is asked for texts, not for speed.
meanwhile() { # as far as vLLM's measurement keeps its time
    [ -n "$dry" ] || [ "$(left)" -gt "$1" ] || { say "not begun: PEFT and checks, $(left) s left"; return; }
    step peft 110 "$PY" "${bench[@]}" --parts $peft
    step checks 150 "$PY" "${bench[@]}" --parts self_check prefix_check
}
meanwhile 650

# 4. vLLM measured, each alone; ours again right after the first.
if [ -n "$vllm" ]; then
    measure v2 400
    # One that began but was stopped has measured more than another start would in the time that is left.
    if [ -e "$L/bench/vllm_164.json" ]; then
        drop v1
    else
        measure v1 330
    fi
    step ours-again 60 "$PY" "${bench[@]}" --label again --parts ours_none ours_164
    if [ "$alone" = yes ]; then # as far as Phase 1 keeps its time
        [ "$(left)" -lt 700 ] || measure room-512 150
        [ "$(left)" -lt 650 ] || measure room-8 60
    fi
    for name in "${!pids[@]}"; do drop "$name"; done
fi
meanwhile 60
# Why, if ours is slower: where the steps of the full batch go.
[ -n "$dry" ] || step profile 60 "$PY" "${bench[@]}" --parts profile
touch "$L/quiet-over"

# 5. Phase 1 on the 1.5B, every task held out once, if there is time for it: else its plain run.
if [ "$alone" = yes ]; then
    config=configs/crossfit-1.5b.toml
    [ "$(left)" -gt "${ENOUGH:-1500}" ] || config=configs/phase1-1.5b.toml
    n=$(nproc)
    cores=() # of this lane's, where there are enough
    [ "$n" -lt 64 ] || cores=(taskset -c $((n - 12))-$((n - 1)))
    if [ -n "$dry" ] || wait_for /tmp/ready-1.5b 300; then
        say "phase1: $config, $(left) s left"
        for jobs in 3 2; do
            step phase1 2000 "${cores[@]}" "$PY" -m rune run $config --resume --jobs $jobs ${tiny[@]+"${tiny[@]}"}
            case $? in 0 | 10 | 124 | 137) break ;; esac
        done
    else
        say "phase1: no model"
    fi
fi
say done
pack
