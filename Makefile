# make demo and make test do everything on a fresh machine: Python >= 3.11 (venv, headers), git, make, a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Another package index for torch, for example a CUDA build: make setup TORCH_INDEX=<url>
TORCH_INDEX ?=
export PATH := $(abspath $(BIN)):$(PATH)
export PYTHONUNBUFFERED := 1

.PHONY: setup check test test-long demo bench golden docs clean

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "flan_tune needs Python 3.11 or newer, and $(PYTHON) is not one. Set PYTHON=<path of one>."; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || \
	  { echo "A C++ compiler is missing: DeepSpeed and torch build small CPU operators on first use."; \
	    echo "Install g++ (Debian, Ubuntu: apt-get install g++), then run the same command again."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[eval,track,report,dev]'
	@$(BIN)/python -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
	@touch $(STAMP)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# The matrices: everything marked `long`, and the laws on new examples. Not part of CI; under 90 minutes on two cores.
test-long: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ray]'
	FLAN_TUNE_EXPLORE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not long and not gpu"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "long and not gpu" $(ARGS)

demo: setup
	$(BIN)/flan-tune run recipes/quickstart/pipeline.yaml

bench: setup
	@for script in benchmarks/*.py; do echo "== $$script"; \
	  if [ -z "$$FLAN_TUNE_DATA" ] && grep -q 'FLAN_TUNE_DATA=<data root>' $$script; then \
	    echo "left out: it reads real data, and FLAN_TUNE_DATA is not set"; \
	  else OMP_NUM_THREADS=1 $(BIN)/python $$script || exit 1; fi; done

# Rewrites the golden texts and orders; say why in CHANGELOG.md, section Data.
golden: setup
	FLAN_TUNE_UPDATE_GOLDEN=1 $(BIN)/python -m pytest tests -k golden

# The docs are plain Markdown; this runs the commands' own help through the checker of links and examples.
docs: setup
	$(BIN)/python -m pytest tests/test_docs.py

clean:
	rm -rf runs build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
