# Two commands for a newcomer: `make demo` and `make test`. Both create .venv when it is missing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# More options for pytest, for example PYTEST_ARGS="--data-dir /data --parity-dir /parity".
PYTEST_ARGS ?=
BENCH_ARGS  ?=
DEMO_ARGS   ?=

.PHONY: help demo test lint bench format clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(VENV)/.all ## install, then train, evaluate and explain on simulated data
	@$(BIN)/manyhead demo $(DEMO_ARGS)

test: $(VENV)/.dev ## install the dev extra, then run the tests
	@$(BIN)/pytest -c pyproject.toml -n auto tests notebooks $(PYTEST_ARGS)

lint: $(VENV)/.dev ## formatting, lint, types and import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(VENV)/.dev ## measure speed and memory; results go to benchmarks/results
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

format: $(VENV)/.dev ## rewrite the sources in house style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## remove the environment and tool caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || { echo "make: $(PYTHON) not found; install python3 (3.11 or newer) and python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: manyhead needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1); run: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: $(PYTHON) -m venv failed; install the package python3-venv" >&2; exit 1; }

# The stamps make a second call take no time; a changed pyproject.toml installs again.
$(VENV)/.all: pyproject.toml | $(BIN)/python
	@test $(VENV)/.dev -nt pyproject.toml || { echo "installing manyhead[all] into $(VENV) (minutes, once)"; $(BIN)/pip install --quiet --disable-pip-version-check -e ".[all]"; }
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing manyhead[dev] into $(VENV) (minutes, once)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@
