#!/usr/bin/env bash
# There: fetch.sh NAME …: the lanes' finished files (/tmp/out-NAME/*) → $OUT, at most 8 of at most 16 MiB each; those that changed since they were last sent first, then the
# ones sent longest ago. And how far all are: the ends of /tmp/lane-NAME/*.log.
mkdir -p /tmp/ready/sent
for name in "$@"; do
    for file in "/tmp/out-$name"/*; do
        case $file in *.tmp | *.partial) continue ;; esac
        [ -f "$file" ] || continue
        base=$(basename "$file")
        case $base in *"$name"*) ;; *) base=$name-$base ;; esac
        [ "$(stat -c %s "$file")" -lt 16777216 ] || { echo "TOO LARGE: $file" >&2; continue; }
        mark=/tmp/ready/sent/$base
        if [ -e "$mark" ] && [ ! "$file" -nt "$mark" ]; then echo "1 $(stat -c %Y "$mark") $base $file"; else echo "0 $(stat -c %Y "$mark" 2> /dev/null || echo 0) $base $file"; fi
    done
done | sort -n -k1,1 -k2,2 | head -n 8 | while read -r _ _ base file; do
    touch "/tmp/ready/sent/$base"
    cp "$file" "$OUT/$base"
done
echo "== $(($(date +%s) - $(cat /tmp/began))) s since the start"
for what in $(cut -d' ' -f2 /tmp/ready/pieces | sort -u); do
    [ -e "/tmp/ready-$what" ] && echo "ready-$what" || { echo "NOT ready-$what: $(ls "/tmp/pieces-$what" 2> /dev/null | wc -l) pieces there"; tail -n 2 "/tmp/ready/join-$what.log"; }
done
for name in "$@"; do
    echo "-- $name"
    for log in "/tmp/lane-$name/queue.log" $(ls -t "/tmp/lane-$name"/*.log "/tmp/work-$name"/*.log 2> /dev/null | grep -v queue.log | head -n 3); do
        [ ! -s "$log" ] || tail -c 1200 "$log" | tr '\r' '\n' | grep -v '^$' | tail -n 3 | cut -c1-200 | sed "s|^|$(basename "$log"): |"
    done
done
nvidia-smi --query-gpu=index,memory.used,utilization.gpu --format=csv,noheader 2> /dev/null
uptime; free -g | sed -n 2p; df -h /tmp | tail -n 1; ls -la "$OUT"
