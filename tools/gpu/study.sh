#!/usr/bin/env bash
# There, in the background: the cross-fitted runs of both corpora, then, with what time is left, the families study anew.
# About 16 minutes for the first two. `.carry/weights` holds the shipped hypernetwork, from which the wider corpus starts.
set -uo pipefail
[ -d /tmp/w ] || cp -r . /tmp/w
cd /tmp/w && . tools/gpu/env.sh
[ ! -f .carry/weights/model.safetensors ] || cp .carry/weights/model.safetensors results/hypernet-0.5b/
say() { echo "== $1 $(date +%T)"; }
say start
mkdir -p /tmp/runs && tar xJf results/crossfit-0.5b/resume.tar.xz -C /tmp/runs --skip-old-files
python3 -m rune crossfit /tmp/runs/phase1-0.5b-crossfit-67e7cb4a --resume --jobs 3 > /tmp/specified.log 2>&1; say "specified: $?"
python3 - <<'P'
import glob, shutil
from pathlib import Path
from rune import __version__
from rune.stages import _provenance, pipeline
from rune.store import RunDir
settings = pipeline.load(Path("configs/phase1-0.5b-wide.toml"), ["run.folder=/tmp/runs"])
extra = {"rune": __version__, "environment": _provenance.environment()}
wide = RunDir.create(Path("/tmp/runs"), "phase1-0.5b-wide-crossfit", settings, extra=extra, resume=True)
if not (wide / "attempts.jsonl").exists():  # [collect] is the same in both: the loop need not run again
    shutil.copy(glob.glob("/tmp/runs/phase1-0.5b-crossfit-*/attempts.jsonl")[0], wide / "attempts.jsonl")
P
python3 -m rune crossfit configs/phase1-0.5b-wide.toml --set run.folder=/tmp/runs --resume --jobs 3 > /tmp/wide.log 2>&1; say "wide: $?"
mkdir -p /tmp/fam0 && tar xzf .carry/data/families.tgz -C /tmp/fam0 --skip-old-files
python3 experiments/families.py --out /tmp/fam0 --train-seconds "${1:-170}" \
    --set 'hypernet.encoder_first={groups=64,schedule={steps=400,learning_rate=1e-3}}' > /tmp/families.log 2>&1
say "families: $?"
touch /tmp/study.done
