#!/usr/bin/env bash
# There, in the background: wait for all pieces of $1 (0.5b, 1.5b, vllm) in /tmp/pieces-$1, each of the right sha256, then make it and leave /tmp/ready-$1.
set -uo pipefail
what=$1 pieces=/tmp/pieces-$1
mkdir -p "$pieces"
declare -A good
while [ ! -e "/tmp/ready-$what" ]; do
    missing=
    while read -r sum kind name size; do
        [ "$kind" = "$what" ] && [ -z "${good[$name]:-}" ] || continue
        if [ "$(stat -c %s "$pieces/$name" 2> /dev/null)" = "$size" ]; then
            if [ "$(sha256sum < "$pieces/$name" | cut -d' ' -f1)" = "$sum" ]; then good[$name]=yes; continue; fi
            echo "$name: wrong sha256, send it again"
        fi
        missing="$missing $name"
    done < /tmp/ready/pieces
    if [ -n "$missing" ]; then sleep 0.3; continue; fi
    echo "all pieces there, $(($(date +%s) - $(cat /tmp/began))) s"
    case $what in
    vllm) rm -rf /tmp/sitev; bash /tmp/ready/ready-vllm.sh "$(cat /tmp/pieces-vllm/p?? | sha256sum | cut -d' ' -f1)" $(ls /tmp/ready/more.tgz 2> /dev/null) ;;
    *) bash /tmp/ready/ready.sh model "$what" ;;
    esac || sleep 2
    echo "made: $([ -e "/tmp/ready-$what" ] && echo yes || echo NO), $(($(date +%s) - $(cat /tmp/began))) s"
done
