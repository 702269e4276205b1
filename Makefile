# make demo: train on handwritten digits and draw some; make test: run the tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test

demo: .venv/installed
	$(BIN)/python run_train.py experiment=digits hydra.run.dir=runs/demo
	$(BIN)/python run_vis.py load_dir=runs/demo 'label=[0,1,2,3,4,5,6,7,8,9]' w=1

test: .venv/installed
	$(BIN)/python -m pytest

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
