# Everything runs in .venv, which the first target that needs it makes; a second call reuses it.
# Stamp files in .venv remember what was installed, and for which pyproject.toml and constraints.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PARTS := pyproject.toml constraints.txt

# Nothing is looked up on a model hub, and tests of one process do not fight for two cores.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint bench venv clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'

demo: .venv/installed ## watch the tree at work, then compare with plain decoding (3 minutes)
	@$(BIN)/adaptive-spec demo

test: .venv/dev ## all tests, those on the real model included (fetched first)
	@$(BIN)/adaptive-spec models fetch smollm2-135m
	@$(BIN)/python -m pytest -m "not real"
	@$(BIN)/python -m pytest -m real

test-fast: .venv/dev ## the tests that need neither the network nor the real model
	@$(BIN)/python -m pytest -m "not real"

lint: .venv/dev ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: .venv/installed ## a short benchmark: plain and speculative on HumanEval, in bfloat16
	@$(BIN)/adaptive-spec bench --suite humaneval --limit 5 --max-new-tokens 64 --dtype bfloat16 \
	  --policies plain,fixed:16 --peers hf --repeats 2 --out runs/bench

venv: .venv/dev ## the environment with everything that development needs

clean: ## remove the environment, caches and results
	rm -rf .venv build dist runs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/made:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is needed; name one with: make PYTHON=/path/to/python3.11 ...")'
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/installed: .venv/made $(PARTS)
	@echo "installing the package and its dependencies (torch is large; once only)"
	@$(PIP) install -c constraints.txt -e .
	@touch $@

.venv/dev: .venv/installed $(PARTS)
	@echo "installing what tests and checks need"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@
