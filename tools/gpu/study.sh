#!/usr/bin/env bash
# There, in the background. On one GPU one step after the other; on several, the families study has the first to itself
# while the specified corpus' cross-fit has the others. `.carry/weights` holds the shipped hypernetwork.
set -uo pipefail
T=${T:-/tmp}  # everything is below it
[ -d $T/w ] || cp -r . $T/w
cd $T/w && . tools/gpu/env.sh
[ ! -f .carry/weights/model.safetensors ] || cp .carry/weights/model.safetensors results/hypernet-0.5b/
G=$(nvidia-smi -L 2>/dev/null | wc -l)
ALL=$(seq -s, 0 $((G - 1)))
WIDE=${WIDE:-configs/phase1-0.5b-wide.toml} SPECIFIED=${SPECIFIED:-configs/phase1-0.5b.toml} RECIPES=${RECIPES:-experiments/recipes.toml}
say() { echo "== $1 $(date +%T)"; }

families() {
    mkdir -p $T/fam0 && [ -n "${DRY:-}" ] || tar xzf .carry/data/families.tgz -C $T/fam0 --skip-old-files
    python3 experiments/families.py --out $T/fam0 --train-seconds "${FAMILY_SECONDS:-240}" \
        --set 'hypernet.encoder_first={groups=64,schedule={steps=500,learning_rate=1e-3}}' --set hypernet.encoder_rate=0.5 \
        --set 'hypernet.weights={kl_base=0.02,lesson=0.1}' --set hypernet.schedule.learning_rate=8e-4 ${FAMILY_SET:-} > $T/families.log 2>&1
    say "families: $?"
}
specified() {
    mkdir -p $T/runs && tar xJf results/crossfit-0.5b/resume.tar.xz -C $T/runs --skip-old-files
    [ -z "${DRY:-}" ] || return
    python3 -m rune crossfit $T/runs/phase1-0.5b-crossfit-67e7cb4a --resume --jobs $1 > $T/specified.log 2>&1
    say "specified: $?"
}
recipes() {  # GPU, names …
    CUDA_VISIBLE_DEVICES=$1 python3 experiments/recipes.py "$WIDE" "$RECIPES" --dev "${DEV:-.carry/data/dev.jsonl}" \
        --corpus humaneval=results/phase1-0.5b/trajectories.jsonl --corpus mbpp=results/corpus-0.5b/mbpp.jsonl \
        --corpus families=results/corpus-0.5b/families.jsonl --out $T/recipes "${@:2}" >> $T/recipes-${3:-choose}.log 2>&1
    say "recipes ${*:3}: $?"
}
crossfit() {  # CONFIG NAME JOBS overrides …; [collect] is the same in all: the loop need not run again
    local config=$1 name=$2 jobs=$3; shift 3
    local sets=(--set "run.folder=$T/runs" --set "run.name=$name"); for one in "$@"; do sets+=(--set "$one"); done
    python3 - "$config" "$T" "${sets[@]}" <<'P'
import glob, shutil, sys
from pathlib import Path
from rune import __version__
from rune.stages import _provenance, pipeline
from rune.store import RunDir
config, root, *sets = sys.argv[1:]
settings = pipeline.load(Path(config), sets[1::2])
extra = {"rune": __version__, "environment": _provenance.environment()}
run = RunDir.create(Path(root) / "runs", f"{settings.run.name}-crossfit", settings, extra=extra, resume=True)
if not (run / "attempts.jsonl").exists():
    shutil.copy(glob.glob(f"{root}/runs/phase1-0.5b-crossfit-*/attempts.jsonl")[0], run / "attempts.jsonl")
P
    local again=("$jobs" "$G"); [ "$jobs" != "$G" ] || again=("$jobs")  # too many for the memory: what is done is kept
    for jobs in "${again[@]}"; do
        python3 -m rune crossfit "$config" "${sets[@]}" --resume --jobs "$jobs" >> $T/$name.log 2>&1
        local code=$?; say "$name by $jobs: $code"
        [ $code != 0 ] && [ $code != 10 ] || break
    done
}

say "start on $G"
if [ "$G" -gt 1 ]; then
    CUDA_VISIBLE_DEVICES=0 families & FAMILIES=$!
    CUDA_VISIBLE_DEVICES=${ALL#*,} specified $((3 * (G - 1)))
else
    specified 3
    families & FAMILIES=$!
fi
while [ ! -f $T/fam0/shipped/settings.json ] && kill -0 $FAMILIES 2>/dev/null; do sleep 1; done
[ "$G" -gt 1 ] || wait $FAMILIES
[ ! -f $T/fam0/shipped/settings.json ] || cp $T/fam0/shipped/{model.safetensors,settings.json} results/hypernet-0.5b/
say "weights: $(tail -n 1 $T/fam0/watch.jsonl)"
if [ "$G" -ge 4 ]; then
    recipes 1 --only wide_harmless wide_half & recipes 1 --only fresh & recipes 2 --only wide_spare & recipes 2 --only fresh_harmless &
    recipes 3 --only wide_spare_long & recipes 3 --only fresh_spare &
    while kill -0 $FAMILIES 2>/dev/null; do sleep 1; done  # it draws, and takes what memory there is
    recipes 0 --only wide & recipes 0 --only fresh_spare_long &
elif [ "$G" -gt 1 ]; then
    recipes 0 --only wide_harmless wide_half & recipes 0 --only fresh_spare & recipes 1 --only wide_spare & recipes 1 --only fresh_harmless &
else
    recipes 0 --only wide_harmless wide_half & recipes 0 --only fresh_spare fresh_harmless &
fi
wait
recipes 0 --choose
mapfile -t CHOSEN < <(python3 -c "import json; print(*json.load(open('$T/recipes/chosen.json'))['set'], sep='\n')")
say "chosen: ${CHOSEN[*]}"
[ ${#CHOSEN[@]} -gt 0 ] || CHOSEN=(train.hypernet.weights.kl_static=0.5)
crossfit "$WIDE" phase1-0.5b-wide $((G > 1 ? 2 * G + 1 : 2)) "${CHOSEN[@]}"
# An ablation, named before any of it was drawn: is the harm of the right trajectory gone once a neighbour must do none?
crossfit "$SPECIFIED" phase1-0.5b-harmless $((G > 1 ? 3 * G : 3)) train.hypernet.weights.kl_static=0.5
say end
touch $T/study.done
