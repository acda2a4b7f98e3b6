# `make` alone lists the targets.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Bytes-identical runs need a fixed number of threads; two is what CI has.
export OMP_NUM_THREADS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint protos soak clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/ready ## Make .venv with all that demo and test need

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --progress-bar off --quiet --constraint constraints.txt --editable ".[cpu,dev,bench,demo]"
	@touch $@

demo: setup ## Train on real films, serve them, and watch three events move the list
	$(BIN)/python -m bench.demo

test: setup ## Run the tests
	$(BIN)/python -m pytest

lint: setup ## Run ruff, mypy and buf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf breaking --against tests/contract/towerbridge.v1.binpb

protos: setup ## Write the stubs of protos/ to client/
	PYTHON=$(CURDIR)/$(BIN)/python protos/generate.sh

soak: setup ## Run what is too long for the tests; results go to docs/soak/*.json
	$(BIN)/python -m bench.soak

clean: ## Remove .venv, caches and the demo's data
	rm -rf $(VENV) demo-data .pytest_cache .mypy_cache .ruff_cache .hypothesis
