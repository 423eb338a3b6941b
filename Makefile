# Every target sets up what it needs: .venv is made once and again when pyproject.toml or constraints.txt change.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.setup-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
# A folder of local wheels that pip is configured with, if any: uv does not read pip's settings.
FIND_LINKS := $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)
# Where there is no NVIDIA driver, PyTorch's CPU build: it is a tenth of the size.
TORCH_BACKEND := $(if $(shell command -v nvidia-smi 2>/dev/null),auto,cpu)
QUICK := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 -rs

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint docs clean

help:
	@echo "make demo      set up, then train a small model from random weights and make it reason (5 minutes)"
	@echo "make test      set up, then lint, types and tests (under 10 minutes on two cores)"
	@echo "make test-all  the slow proofs too: kills and resumes, several processes"
	@echo "make lint      format check, lint, types"
	@echo "make docs      the documentation as a static site in site/"

setup: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Fiducial needs Python 3.11 or newer: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	@# torch first and alone: anything that asked for it by a range would bring gigabytes of CUDA
	$(if $(FIND_LINKS),$(BIN)/python -m pip install --quiet -r constraints.txt,$(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend=$(TORCH_BACKEND) -r constraints.txt)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt $(foreach F,$(FIND_LINKS),--find-links $(F)) -e '.[dev]'
	rm -f .venv/.setup-*
	touch $@

demo: setup
	$(BIN)/python -m fiducial.demo

lint: setup
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/pyright

test: lint
	$(QUICK)

test-all: lint
	$(QUICK) -m ''

docs: setup
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt $(foreach F,$(FIND_LINKS),--find-links $(F)) -e '.[docs]'
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean:
	rm -rf .venv build site
