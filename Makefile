# Needs only make and one of Python 3.11, 3.12 and 3.13. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation

# The interpreter that makes .venv; taken as given when set, else the first working one of 3.11, 3.12, 3.13.
PYTHON ?=
# make demo: MODEL=smollm2|minilm|vit, or a folder of yours  FULL=1 (everything)  SMALL=1 (smallest)  OUT=folder
MODEL ?= smollm2
OUT ?= demo_out
DEMO_FLAGS := $(if $(filter 1,$(FULL)),--full) $(if $(filter 1,$(SMALL)),--small)
PYTEST_ARGS ?=
# Processes of the test suite; a file's tests stay together, in the order of the folders: by their number of tests the
# few long ones would come last, and one process would wait for the other.
JOBS ?= 2
REMOTE_ARGS ?=
HOSTS_ARGS ?=
BENCH_ARGS ?=
FLOORS_ARGS ?=

export OMP_NUM_THREADS ?= 2
export MPLBACKEND ?= Agg
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# What runs below uses fetched weights only; unset to let a test reach a model hub.
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup demo test fuzz test-remote test-floors test-wheel test-hosts test-scale bench weights lint docs notebooks lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20
	@echo '  PYTHON=/path/to/python3.13 chooses the interpreter; MODEL=, SMALL=1, FULL=1, OUT= go to demo.'

setup: $(STAMP) ## .venv with every extra, pinned by constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@python='$(PYTHON)'; \
	if [ -z "$$python" ]; then \
	  for candidate in {,/usr/bin/,/usr/local/bin/}python3.{11,12,13} python3 python; do \
	    if "$$candidate" -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
	    then python=$$candidate; break; fi; \
	  done; \
	fi; \
	if [ -z "$$python" ]; then \
	  echo 'no Python 3.11, 3.12 or 3.13 with venv and ensurepip found; name one: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; \
	fi; \
	if [ ! -x $(BIN)/python ]; then echo "making $(VENV) with $$python"; "$$python" -m venv $(VENV); fi
	$(PIP) pip setuptools hatchling editables
	$(PIP) -e '.[all,dev]'
	@touch $@

weights: $(STAMP) ## fetch the real models (93 + 84 + 90 MB) and pictures (72 MB) once, into ~/.cache/sa_plugin
	$(BIN)/python docs/experiments/weights.py --model all
	$(BIN)/python docs/experiments/emoji_pictures.py

test: weights ## the test suite, with real weights; PYTEST_ARGS= is passed on
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

fuzz: $(STAMP) ## the fuzzers of tests/fuzz in their long form; PYTEST_ARGS= is passed on
	SA_PLUGIN_FUZZ=long OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s tests/fuzz $(PYTEST_ARGS)

test-remote: weights ## the remote tests against a real NDIF server on loopback; REMOTE_ARGS= is passed on
	$(BIN)/python tests/remote/run.py $(REMOTE_ARGS)

test-floors: weights ## the suite with every lower bound of pyproject.toml; FLOORS_ARGS= is passed on
	$(BIN)/python tests/floors.py $(FLOORS_ARGS)

test-wheel: weights ## the wheel alone with each host's extra, down to README's example
	$(BIN)/python tests/wheel_law.py --extra transformer-lens
	$(BIN)/python tests/wheel_law.py --extra nnsight

test-hosts: weights ## every stack in an environment of its own (1.5 GB each); HOSTS_ARGS= is passed on
	$(BIN)/python tests/hosts/run.py $(HOSTS_ARGS)

test-scale: weights ## scans on a real Ray of two nodes on loopback, with real weights; PYTEST_ARGS= is passed on
	SA_PLUGIN_SCALE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/scanning/test_cluster.py $(PYTEST_ARGS)

demo: $(STAMP) ## the whole method on a real model, into demo_out
	$(if $(filter $(MODEL),smollm2 minilm vit),$(BIN)/python docs/experiments/weights.py --model $(MODEL))
	$(if $(filter $(MODEL),vit),$(BIN)/python docs/experiments/emoji_pictures.py)
	$(BIN)/sa-plugin demo --model $(MODEL) --out $(OUT) $(DEMO_FLAGS)

bench: weights ## tests/benchmarks; BENCH_ARGS= is passed on
	$(BIN)/python tests/benchmarks/run.py $(BENCH_ARGS)

lint: $(STAMP) ## ruff, mypy and the contracts on imports, as CI runs them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(STAMP) ## the documentation site, into docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d docs/_build/doctrees docs docs/_build/html
	@echo 'open docs/_build/html/index.html'

notebooks: weights ## execute every notebook in the small setting, leaving the files as they are
	@for notebook in docs/notebooks/*.ipynb; do \
	  echo "$$notebook"; \
	  SA_PLUGIN_SMALL=1 $(BIN)/jupyter-execute --timeout=900 "$$notebook"; \
	done

lock: $(STAMP) ## write constraints.txt anew from .venv
	{ grep '^#' constraints.txt; \
	  $(BIN)/python -m pip freeze --all --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//' | sort -f; \
	} > constraints.txt.new
	mv constraints.txt.new constraints.txt
	touch $(STAMP)

clean: ## remove .venv, demo_out, dist, the built docs and tool caches; fetched weights stay
	rm -rf $(VENV) demo_out dist docs/_build docs/reference .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
