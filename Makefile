# graphattn: `make train` and `make test` do everything on a machine with Python >= 3.10 and make.
# An activated environment (venv or conda) is used as it is; otherwise .venv is created here.
#
# Variables, as in `make train CONFIG=experiments/zinc/small.yaml`:
#   CONFIG       what `make train` runs
#   PYTHON       the interpreter that creates .venv (default: the first python3 >= 3.10 found)
#   TORCH_INDEX  extra package index for torch, or "none". Default: PyTorch's CPU builds on a Linux machine
#                without a GPU, where they can be reached; pip's own configuration everywhere else.
#   WORKERS      test processes (default 2);  PYTEST_ARGS: more arguments for pytest

CONFIG ?= experiments/pattern/small.yaml
WORKERS ?= 2
PYTEST_ARGS ?=
TORCH_INDEX ?=
export TORCH_INDEX

ENV := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX),.venv)
BIN := $(ENV)/bin
INSTALL := $(BIN)/python .ci/install.py

.PHONY: help train test lint install clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

train: $(BIN)/python  ## install, then train the main model with progress; table and picture under runs/
	@$(INSTALL) train
	$(BIN)/graphattn fit --config $(CONFIG) --run.if_exists=resume

test: $(BIN)/python  ## install everything, then run the tests
	@$(INSTALL) all,dgl
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -q -rs $(PYTEST_ARGS)

lint: $(BIN)/python  ## install everything, then check style, types and the direction of imports
	@$(INSTALL) all,dgl
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(BIN)/python  ## install everything, as `make test` does, and stop
	@$(INSTALL) all,dgl

clean:  ## remove .venv, caches and build output (never runs/)
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(BIN)/python:
ifneq ($(ENV),.venv)
	@echo "[install] the activated environment $(ENV) has no bin/python; leave it or install Python in it" >&2; exit 1
else
	@for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.10 python; do \
	    if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then \
	        echo "[install] creating .venv with $$($$candidate --version)"; \
	        $$candidate -m venv .venv && exit 0; \
	        rm -f .venv/bin/python; \
	        echo "[install] $$candidate cannot create environments (on Debian: apt install python3-venv)" >&2; \
	        exit 1; \
	    fi; \
	done; \
	echo "[install] no Python >= 3.10 found; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1
endif
