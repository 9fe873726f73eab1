export PYTHONPATH=$PWD/src RUNE_CACHE=/tmp/rune PYTHONUNBUFFERED=1 JAX_PLATFORMS=cpu TOKENIZERS_PARALLELISM=false
export MODEL=/tmp/rune/models/qwen2.5-coder-0.5b-instruct PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
