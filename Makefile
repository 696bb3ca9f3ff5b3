# Two commands: `make demo` and `make test`. Both make their own environment in $(VENV) first; a second call reuses it.
PYTHON ?= python3
VENV ?= .venv
# Any pip requirement or wheel for torch, e.g. TORCH="torch==2.13.0" (see README).
TORCH ?= $(shell grep '^torch==' constraints.txt)
OUT ?= runs/demo

BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The tests' S3 server has an environment of its own. Where it cannot be made its tests are skipped, and say so.
S3 := $(VENV)/s3
export NEARID_S3_SERVER_PYTHON ?= $(abspath $(S3))/bin/python
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: demo test faults check bench env s3 clean
demo: $(READY)
	$(BIN)/python jobs/demo.py --output $(OUT) $(ARGS)

# Files of tests side by side: most of them wait for processes to start. PARALLEL= runs one test after the other.
PARALLEL ?= -n 2 --dist loadfile
test: check s3
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(PARALLEL) $(ARGS)

# Kills, partitions, full disks: an hour or more. What was seen goes to $(FAULTS), and as a table into docs/faults.md.
FAULTS ?= runs/faults/cells.jsonl
faults: $(READY) s3
	NEARID_FAULTS_REPORT=$(abspath $(FAULTS)) HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m faults $(ARGS); \
		ended=$$?; $(BIN)/python -m tests.faults.report $(FAULTS) docs/faults.md; exit $$ended

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python tests/benchmarks/pipeline.py $(ARGS)
	$(BIN)/python tests/benchmarks/ingest.py --views 3000
	$(BIN)/python tests/benchmarks/synthesis.py rates
	$(BIN)/python tests/benchmarks/head.py
	$(BIN)/python tests/benchmarks/training.py
	$(BIN)/python tests/benchmarks/sweep.py
	$(BIN)/python tests/benchmarks/metrics.py
	$(BIN)/python tests/benchmarks/scoring.py
	$(BIN)/python tests/benchmarks/serving.py
	$(BIN)/python tests/benchmarks/scaling.py

env: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or later is needed, $(PYTHON) is {v.major}.{v.minor}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[dev]'
	@touch $(READY)

s3: $(S3)/.ready

$(S3)/.ready: constraints-storage.txt
	@rm -rf $(S3)
	@{ $(PYTHON) -m venv $(S3) && $(S3)/bin/python -m pip install --quiet --disable-pip-version-check \
		--only-binary :all: -r constraints-storage.txt && touch $@; } \
		|| echo "the S3 server could not be installed: the tests on S3 will be skipped"

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache
