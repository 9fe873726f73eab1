#!/usr/bin/env bash
# There: whatever is done so far → $OUT. A run that is not at its end can be gone on with from its archive.
T=${T:-/tmp}
cd "$T" || exit
tar czf "$OUT/rest.tgz" ./*.log
for run in runs/*/; do
    tar c --exclude=checkpoints -C runs "$(basename "$run")" | xz -1 --lzma2=preset=1,dict=32MiB > "$OUT/$(basename "$run").tar.xz"
done
tail -n 20 study.log | cut -c1-200
ls -la "$OUT"
