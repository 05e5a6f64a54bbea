# Everything runs in .venv, which the first target that needs it makes; a second call reuses it.
# Stamp files in .venv remember what was installed, and for which pyproject.toml and constraints.

OK := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '$(OK)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Tiny models gain nothing from a second thread, so the second core gets a second process.
FAST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not real" -n 2
PARTS := pyproject.toml constraints.txt

# Nothing is looked up on a model hub at run time.
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
	@$(FAST)
	@$(BIN)/python -m pytest -m real

test-fast: .venv/dev ## the tests that need neither the network nor the real model
	@$(FAST)

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
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: make PYTHON=/path/to/it ..."; exit 1; }
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
