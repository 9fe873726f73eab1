#!/usr/bin/env bash
# Here, before a run: makes FOLDER (a lane: .carry/lane-sealed, say) with all that a GPU machine needs beside wheels, tree and weights. seal.json must be committed and true.
#   bash pack.sh FOLDER CORPUS     CORPUS: what `sealed.py corpus` wrote
set -euo pipefail
cd "$(dirname "$0")"
ROOT=$(git rev-parse --show-toplevel)
DATA=${DATA:-${RUNE_DATA:-$ROOT/../shared/data}} PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
S=$(mktemp -d)
trap 'rm -rf "$S"' EXIT
"$PYTHON" sealed.py seal --corpus "$2" --out "$S"
cmp -s "$S/seal.json" seal.json || { echo "pack: seal.json does not say what lies here: sealed.py seal --corpus $2 --out . and commit it, before anything is drawn"; exit 1; }
rm "$S/seal.json"
mkdir -p "$1" "$S/lessons" "$S/corpus" "$S/data/humaneval"
tar xJf "$ROOT/results/updates-exploration/records.tar.xz" -C "$S/lessons" --wildcards './real-*.jsonl'
cp "$2"/{looking,old,renamed}.jsonl "$2/recipe.json" "$S/corpus/"
cp -r "$DATA/code_update_arena" "$S/data/"
cp "$("$PYTHON" -c 'from rune.benchmarks import humaneval; print(humaneval._packaged())')" "$S/data/humaneval/"
chmod -R u+w "$S"
tar cf - -C "$S" lessons corpus data | xz -3 > "$1/files.tar.xz"
cp ../adapter_lane.sh "$1/start.sh"
printf 'SCRIPT=updates-sealed/sealed.py\nJUDGE=yes\nPLANNED=%s\nWORKERS=2\nMEMORY=0.48\n' "${PLANNED:-6000}" > "$1/lane.env"
(cd "$1" && ls -l && sha256sum ./*)
