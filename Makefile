# `make demo` and `make test` are all that is needed: each sets up .venv once, from the versions in constraints.txt.

PYTHON ?=
JOBS ?= 2
BENCH ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-from-constraints
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal --doctest-modules tests torch_strongdual

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow bench lint types clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP)  ## make .venv and install the pinned packages (the other targets do it when needed)

demo: $(STAMP)  ## train five networks on real data and certify each: a table, a JSON record, a picture
	@echo "[demo] python -m torch_strongdual.recipes.quickstart"
	@$(BIN)/python -m torch_strongdual.recipes.quickstart

test: $(STAMP)  ## run the tests and the examples in docstrings, all but the slow ones
	@echo "[test] main suite and docstring examples, $(JOBS) processes"
	@$(PYTEST) -m "not slow"

test-slow: $(STAMP)  ## run the slow tests
	@echo "[test] slow suite, $(JOBS) processes"
	@$(PYTEST) -m slow

bench: $(STAMP)  ## measure speed as ratios to references, all benchmarks (BENCH=--quick: two minutes)
	@echo "[bench] python -m benchmarks $(BENCH)"
	@$(BIN)/python -m benchmarks $(BENCH)

lint: $(STAMP)  ## check style and formatting
	@echo "[lint] ruff check, ruff format --check"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

types: $(STAMP)  ## check types, strictly
	@echo "[types] mypy --strict over the package (callbacks and recipes included) and the tests"
	@$(BIN)/mypy --strict -p torch_strongdual -p tests

clean:  ## remove .venv, caches and build output
	rm -rf $(VENV) build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A .venv that works is kept and brought to the pinned versions; one that does not is made anew.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@usable() { "$$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }; \
	if ! usable $(BIN)/python; then \
		for candidate in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
			if usable "$$candidate"; then found="$$candidate"; break; fi; \
		done; \
		if [ -z "$${found:-}" ]; then \
			echo "No usable Python 3.11 or newer (with venv) among: $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python)." >&2; \
			echo "Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
			exit 1; \
		fi; \
		echo "[setup] making $(VENV) with $$found ($$("$$found" --version 2>&1))"; \
		"$$found" -m venv --clear $(VENV); \
	fi
	@echo "[setup] installing the packages of constraints.txt into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt setuptools
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@
	@echo "[setup] done"
