#!/usr/bin/env bash
# Here, before a run: makes FOLDER (a lane: .carry/lane-real, say) with all that a GPU machine needs beside wheels, tree and weights (3 MB).
#   bash pack.sh FOLDER CORPUS [small|large]     CORPUS: where the generated updates lie, or are written (minutes); the size: 0.5B or 1.5B
# DATA is the folder of public data sets, PYTHON the interpreter.
set -euo pipefail
cd "$(dirname "$0")"
ROOT=$(git rev-parse --show-toplevel)
DATA=${DATA:-${RUNE_DATA:-$ROOT/../shared/data}} PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
S=$(mktemp -d)
trap 'rm -rf "$S"' EXIT
mkdir -p "$1" "$S/lessons" "$S/corpus" "$S/data/humaneval"
tar xJf "$ROOT/results/updates-exploration/records.tar.xz" -C "$S/lessons" --wildcards './real-*.jsonl'
[ -f "$2/conventions.jsonl" ] || "$PYTHON" -W ignore real_looking.py corpus --data "$DATA" --lessons "$S/lessons" --out "$2"
cp "$2"/{open,problems,looking,looking_problems,looking_withheld,renamed,conventions,{combinations,habits}_{problems,withheld}}.jsonl "$S/corpus/"
cp -r "$DATA/code_update_arena" "$S/data/"
cp "$("$PYTHON" -c 'from rune.benchmarks import humaneval; print(humaneval._packaged())')" "$S/data/humaneval/"
chmod -R u+w "$S"
tar cf - -C "$S" lessons corpus data | xz -3 > "$1/files.tar.xz"
cp ../adapter_lane.sh "$1/start.sh"
printf 'SCRIPT=updates-real-looking/real_looking.py\nJUDGE=yes\nPLANNED=%s\n' "${PLANNED:-3000}" > "$1/lane.env"
if [ "${3:-small}" = small ]; then
    printf 'WORKERS=2\nMEMORY=0.48\n' >> "$1/lane.env"
else
    printf 'WORKERS=1\nMEMORY=0.95\nMODEL=qwen2.5-coder-1.5b-instruct\nREADY=/tmp/ready-1.5b\nEXTRA=--larger\n' >> "$1/lane.env"
fi
(cd "$1" && ls -l && sha256sum ./*)
