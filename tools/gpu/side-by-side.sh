#!/usr/bin/env bash
# There, in the background (setsid), after ready.sh: ours, vLLM and PEFT side by side on one GPU that nobody else uses, then the three of them behind HTTP.
#   L=/tmp/side bash side-by-side.sh [dry]
# Every step is bounded, each part writes its record in one step as soon as it ends, and all that is there is packed every 20 s. A step that fails leaves its traceback in $L/*.log and the
# next begins; run again, it goes on: parts that are there are skipped. What Done 2 of the issue needs comes first. Seconds on an H200 with 16 processors:
#   1 ours (140) and without the prefix cache (45) · 2 vLLM and the HTTP servers start (150 to 190), PEFT and the checks of texts beside that · 3 vLLM measured (250 to 400), nothing beside it
#   · 4 ours again (40) · 5 HTTP (170) · 6 profile (30) · 7 vLLM with room for 512 adapters (300), where there is time for it.
# A server that has started waits, idle, until it is measured. A vLLM that does not start is tried with its older runner. A process of vLLM's writes its stack on SIGUSR1, so that a hang tells where.
# SECONDS_LEFT: no step goes on after that. queue.log has the load of the processors and who is on the GPU at each step: whether it was quiet is on record.
# "dry": the same on a CPU with the tiny model in $MODEL; VPY: a Python that has vLLM for CPUs (tests/vllm/run.sh makes one), else vLLM's parts show that a start which fails costs nothing else.
set -uo pipefail
T=${T:-/tmp/tree} L=${L:-/tmp/side} SITE=${SITE:-/tmp/sitev} OUT_HERE=${OUT_HERE:-$L/out} NAME=${NAME:-side}
mkdir -p "$L/bench" "$L/vllm" "$L/stacks" "$L/stacks-on" "$L/serve" "$OUT_HERE"
cd "$T" || exit
dry=${1:-}
[ -n "$dry" ] || . tools/gpu/there.sh
[ -n "$dry" ] || export PYTHONPATH=$T/src:/tmp/site
PY=${PY:-python3} VPY=${VPY:-${PY:-python3}} SECONDS_LEFT=${SECONDS_LEFT:-1320}
began=$SECONDS
quiet() { # load of the last minute, processes on the GPU and their memory
    echo "load $(cut -d' ' -f1 /proc/loadavg), on the GPU: $(nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader 2> /dev/null | tr '\n' ';')"
}
say() { echo "== $((SECONDS - began)) s: $*" | tee -a "$L/queue.log"; }
left() { echo $((SECONDS_LEFT - (SECONDS - began))); }
step() { # step NAME SECONDS COMMAND…: bounded, its output in NAME.log, its end in queue.log
    local name=$1 most=$2 code
    shift 2
    [ "$most" -lt "$(left)" ] || most=$(left)
    [ "$most" -gt 5 ] || { say "$name: no time left"; return 1; }
    say "$name: begins; $(quiet)"
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
pack() { # what there is, in one file; one packs at a time
    (
        flock -w 60 9 || exit
        cd "$L" || exit
        { tar c $(ls -d bench vllm stacks serve/*.json serve/*.log ./*.log 2> /dev/null) 2> /dev/null || true; } | xz -1 -T2 > "$OUT_HERE/.packing" && mv "$OUT_HERE/.packing" "$OUT_HERE/$NAME.tar.xz"
    ) 9> "$L/pack.lock"
}
declare -A pids
drop() { # drop NAME: end it
    [ -n "${pids[$1]:-}" ] || return 0
    kill -9 $(tree "${pids[$1]}") 2> /dev/null
    wait "${pids[$1]}" 2> /dev/null
    unset "pids[$1]"
}
over() {
    kill "$packing" 2> /dev/null
    for name in "${!pids[@]}"; do drop "$name"; done
    pack
}
(while sleep 20; do pack; done) &
packing=$!
trap over EXIT
trap exit TERM INT
bench=(bench/generate.py --model "$MODEL" --out "$L/bench" --guard-seconds 20 --served-seconds 60)
serve=(bench/serve_beside.py --model "$MODEL" --out "$L/serve" --work "$L/serve/work" --python "$PY" --vllm-python "$VPY" --vllm-path "$SITE")
if [ -n "$dry" ]; then
    bench+=(--mode gpu --dtype float32 --num-tasks 6 --n 2 --max-new-tokens 8 --in-flight 4 --served-seconds 3)
    [ -z "${TASKS:-}" ] || bench+=(--tasks "$TASKS") serve+=(--tasks "$TASKS")
    ready_limit=${READY_LIMIT:-150}
    serve+=(--dtype float32 --seconds 3 --clients 4 --counts 8 0 --tokens 8 --cpu --ready-seconds $ready_limit)
    first="session_0 session_10" batch="ours_none ours_8" peft="peft_swap peft_8"
    check="vllm_check" served="vllm_session_0 vllm_session_10" large="vllm_none vllm_8" options='{"enforce_eager": true, "max_loras": 4}' again="session_0 ours_none" uncached="session_10"
else
    bench+=(--device cuda) serve+=(--ready-seconds 220)
    first="session_0 session_1000 session_10 session_100 session_1" batch="ours_164 ours_none ours_8" peft="peft_swap peft_8" ready_limit=300
    check="vllm_check" served="vllm_session_0 vllm_session_1 vllm_session_10 vllm_session_100" large="vllm_164 vllm_none vllm_session_1000 vllm_8"
    again="session_0 session_1000 ours_none ours_164" uncached="session_1 session_1000"
    options='{"attention_backend": "FLASH_ATTN", "max_num_seqs": 1024, "kv_cache_memory_bytes": 16000000000, "gpu_memory_utilization": 0.15, "compilation_config": {"cudagraph_capture_sizes": [1,2,4,8,16,32,64,96,128,192,256,320,384,448,512,576,640,704,768,832]}}'
fi
cat > "$L/stacks-on/sitecustomize.py" <<'P'
import faulthandler, os, signal
_file = open(f"{os.environ.get('STACKS', '/tmp/stacks')}-{os.getpid()}.txt", "w")
faulthandler.register(signal.SIGUSR1, file=_file, all_threads=False)  # of the thread that gets it: others' running stacks are not safe to walk
P

# 1. Ours, alone on the GPU: what is asked of 1,000 adapters first.
step ours 230 "$PY" "${bench[@]}" --parts $first $batch
step no-prefix 70 "$PY" "${bench[@]}" --prefix-bytes 0 --label no-prefix --parts $uncached

# 2. The starts.
# vLLM pins each tensor of each adapter by itself, a second an adapter on such a machine; out of one pinned piece it is quicker.
pinned=PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True,pinned_reserve_segment_size_mb
ours=$L/stacks-on:$T/src theirs=$SITE:/tmp/site
begin() { # begin NAME VARIABLE=VALUE… COMMAND…: start it in the background, up to where it could be measured
    local name=$1 hold="$L/vllm/$1.go"
    shift
    rm -f "$hold" "$hold.ready"
    say "$name: starts"
    env PYTHONPATH="$ours:$theirs" STACKS="$L/stacks/$name" VLLM_HOST_IP=127.0.0.1 VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 \
        VLLM_CACHE_ROOT="/tmp/vllm-cache-$name" TORCHINDUCTOR_COMPILE_THREADS=4 OMP_NUM_THREADS=2 VLLM_LOGGING_LEVEL=INFO "$@" --hold "$hold" > "$L/$name.log" 2>&1 < /dev/null &
    pids[$name]=$!
    since[$name]=$(date +%s)
}
declare -A since
measure() { # measure NAME SECONDS: wait until it has started, then let it measure; 0 if it came to its end, 2 if it did not start
    local name=$1 hold="$L/vllm/$1.go" pid=${pids[$1]:-} most=$2 code p
    [ -n "$pid" ] || return 2
    until [ -e "$hold.ready" ]; do
        kill -0 "$pid" 2> /dev/null || { wait "$pid"; code=$?; unset "pids[$name]"; say "$name: $code before it was measured"; return $((code ? 2 : 0)); }
        if [ $(($(date +%s) - since[$name])) -gt $ready_limit ] || [ "$(left)" -lt 30 ]; then # it stands still: where?
            for p in $(tree "$pid"); do kill -USR1 "$p" 2> /dev/null; done
            sleep 2
            drop "$name"
            say "$name: not started in $(($(date +%s) - since[$name])) s"
            return 2
        fi
        sleep 0.5
    done
    [ "$most" -lt "$(left)" ] || most=$(left)
    say "$name: had started in $(($(stat -c %Y "$hold.ready") - since[$name])) s; is measured; $(quiet)"
    touch "$hold"
    for ((i = 0; i < 2 * most; i++)); do kill -0 "$pid" 2> /dev/null || break; sleep 0.5; done
    if kill -0 "$pid" 2> /dev/null; then
        for p in $(tree "$pid"); do kill -USR1 "$p" 2> /dev/null; done
        sleep 1
        drop "$name"
        say "$name: stopped after $most s; $(quiet)"
        return 1
    fi
    wait "$pid"
    code=$?
    unset "pids[$name]"
    say "$name: $code; $(quiet)"
    return $code
}
begun=
starts() { # vLLM, and a little later the servers behind HTTP, once vLLM's wheels are there
    [ -z "$begun" ] && { [ -n "$dry" ] || [ -e /tmp/ready-vllm ]; } || return
    begun=yes
    begin v2 $pinned:16384 "$VPY" "${bench[@]}" --vllm "$options" --parts $check $served $large
    sleep 3
    [ "$(left)" -lt 500 ] || begin serve $pinned:4096 PYTHONPATH="$ours:/tmp/site" "$PY" "${serve[@]}"
}
starts
step peft 130 "$PY" "${bench[@]}" --parts $peft
starts
step checks 150 "$PY" "${bench[@]}" --parts self_check prefix_check
starts
if [ -z "$begun" ]; then
    [ "$(left)" -lt 400 ] || wait_for /tmp/ready-vllm "${WHEELS:-240}" || say "vllm: no wheels"
    starts
fi

# 3. vLLM, nothing beside it: what still starts then is ended.
if [ -n "$begun" ]; then
    until [ -e "$L/vllm/v2.go.ready" ] || ! kill -0 "${pids[v2]}" 2> /dev/null || [ $(($(date +%s) - since[v2])) -gt $ready_limit ]; do sleep 0.5; done
    [ -z "${pids[serve]:-}" ] || wait_for "$L/vllm/serve.go.ready" "${SERVE_LIMIT:-60}" || { drop serve; say "serve: not ready in time"; }
    measure v2 400
    if [ $? = 2 ] && [ "$(left)" -gt 240 ]; then
        begin v1 VLLM_USE_V2_MODEL_RUNNER=0 VLLM_ENABLE_V1_MULTIPROCESSING=0 "$VPY" "${bench[@]}" --vllm "$options" --parts $check $served $large
        measure v1 330
    fi
fi

# 4. Ours again: what the machine's mood is worth.
step ours-again 90 "$PY" "${bench[@]}" --label again --parts $again

# 5. The same GPU behind HTTP: rune serve over torch, vLLM's own server, rune serve over vLLM. Without vLLM's wheels ours alone.
if [ -z "$begun" ] && [ "$(left)" -gt 100 ]; then begin serve PYTHONPATH="$ours:/tmp/site" "$PY" "${serve[@]}" --systems torch; fi
measure serve 240
drop serve

# 6. Why, if ours is slower: where the steps of the full batch go.
[ -n "$dry" ] || step profile 60 "$PY" "${bench[@]}" --parts profile
touch "$L/quiet-over"

# 7. What of its own choice costs vLLM: room for as many adapters as requests are under way.
if [ -n "$begun" ] && [ -z "$dry" ] && [ "$(left)" -gt 260 ]; then
    begin room-512 $pinned:16384 "$VPY" "${bench[@]}" --vllm "${options%\}}, \"max_loras\": 512}" --label room-512 --parts vllm_session_1000 vllm_164
    measure room-512 200
fi
say done
