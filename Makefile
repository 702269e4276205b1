# make demo: train on handwritten digits and draw some; make test: run the tests; docs/contributing.md has the others.
PYTHON ?= python3
BIN := .venv/bin
# A worker for each core, so torch is told to leave the others alone.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: demo test quick check coverage

demo: .venv/installed
	$(BIN)/python run_train.py experiment=digits hydra.run.dir=runs/demo
	$(BIN)/python run_vis.py load_dir=runs/demo 'label=[0,1,2,3,4,5,6,7,8,9]' w=1

test: .venv/installed
	$(PYTEST)

quick: .venv/installed
	$(PYTEST) -m 'not slow and not slurm'

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

coverage: .venv/installed
	$(PYTEST) --cov --cov-report=term:skip-covered

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
