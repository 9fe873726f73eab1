#!/bin/bash
# Here, in one command: the folder that a GPU machine without network is given for two studies (memory, phase4-grid).
#   studies/memory/pack.sh FOLDER [GRID]      GRID: records.tar.xz of a grid whose missing cells are wanted
# Packs the last commit. Corpora are made by the same scripts each time, the same bytes under one version of Python. About 3 MB.
set -e
FOLDER=${1:?give a folder}
ROOT=$(cd "$(dirname "$0")/../.." && pwd) PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
mkdir -p "$FOLDER" && FOLDER=$(cd "$FOLDER" && pwd)
S=$(mktemp -d)
trap 'rm -rf "$S"' EXIT
git -C "$ROOT" archive --format=tar HEAD src studies configs pyproject.toml | xz -3 > "$FOLDER/tree.tar.xz"
mkdir -p "$S/tree" "$S/files" && tar xJf "$FOLDER/tree.tar.xz" -C "$S/tree"
export PYTHONPATH=$S/tree/src OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
(cd "$S/tree/studies/memory" && "$PYTHON" memory.py corpus --out "$S/files/memory")
(cd "$S/tree/studies/phase4-grid" && "$PYTHON" grid.py corpus)
cp -r "$S/tree/runs" "$S/files/"
chmod -R u+w "$S/files"
[ -z "${2:-}" ] || { mkdir "$S/files/grid" && tar xJf "$2" -C "$S/files/grid"; }
tar cf - -C "$S/files" . | xz -3 > "$FOLDER/files.tar.xz"
cp "$S/tree/studies/memory/start.sh" "$FOLDER/"
[ -f "$FOLDER/lane.env" ] || printf 'CORES=\n' > "$FOLDER/lane.env" # one GPU and all processors to itself
ls -l "$FOLDER"
