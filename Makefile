# `make` and `make help` list the targets.
PYTHON ?= python3
BIN := .venv/bin
# pytest starts a worker on each core, so each worker's torch is limited to one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast lint coverage

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

install: .venv/installed ## make .venv and install requirements.txt into it; every target below does so when needed

demo: .venv/installed ## train on handwritten digits, sample ten of each class, and write the page of the run
	$(BIN)/python run_train.py experiment=digits hydra.run.dir=runs/demo
	$(BIN)/python run_vis.py load_dir=runs/demo 'label=[0,1,2,3,4,5,6,7,8,9]' w=1 sampling.method=multistep
	$(BIN)/python -m evaluation.page runs/demo

test: .venv/installed ## run all tests but those that need a Slurm cluster or a browser
	$(PYTEST)

test-fast: .venv/installed ## run the tests that take less than ten seconds each
	$(PYTEST) -m 'not slow and not slurm and not browser'

lint: .venv/installed ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

coverage: .venv/installed ## run the tests and list the lines that none of them runs
	$(PYTEST) --cov --cov-report=term:skip-covered

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
