# Two commands: `make demo` and `make test`. Both make their own environment in $(VENV) first; a second call reuses it.
PYTHON ?= python3
VENV ?= .venv
# Any pip requirement or wheel for torch, e.g. TORCH="torch==2.13.0" (see README).
TORCH ?= $(shell grep '^torch==' constraints.txt)
OUT ?= runs/demo

BIN := $(VENV)/bin
READY := $(VENV)/.ready
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: demo test check bench env clean
demo: $(READY)
	$(BIN)/python jobs/demo.py --output $(OUT) $(ARGS)

test: check
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python tests/benchmarks/pipeline.py $(ARGS)

env: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or later is needed, $(PYTHON) is {v.major}.{v.minor}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache
