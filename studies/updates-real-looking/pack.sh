#!/bin/bash
# Here, before a run: makes FOLDER (3 MB) with all that a bare GPU machine needs beside wheels and weights.
#   bash pack.sh FOLDER [CORPUS]      CORPUS: where the generated updates lie, or are written (minutes); default FOLDER/../corpus
# The tree is that of HEAD: commit first. DATA is the folder of public data sets, PYTHON the interpreter.
set -euo pipefail
cd "$(dirname "$0")"
ROOT=$(git rev-parse --show-toplevel)
DATA=${DATA:-${RUNE_DATA:-$ROOT/../shared/data}} PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
mkdir -p "$1"
FOLDER=$(cd "$1" && pwd)
CORPUS=${2:-$FOLDER/../corpus}
S=$(mktemp -d)
trap 'rm -rf "$S"' EXIT
mkdir -p "$S/lessons" "$S/corpus" "$S/data/humaneval"
tar xJf "$ROOT/results/updates-exploration/records.tar.xz" -C "$S/lessons" --wildcards './real-*.jsonl'
[ -f "$CORPUS/conventions.jsonl" ] || "$PYTHON" -W ignore real_looking.py corpus --data "$DATA" --lessons "$S/lessons" --out "$CORPUS"
cp "$CORPUS"/{open,problems,looking,looking_problems,looking_withheld,renamed,conventions,{combinations,habits}_{problems,withheld}}.jsonl "$S/corpus/"
cp -r "$DATA/code_update_arena" "$S/data/"
HUMANEVAL=$("$PYTHON" -c 'from rune.benchmarks import humaneval; print(humaneval._packaged())')
cp "$HUMANEVAL" "$S/data/humaneval/"
chmod -R u+w "$S"
git -C "$ROOT" archive --format=tar HEAD src studies pyproject.toml | xz -3 > "$FOLDER/tree.tar.xz"
tar cf - -C "$S" lessons corpus data | xz -3 > "$FOLDER/files.tar.xz"
cp start.sh queue.sh "$FOLDER/"
(cd "$FOLDER" && ls -l && sha256sum ./*)
