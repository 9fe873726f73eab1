#!/usr/bin/env bash
# Here: the tree for the machine, without results, into .carry/data (the corpus, the arena and the wheels lie there already).
set -euo pipefail
cd "$(dirname "$0")/../.."
git archive HEAD src studies tools pyproject.toml | gzip > .carry/data/tree.tar.gz
du -sh .carry/data/* .carry/gguf/*
