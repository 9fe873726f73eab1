#!/usr/bin/env bash
# There: pieces → model in the cache (see carry_model.py), and what else a run needs. Each part leaves a mark when it is there.
#   ready.sh tree FOLDER      FOLDER/tree.tar.xz → /tmp/tree, FOLDER/site.tar.xz → /tmp/site, FOLDER/data → /tmp/data
#   ready.sh model 0.5b       /tmp/pieces-0.5b, /tmp/data/0.5b → /tmp/cache/models/…; then /tmp/ready-0.5b
set -euo pipefail
cd "$(dirname "$0")"
case $1 in
tree)
    mkdir -p /tmp/tree /tmp/site /tmp/data
    tar xJf "$2/site.tar.xz" -C /tmp/site &
    tar xJf "$2/data.tar.xz" -C /tmp/data &
    tar xJf "$2/tree.tar.xz" -C /tmp/tree
    wait
    ;;
model)
    [ ! -e "/tmp/ready-$2" ] || exit 0
    . ./there.sh
    python3 carry_model.py join "/tmp/pieces-$2" "/tmp/data/$2" "/tmp/cache/models/qwen2.5-coder-$2-instruct"
    rm -rf "/tmp/pieces-$2"
    touch "/tmp/ready-$2"
    ;;
esac
