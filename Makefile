# `make quickstart` and `make test` work on a machine with Python 3.11 and nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup quickstart test test-all test-gpu test-dist test-lowest check format docs pictures bench dist \
	constraints clean

help:  ## Print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: .venv/installed  ## Create .venv with dmoe and everything pinned in constraints.txt

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "dmoe needs Python 3.11 or newer; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

quickstart: setup  ## From raw log through trained models to an HTML report
	$(BIN)/dmoe quickstart --output quickstart

# A thread each: processes that wait for each other's threads would take longer than one alone.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test: setup  ## Run the tests
	$(PYTEST) -m 'not slow and not release'

test-all: setup .venv/docs  ## Run the tests, the slow ones too
	$(PYTEST) -m 'not release'

test-dist: .venv/docs  ## Install the wheel into bare environments, core, each extra, all, and run it there (gigabytes, an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/release -m release -s

test-lowest: .venv/docs  ## Run the quick tests of the core with the lowest versions that pyproject.toml allows
	$(BIN)/python -m tests.release.lowest

# Wherever torch finds a device; one process, as they share its memory.
test-gpu: setup  ## Run the tests that need a CUDA device
	$(BIN)/python -m pytest tests/gpu tests/kernels/test_row_triton.py tests/optim/test_deferred_triton.py \
		tests/training/test_device_tables.py

check: setup  ## Lint, format check, types, and what may import what
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## Put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Packages of the site and of releases are not needed to run or test dmoe, so they come only here.
.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs,release]'
	touch $@

docs: .venv/docs  ## Build the site, tutorials executed, warnings are errors: build/docs/index.html
	$(BIN)/python -m sphinx --nitpicky --fail-on-warning --keep-going -b html docs build/docs

pictures: setup  ## Draw the pictures of the README and the site anew (Chromium, Node.js)
	$(BIN)/python -m benchmarks.pictures

dist: .venv/docs  ## Wheel and sdist into dist/, their contents checked
	$(BIN)/python -m tests.release.contents dist

constraints: .venv/docs  ## Complete constraints.txt; UPGRADE=1 takes the newest versions
	$(BIN)/python -m tests.release.constraints $(if $(UPGRADE),--upgrade)

bench: setup  ## Speed and memory against peers and the hardware's own limits
	$(BIN)/python -m benchmarks

clean:  ## Remove what the other targets made
	rm -rf .venv quickstart build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
