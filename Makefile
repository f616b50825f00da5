# Each target is enough by itself on a fresh clone: it makes $(VENV) and installs what it needs.
#   make train        prepare data, train configs/quickstart.yaml on $(RANKS) ranks, print samples
#   make test         the test suite          make test-slow   the tests that take minutes
#   make check        formatting, lint, types make format      mend what can be mended

VENV   ?= .venv
PYTHON ?= python3
GPUS   := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
RANKS  ?= $(if $(filter 1,$(GPUS)),1,2)
# What pip installs for torch, before anything else can pull in another build. Without a GPU this release has a
# CPU build on some indexes; choose your own with, say, make train TORCH="torch==2.11.0".
TORCH  ?= $(if $(filter-out 0,$(GPUS)),torch>=2.10,torch==2.13.0)

BIN := $(VENV)/bin
# Tools that DeepSpeed's first run builds its CPU communication op with are looked for on PATH.
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: train test test-slow check format clean
.DELETE_ON_ERROR:

train: $(VENV)/.train data/quickstart/dataset.json
	deepspeed --num_gpus $(RANKS) launchers/train.py --config configs/quickstart.yaml
	python tools/generate.py runs/quickstart --num-samples 3 --length 96 --temperature 0.8 --remasking random

data/quickstart/dataset.json: | $(VENV)/.train
	python tools/prepare_data.py stdlib --train-tokenizer 1024 --output data/quickstart

# Two workers share the files, one core each. A file stays with one worker, which makes its fixtures once.
# tests/conftest.py orders the files, the longest first.
PYTEST := OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.dev
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.dev
	$(PYTEST) -m slow

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
