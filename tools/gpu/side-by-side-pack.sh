#!/usr/bin/env bash
# Here, before a run, from the repository's root: FOLDER becomes all that side-by-side.sh needs on a bare GPU machine, and every call is listed with its size.
#   tools/gpu/side-by-side-pack.sh FOLDER [nvidia-h200]
# FOLDER holds 0.5b/000/piece000 … (carry_model.py split), vllm/0/p00 … and, in setup/, site.tar.xz (wheels, unpacked), data.tar.xz and more.tgz (what vLLM's pieces lack). Packs the last commit.
set -euo pipefail
FOLDER=${1:?give the folder, such as .carry} KIND=${2:-nvidia-h200} PYTHON=${PYTHON:-.venv/bin/python}
for what in 0.5b vllm setup/site.tar.xz setup/data.tar.xz setup/more.tgz; do [ -e "$FOLDER/$what" ] || { echo "pack: $FOLDER/$what is not there; tools/gpu/README.md says what makes it" >&2; exit 2; }; done
git diff --quiet HEAD -- src bench tools studies || { echo "pack: there are changes that no commit has; commit them first" >&2; exit 2; }
mkdir -p "$FOLDER/lane-side"
cp tools/gpu/side-by-side-lane.sh "$FOLDER/lane-side/start.sh"
"$PYTHON" tools/gpu/remote/calls.py pack "$FOLDER"
"$PYTHON" tools/gpu/remote/calls.py list "$FOLDER" --lane side:0:16 --kind "$KIND" --fetches "${FETCHES:-10}"
du -sh "$FOLDER"
