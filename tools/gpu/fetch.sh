#!/usr/bin/env bash
# There: whatever is finished → $OUT. A run that is not at its end can be gone on with from its archive.
T=${T:-/tmp}
cd $T || exit
tar czf "$OUT/rest.tgz" --exclude=checkpoints --exclude='*.jsonl' $(ls -d ./*.log recipes 2>/dev/null)
for run in runs/*/; do
    tar c --exclude=checkpoints -C runs "$(basename "$run")" | xz -1 --lzma2=preset=1,dict=32MiB > "$OUT/$(basename "$run").tar.xz"
done
grep -v '^|' study.log | cut -c1-200; cat recipes/recipes.md; ls -la "$OUT"
for log in $(sed -n 's/^== .*s: \(.*\): \([1-9][0-9]*\) after .*/\1/p' study.log | sort -u); do echo "-- $log"; tail -c 400 "${log//\//-}.log"; done
