#!/bin/bash
# Here, in one command: the folder that a GPU machine without network is given for three studies (memory, phase4-grid, phase4's ceiling).
#   studies/memory/pack.sh FOLDER DATA       DATA: the folder of public data sets, of which it takes code_update_arena
# Packs the last commit. Corpora are made by the same scripts each time, the same bytes under one version of Python. About 3 MB.
set -e
FOLDER=${1:?give a folder} DATA=${2:?give the folder of public data sets}
ROOT=$(cd "$(dirname "$0")/../.." && pwd) PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
mkdir -p "$FOLDER" && FOLDER=$(cd "$FOLDER" && pwd)
S=$(mktemp -d)
trap 'rm -rf "$S"' EXIT
git -C "$ROOT" archive --format=tar HEAD src studies configs pyproject.toml | xz -3 > "$FOLDER/tree.tar.xz"
mkdir -p "$S/tree" "$S/files/lessons" "$S/files/data" && tar xJf "$FOLDER/tree.tar.xz" -C "$S/tree"
export PYTHONPATH=$S/tree/src OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
tar xJf "$ROOT/results/updates-exploration/records.tar.xz" -C "$S/files/lessons" --wildcards './real-*.jsonl'
cp -r "$DATA/code_update_arena" "$S/files/data/"
(cd "$S/tree/studies/memory" && "$PYTHON" memory.py corpus --out "$S/files/memory")
(cd "$S/tree/studies/updates-scaled" && "$PYTHON" scaled.py corpus --out "$S/files/corpus")
(cd "$S/tree/studies/phase4-grid" && "$PYTHON" grid.py corpus)
cp -r "$S/tree/runs" "$S/files/"
chmod -R u+w "$S/files"
tar cf - -C "$S/files" lessons corpus data memory runs | xz -3 > "$FOLDER/files.tar.xz"
cp "$S/tree/studies/memory/start.sh" "$FOLDER/"
ls -l "$FOLDER"
