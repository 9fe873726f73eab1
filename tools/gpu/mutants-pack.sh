#!/usr/bin/env bash
# Here: the whole list of random breakages for a machine with many processors → FOLDER/carry (start.sh, and what it unpacks there).
#   mutants-pack.sh FOLDER SITE.tar.xz      SITE: wheels for Python 3.12 that such a machine lacks, unpacked (see README.md)
set -euo pipefail
cd "$(dirname "$0")/../.."
to=$1/carry
mkdir -p "$to"
scratch=$(mktemp -d)
git archive HEAD src tests tools configs docs results studies bench pyproject.toml README.md LICENSE Makefile | tar x --exclude='model.safetensors' --exclude='report.html' -C "$scratch"
git rev-parse HEAD > "$scratch/COMMIT"
tar c -C "$scratch" . | xz -T2 -2 > "$to/tree.tar.xz"
tar c -C ../shared data | xz -T2 -2 > "$to/data.tar.xz"
tar c -C artifacts/reach . | xz -T2 -2 > "$to/reach.tar.xz" # what was recorded here, if recording fails there
cp "$2" "$to/site.tar.xz"
cp tools/gpu/mutants-there.sh "$to/start.sh"
rm -r "$scratch"
du -sh "$to"/* "$to"
