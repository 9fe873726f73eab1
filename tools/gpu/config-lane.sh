#!/usr/bin/env bash
# A lane (see remote/) that runs one config: this file as .carry/lane-NAME/start.sh, beside it `config` (its path in the tree) and, if something has to be made first,
# `prepare` (a script and its arguments). Works on a copy of /tmp/tree, goes on where it was when it is started again, returns at once. READY: the model's mark (default /tmp/ready-0.5b). AFTER: a file to wait for.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ -f "$here/lane.env" ] && { set -a; . "$here/lane.env"; set +a; } # NAME=value lines, as READY=/tmp/ready-1.5b
NAME=$(basename "$here" | sed s/^lane-//) L=/tmp/lane-$(basename "$here" | sed s/^lane-//)
[ -e /tmp/ready ] || { echo "no /tmp/ready: set the machine up first (tools/gpu/README.md)"; exit 1; }
mkdir -p "$L" "/tmp/out-$NAME"
[ "$here" = "$L" ] || cp "$here"/* "$L"/
pid=$(cat "$L/pid" 2> /dev/null) && kill -0 "$pid" 2> /dev/null && { echo "runs already"; exit; }
cat > "$L/run.sh" <<'R'
say() { echo "== $SECONDS s: $*" >> "$L/queue.log"; }
left() { echo $((SECONDS_LEFT - SECONDS)); }
pack() { # without weights, in one file
    tar c --exclude='*.safetensors' --exclude='*.pt' --exclude=trajectories.jsonl --exclude=tree -C "$L" . -C "$L/tree" runs 2> /dev/null | xz -2 -T2 > "/tmp/out-$NAME/$NAME.tmp"
    mv "/tmp/out-$NAME/$NAME.tmp" "/tmp/out-$NAME/$NAME.tar.xz"
}
while [ ! -e /tmp/ready-site ] || [ ! -e "$READY" ] || { [ -n "${AFTER:-}" ] && [ ! -e "$AFTER" ]; }; do
    [ "$(left)" -gt 60 ] || { say "nothing to begin with"; exit; }
    sleep 0.5
done
[ -e "$L/tree" ] || cp -r /tmp/tree "$L/tree"
. /tmp/ready/there.sh
export PYTHONPATH=$L/tree/src:/tmp/site
cd "$L/tree" || exit
(while sleep 25; do pack; done) &
packing=$!
trap 'kill $packing 2> /dev/null; pack' EXIT
if [ -e "$L/prepare" ] && [ ! -e "$L/prepared" ]; then
    say "$(cat "$L/prepare")"
    python3 $(cat "$L/prepare") >> "$L/run.log" 2>&1 && touch "$L/prepared" || { say "failed: $(tail -n 1 "$L/run.log" | cut -c1-300)"; exit; }
fi
for try in 1 2 3; do # one that falls (memory that another takes, say) goes on
    [ "$(left)" -gt 10 ] || break
    say "run, try $try, $(left) s left"
    timeout -k 5 "$(left)" python3 -m rune run "$(cat "$L/config")" --resume --jobs "${JOBS:-1}" ${SETS:-} >> "$L/run.log" 2>&1
    code=$?
    say "run: $code"
    case $code in 0 | 10 | 124 | 137) break ;; esac
done
say done
R
cd "$L" || exit
export L NAME READY=${READY:-/tmp/ready-0.5b} OMP_NUM_THREADS=2 SECONDS_LEFT=${SECONDS_LEFT:-1200}
setsid bash run.sh > queue.out 2>&1 < /dev/null &
echo $! > pid
echo "started, pid $!"
