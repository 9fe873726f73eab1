# There, to be sourced: what ready.sh has made.
export PYTHONPATH=/tmp/tree/src:/tmp/site RUNE_CACHE=/tmp/cache PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 JAX_PLATFORMS=cpu TOKENIZERS_PARALLELISM=false
export MODEL=/tmp/cache/models/qwen2.5-coder-0.5b-instruct PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
