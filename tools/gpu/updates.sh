#!/usr/bin/env bash
# There: studies/updates-exploration/updates.py by itself, in the tree that .carry/data/tree.tar.gz was unpacked to.
#   updates.sh go       pieces → model, then the queue on all GPUs (in the background: setsid)
#   updates.sh fetch    everything small → $OUT, and how far it is
#   updates.sh weights VARIANT …    the checkpoints, in pieces that come back
set -uo pipefail
cd "$(dirname "$0")/../.."
U=${U:-/tmp/u}
mkdir -p "$U"
case $1 in
go)
    set -e
    mkdir -p data/code_update_arena corpus .whl
    cp .carry/data/arena.jsonl.gz data/code_update_arena/
    tar xJf .carry/data/corpus.tar.xz -C corpus
    cp .carry/data/bm25s-*.whl .carry/data/gguf-*.whl .whl/
    for wheel in .carry/data/optional/*.whl; do  # pytest, which some tasks' tests import; without it they are left out
        python3 -m pip install -q --no-index --no-deps --no-compile "$wheel" || true
    done
    [ -n "${MODEL_FOLDER:-}" ] || bash tools/gpu/setup.sh
    . tools/gpu/env.sh
    export HF_HUB_OFFLINE=1
    exec python3 studies/updates-exploration/updates.py queue --data data --corpus corpus --out "$U" --seconds "${SECONDS_LEFT:-1320}" \
        --model "${MODEL_FOLDER:-qwen2.5-coder-0.5b-instruct}" ${MORE:-}
    ;;
fetch)
    for file in "$U"/*/checkpoints/metrics.jsonl; do cp "$file" "${file%/checkpoints/*}/metrics.jsonl" 2> /dev/null; done
    tar c --exclude=checkpoints --exclude=shipped --exclude=speed -C "$U" . | xz -1 -T4 > "$OUT/updates.tar.xz"
    [ ! -e /tmp/go.log ] || cp /tmp/go.log "$OUT/go.log"
    grep -v '^|' /tmp/go.log | tail -n 15
    tail -qn 1 "$U"/*/watch.jsonl | cut -c1-300
    tail -qc 160 "$U"/*.log | tr '\r' '\n' | grep -v '^$' | tail -n 12
    cat "$U"/real-*.json "$U"/result.md 2> /dev/null | cut -c1-200
    nvidia-smi --query-gpu=memory.used,utilization.gpu --format=csv,noheader
    ls -la "$OUT" ;;
weights)
    shift
    for v in "$@"; do
        tar cf - -C "$U/$v" shipped | split -b 15M -d -a 1 - "$OUT/$v.shipped.tar."
    done
    ls -la "$OUT" ;;
esac
