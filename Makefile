# Two targets do everything on a machine with only Python 3.11: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
STORE ?= results
.DEFAULT_GOAL := help
.PHONY: help demo test test-ray test-others rehearsal quick lint format bench docs clean

help:  ## What can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

# The stamp is touched last: an interrupted installation starts again.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one with make PYTHON=python3.11")'
	@echo "Installing the environment into .venv (PyTorch, Ray, Optuna and what they need, by constraints.txt): about two minutes, once"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --quiet --constraint constraints.txt --editable '.[dev,dashboards]'
	touch $@

.venv: .venv/installed  ## The environment, from constraints.txt

demo: .venv/installed  ## The main job: simulate, shard, sweep, fit, report (8 to 18 minutes on the 2 cores of three machines, the environment included)
	$(BIN)/scaling run experiments.demo --store $(STORE)

test: .venv/installed  ## All tests that need no GPU and no browser, but for the rehearsal's
	@echo "Testing in two processes, each of which prints when it has ended"
	$(MAKE) --jobs 2 --output-sync=target test-ray test-others

test-ray test-others: .venv/installed
	$(BIN)/pytest -m "$(if $(filter %-ray,$@),,not )ray and not gpu and not browser and not rehearsal"

rehearsal: .venv/installed  ## The tests on clusters of several nodes, all on this machine, and of killed workers (about 9 minutes)
	$(BIN)/pytest -m "rehearsal and not gpu"

quick: .venv/installed  ## The tests that start no Ray cluster
	$(BIN)/pytest -m "not gpu and not ray and not slow"

bench: .venv/installed  ## Ratios against the limits (about 11 minutes on 2 cores; more rows by hand, see docs/benchmarks.md)
	for name in encodings conversion cache_memory object_store batches hosts training; do $(BIN)/python -m benchmarks.$$name || exit 1; done
	$(BIN)/python -m benchmarks.fits --starts 450 --refits 400

lint: .venv/installed  ## What pre-commit runs
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: .venv/installed  ## The pages, in build/docs/index.html; fails at a link that leads nowhere
	$(BIN)/mkdocs build --strict --quiet

format: .venv/installed  ## Format and sort imports
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:  ## Remove the environment (never the store)
	rm -rf .venv
