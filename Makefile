# Two commands do all the set-up: `make demo` (environment, model, the main job) and `make test` (environment, tests).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.rune-installed

.PHONY: help env demo test test-all check nightly test-slow fuzz test-model test-model-small test-vllm lint mutants mutants-wide bench bench-check bench-score bench-generate bench-hypernet bench-report bench-stats bench-registry bench-serve bench-serve-beside bench-remember report-check families clean
help:               ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Rune needs Python 3.11 or newer; run: make PYTHON=python3.11 …"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "no venv module: apt-get install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet 'torch==2.13.0'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

env: $(STAMP)       ## the environment in .venv

demo: $(STAMP)      ## the whole experiment, small, on a laptop CPU
	$(BIN)/rune models pull qwen2.5-coder-0.5b-instruct
	$(BIN)/rune run configs/phase1-demo.toml --dry-run
	$(BIN)/rune run configs/phase1-demo.toml --resume || [ $$? -eq 10 ]

test: $(STAMP)      ## fast tests: no model, no network
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(STAMP)  ## fast tests and those of `make check`; every sandbox backend must be here
	RUNE_HOSTILE=all $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -rs -m "not model and not slow and not vllm"

check: lint test-all mutants test-model-small report-check bench-check  ## all that must hold before a release (about an hour on 2 cores)

nightly: check test-slow test-model test-vllm mutants-wide fuzz  ## what takes hours: slow tests, both real models, vLLM, random breakages, fuzzing

test-slow: $(STAMP) ## tests that take minutes each
	$(BIN)/python -m pytest -m slow

fuzz: $(STAMP)      ## damaged trajectory files and frames of hostile children, many thousands; SEED=1
	$(BIN)/python tests/fuzz/campaign.py --seed $${SEED:-1}
	$(BIN)/python tests/hostile/frame_fuzz.py --sequences 200000 --seed $${SEED:-1}

test-model: $(STAMP) ## every stage with a real model
	$(BIN)/rune models pull smollm2-135m-instruct
	$(BIN)/rune models pull qwen2.5-coder-0.5b-instruct
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m "model"

test-model-small: $(STAMP) ## every stage with the real 135M model (CI)
	$(BIN)/rune models pull smollm2-135m-instruct
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m model tests/pipeline/test_real_model.py

test-vllm:          ## the engine contract against real vLLM on CPU, in .venv-vllm
	tests/vllm/run.sh

lint: $(STAMP)      ## ruff, mypy, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/lint_names.py

mutants: $(STAMP)   ## deliberate breakages, each must be caught
	$(BIN)/python tools/mutants.py

mutants-wide: $(STAMP) ## random breakages, 120 of some thousands; at least 90 % must be caught
	$(BIN)/python tools/mutants_wide.py --sample 120 --seed $${SEED:-1}

bench: bench-score bench-generate bench-hypernet bench-report bench-stats bench-registry bench-serve ## every benchmark; each writes JSON under results/

bench-score: $(STAMP)
	$(BIN)/python bench/score.py

bench-generate: $(STAMP)
	$(BIN)/rune models pull smollm2-135m-instruct
	OMP_NUM_THREADS=1 $(BIN)/python bench/generate.py --model "$$($(BIN)/rune models path smollm2-135m-instruct)" --out results/bench-generate-cpu

bench-hypernet: $(STAMP)
	$(BIN)/python bench/hypernet.py --out results/bench-hypernet-cpu.json

bench-report: $(STAMP)
	$(BIN)/python bench/reporting.py

bench-stats: $(STAMP)
	$(BIN)/python bench/stats.py

bench-registry: $(STAMP)
	$(BIN)/python bench/registry.py

bench-serve: $(STAMP)
	$(BIN)/python bench/serve.py --check

bench-serve-beside: $(STAMP) ## rune serve over torch, vLLM's own server and rune serve over vLLM, on one machine (needs vLLM and a GPU)
	$(BIN)/python bench/serve_beside.py --model "$$($(BIN)/rune models path qwen2.5-coder-0.5b-instruct)" --out results/bench-serve-beside

bench-remember: $(STAMP) ## a session goes in, an answer changes: the 0.5B on two CPU cores, by curl
	$(BIN)/python bench/remember.py --check
	$(BIN)/python tools/findings.py

bench-check: $(STAMP) ## limits that benchmarks hold themselves against
	$(BIN)/python bench/stats.py --check
	$(BIN)/python bench/reporting.py --check
	$(BIN)/python bench/registry.py --check
	$(BIN)/python bench/plan.py --check

report-check: $(STAMP) ## the committed run's report in headless Chromium; screenshots in artifacts/
	$(BIN)/python tests/report/browser.py results/phase1-0.5b --out artifacts

families: $(STAMP)  ## recall and transfer on held-out task families (one GPU, about six minutes)
	$(BIN)/python studies/private-conventions/corpus.py
	$(BIN)/rune run configs/families-0.5b.toml

clean:
	rm -rf build dist *.egg-info artifacts
