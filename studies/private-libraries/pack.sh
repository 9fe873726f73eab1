#!/usr/bin/env bash
# Here, before a run: makes FOLDER (a lane: .carry/lane-plib, say) with all that a GPU machine needs beside wheels, tree and weights.
#   bash pack.sh FOLDER CORPUS UPDATES     CORPUS is written if it is not there; UPDATES: what updates-real-looking's corpus wrote
set -euo pipefail
cd "$(dirname "$0")"
ROOT=$(git rev-parse --show-toplevel)
DATA=${DATA:-${RUNE_DATA:-$ROOT/../shared/data}} PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
mkdir -p "$1"
[ -f "$2/jobs.json" ] || "$PYTHON" -W ignore private_libraries.py corpus --data "$DATA" --updates "$3" --out "$2"
tar cf - -C "$2" --transform 's,^,corpus/,' held.jsonl twins.jsonl jobs.json libraries.jsonl looking.jsonl old.jsonl | xz -3 > "$1/files.tar.xz"
cp ../adapter_lane.sh "$1/start.sh"
echo SCRIPT=private-libraries/private_libraries.py > "$1/lane.env"
(cd "$1" && ls -l && sha256sum ./*)
