#!/usr/bin/env bash
# Here: all that studies/pbb, "A hypernetwork trained for it", needs on such a machine, 2 MB into one folder: start.sh, the committed tree, the corpus.
#   RUNE_DATA=../shared/data tools/gpu/pbb-hypernet-carry.sh FOLDER        (a corpus in runs/pbb-hypernet is taken as it is)
# There: SECONDS_LEFT=… CUDA_VISIBLE_DEVICES=… CORES=… bash FOLDER/start.sh; the last line of /tmp/lane-p16/queue.log is "done"; what comes back is /tmp/out-p16/p16.tar.xz.
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/../.."
PY=${PY:-.venv/bin/python} corpus=runs/pbb-hypernet
[ -e $corpus/train.jsonl ] || "$PY" studies/pbb/pbb.py corpus --config configs/pbb-hypernet-0.5b.toml --drawn 3000 --out $corpus
sha256sum -c --quiet - << S || { echo "the corpus is another than the one that was described; see studies/pbb"; exit 1; }
60e9e0926457df52fc402746cefd1d5b2d2ad05d344afd72dd3dd50e09c2e53f  $corpus/given.jsonl
7175f5ddb8b21fe606e1949d46db26957c68ee580d555e5aec68e485d59599e9  $corpus/train.jsonl
S
git archive HEAD src configs studies/pbb tools/gpu pyproject.toml | xz > "$out/tree.tar.xz"
git rev-parse HEAD > "$out/commit"
tar cJf "$out/corpus.tar.xz" -C $corpus given.jsonl train.jsonl
cp tools/gpu/pbb-hypernet-start.sh "$out/start.sh"
ls -la "$out"
