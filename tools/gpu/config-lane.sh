#!/usr/bin/env bash
# A lane (see remote/) that runs configs, one after the other: this file as .carry/lane-NAME/start.sh, beside it `config` (their paths in the tree, a line each) and, if something has to be made
# first, `prepare` (a script and its arguments). Works on a copy of /tmp/tree, goes on where it was when it is started again, returns at once. READY: the model's mark (default /tmp/ready-0.5b). AFTER: a file to wait for.
# What comes back is /tmp/out-NAME/NAME.tar.xz, records without weights. Put to /tmp/state-NAME on another machine (CARRIED=1 in lane.env: wait for it), it goes on there: cells that ended stay, those that were begun begin anew (ended.py).
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ -f "$here/lane.env" ] && { set -a; . "$here/lane.env"; set +a; } # NAME=value lines, as READY=/tmp/ready-1.5b
NAME=$(basename "$here" | sed s/^lane-//)
L=${L:-/tmp/lane-$NAME} OUT=${OUT:-/tmp/out-$NAME}
[ -e "${SITE_READY:-/tmp/ready}" ] || { echo "no /tmp/ready: set the machine up first (tools/gpu/README.md)"; exit 1; }
mkdir -p "$L" "$OUT"
[ "$here" = "$L" ] || cp "$here"/* "$L"/
pid=$(cat "$L/pid" 2> /dev/null) && kill -0 "$pid" 2> /dev/null && { echo "runs already"; exit; }
cat > "$L/run.sh" <<'R'
say() { echo "== $SECONDS s: $*" >> "$L/queue.log"; }
left() { echo $((SECONDS_LEFT - SECONDS)); }
pack() { # without weights, in one file
    tar c --exclude='*.safetensors' --exclude='*.pt' --exclude='*.lock' --exclude=tree -C "$L" . -C "$L/tree" runs 2> /dev/null | xz -2 -T2 > "$OUT/$NAME.tmp"
    mv "$OUT/$NAME.tmp" "$OUT/$NAME.tar.xz"
}
while [ ! -e "${SITE_READY:-/tmp/ready-site}" ] || [ ! -e "$READY" ] || [ "$(ls "$STATE" 2> /dev/null | wc -l)" -lt "$CARRIED" ] || { [ -n "${AFTER:-}" ] && [ ! -e "$AFTER" ]; }; do
    [ "$(left)" -gt 60 ] || { say "nothing to begin with"; exit; }
    sleep 0.5
done
if [ ! -e "$L/tree" ]; then
    cp -r "${TREE:-/tmp/tree}" "$L/tree"
    [ ! -e "$STATE/$NAME.tar.xz" ] || { tar xJf "$STATE/$NAME.tar.xz" -C "$L/tree" runs && say "goes on: $(ls "$L/tree/runs" | xargs)"; }
fi
[ -e /tmp/ready/there.sh ] && . /tmp/ready/there.sh
export PYTHONPATH=$L/tree/src:${SITE:-/tmp/site}
cd "$L/tree" || exit
[ ! -e "$STATE/$NAME.tar.xz" ] || [ -e "$L/swept" ] || { "$PYTHON" tools/gpu/ended.py runs >> "$L/run.log" 2>&1 && touch "$L/swept"; }
(while sleep 25; do pack; done) &
packing=$!
trap 'kill $packing 2> /dev/null; pack' EXIT
if [ -e "$L/prepare" ] && [ ! -e "$L/prepared" ]; then
    say "$(cat "$L/prepare")"
    "$PYTHON" $(cat "$L/prepare") >> "$L/run.log" 2>&1 && touch "$L/prepared" || { say "failed: $(tail -n 1 "$L/run.log" | cut -c1-300)"; exit; }
fi
for config in $(cat "$L/config"); do
    for try in 1 2 3; do # one that falls (memory that another takes, say) goes on
        [ "$(left)" -gt 10 ] || break
        say "$config, try $try, $(left) s left"
        timeout -k 5 "$(left)" "$PYTHON" -m rune run "$config" --resume --jobs "${JOBS:-1}" ${SETS:-} >> "$L/run.log" 2>&1
        code=$?
        say "$config: $code"
        case $code in 0 | 10 | 124 | 137) break ;; esac
    done
done
say done
R
cd "$L" || exit
export L OUT NAME STATE=${STATE:-/tmp/state-$NAME} CARRIED=${CARRIED:-0} PYTHON=${PYTHON:-python3} READY=${READY:-/tmp/ready-0.5b} OMP_NUM_THREADS=2 SECONDS_LEFT=${SECONDS_LEFT:-1200}
setsid bash run.sh > queue.out 2>&1 < /dev/null &
echo $! > pid
echo "started, pid $!"
