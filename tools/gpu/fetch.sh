#!/usr/bin/env bash
# There: whatever is finished → $OUT, the weights first.
[ -f /tmp/fam0/shipped/model.safetensors ] && mkdir -p "$OUT/w" && split -b 15M -d -a 1 /tmp/fam0/shipped/model.safetensors "$OUT/w/m." \
    && cp /tmp/fam0/shipped/settings.json "$OUT/w/"
tar czf "$OUT/runs.tgz" --exclude=checkpoints --exclude='trajectories.jsonl' -C /tmp runs study.log $(cd /tmp && ls specified.log families.log wide.log 2>/dev/null)
[ -d /tmp/fam0 ] && tar czf "$OUT/families.tgz" --exclude='*.safetensors' --exclude=trajectories.jsonl --exclude=lessons.jsonl -C /tmp fam0
cat /tmp/study.log; for log in specified families wide; do tail -c 300 /tmp/$log.log 2>/dev/null; done; ls -la "$OUT"
