#!/usr/bin/env bash
# There, the first call, alone, from the repository's root (bash .carry/setup/start.sh): wheels and tree at once, then /tmp/ready-site; models and vLLM in the background, each when
# all its pieces are there. Every later call begins with `[ -e /tmp/ready-site ] || exit 1`: where this one was refused, none of them may do anything.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ -e /tmp/began ] || date +%s > /tmp/began
mkdir -p /tmp/ready /tmp/tree /tmp/site /tmp/data && cp "$here"/{join.sh,lane.sh,fetch.sh,ready.sh,ready-vllm.sh,there.sh,carry_model.py,pieces,commit} /tmp/ready/
[ ! -e "$here/more.tgz" ] || cp "$here/more.tgz" /tmp/ready/
for part in site data tree; do (tar xJf "$here/$part.tar.xz" -C "/tmp/$part" && touch "/tmp/ready/unpacked-$part") & done
wait
for part in site data tree; do [ -e "/tmp/ready/unpacked-$part" ] || { echo "SETUP: $part does not unpack"; exit 1; }; done
touch /tmp/ready-site
for what in $(cut -d' ' -f2 /tmp/ready/pieces | sort -u); do
    pid=$(cat "/tmp/ready/join-$what.pid" 2> /dev/null) && kill -0 "$pid" 2> /dev/null && continue # still at it
    (cd /tmp || exit; setsid bash /tmp/ready/join.sh "$what" >> "/tmp/ready/join-$what.log" 2>&1 < /dev/null & echo $! > "/tmp/ready/join-$what.pid")
done
echo "SETUP: ready-site, commit $(cut -c1-8 /tmp/ready/commit), GPUs $(nvidia-smi -L 2> /dev/null | wc -l), processors $(nproc)"
