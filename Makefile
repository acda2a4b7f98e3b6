# `make` alone lists the targets.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# make gpu-check: on a GPU it has an environment of its own, since faiss-cpu and faiss-gpu own the same folder.
DEVICE ?= cuda:0
SIZE ?= full
EXTRA ?= cpu
CHECK_EXTRA := $(if $(filter cpu,$(DEVICE)),cpu,gpu)
CHECK_VENV := $(if $(filter cpu,$(DEVICE)),$(VENV),.venv-gpu)
# Bytes-identical runs need a fixed number of threads; two is what CI has.
export OMP_NUM_THREADS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint protos soak gpu-check gpu-wiring clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/ready ## Make .venv with all that demo and test need

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --progress-bar off --quiet --constraint constraints.txt --editable ".[$(EXTRA),training,dev,bench,demo]"
	@$(BIN)/pip install --progress-bar off --quiet --constraint constraints.txt --editable ".[peers]" \
	  || echo "hnswlib was not installed (it needs a C++ compiler): bench.index measures without it"
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
	$(BIN)/python -m tests.index.soak
	$(BIN)/python -m tests.server.soak
	$(BIN)/python -m bench.soak

gpu-check: ## Test and measure on a GPU, into docs/gpu (DEVICE=cpu SIZE=tiny: anywhere, into build/)
	$(MAKE) setup VENV=$(CHECK_VENV) EXTRA=$(CHECK_EXTRA)
	$(CHECK_VENV)/bin/python -m bench.gpu_check --device $(DEVICE) --size $(SIZE) \
	  $(if $(filter cpu,$(DEVICE)),--out build/gpu-check)

gpu-wiring: setup ## See, without a GPU, whether our code fits faiss-gpu and cupy; into docs/gpu/wiring.md
	$(BIN)/python -m bench.gpu_wiring

clean: ## Remove .venv, caches and the demo's data
	rm -rf $(VENV) .venv-gpu build demo-data .pytest_cache .mypy_cache .ruff_cache .hypothesis
