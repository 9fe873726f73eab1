#!/usr/bin/env bash
# There: the pieces of vLLM's unpacked wheels → /tmp/sitev, compiled to bytecode; then /tmp/ready-vllm.
#   ready-vllm.sh SHA256 [MORE.tgz …]      /tmp/pieces-vllm/p??; further archives are unpacked over it
set -euo pipefail
[ ! -e /tmp/ready-vllm ] || exit 0
sum=$1
shift
mkdir -p /tmp/sitev
cat /tmp/pieces-vllm/p?? > /tmp/sitev.tgz
echo "$sum  /tmp/sitev.tgz" | sha256sum -c
for archive in /tmp/sitev.tgz "$@"; do tar xzf "$archive" -C /tmp/sitev; done
rm -rf /tmp/sitev.tgz /tmp/pieces-vllm
python3 -m compileall -q -j 0 /tmp/sitev > /dev/null 2>&1 || true # files for other Python versions do not compile
touch /tmp/ready-vllm
