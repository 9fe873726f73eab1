#!/usr/bin/env bash
# There: whatever is finished → $OUT, the weights first. A run that is not at its end can be gone on with from its archive.
T=${T:-/tmp}
[ -f $T/fam0/shipped/model.safetensors ] && mkdir -p "$OUT/w" && split -b 15M -d -a 1 $T/fam0/shipped/model.safetensors "$OUT/w/m."
cd $T || exit
tar czf "$OUT/rest.tgz" --exclude=checkpoints --exclude='*.safetensors' --exclude=trajectories.jsonl --exclude=lessons.jsonl \
    --exclude=corpus.jsonl $(ls -d ./*.log fam0 recipes 2>/dev/null)
for run in runs/*/; do
    tar c --exclude=checkpoints -C runs "$(basename "$run")" | xz -1 --lzma2=preset=1,dict=32MiB > "$OUT/$(basename "$run").tar.xz"
done
cat study.log; ls -la "$OUT"
for log in $(sed -n 's/^== .*s: \(.*\): \([1-9][0-9]*\) after .*/\1/p' study.log | sort -u); do echo "-- $log"; tail -c 400 "${log//\//-}.log"; done
