# `make demo`: from nothing to a trained detector and its images, about two minutes of CPU. `make demo-full`: the same with
# the whole built-in set, a larger network, validation and report, in some minutes of CPU. `make test`: the test suite.
# `make lint`: style and types. `make docs`: the pages of docs/ as a site, in site/. `make fuzz MINUTES=30`: damaged inputs
# of every kind for a time, then as long each, guided by coverage, pickles and rows (atheris, Linux).
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DEMO := runs/demo
TOO_OLD := " is too old, expected 3.11 or newer: make PYTHON=python3.11 ..."

MINUTES := 30

.PHONY: demo demo-full test lint docs fuzz clean

demo: $(VENV)/.installed
	$(RUN) tools/demo.py --project $(DEMO)

demo-full: $(VENV)/.installed
	$(RUN) tools/demo.py --full --project $(DEMO)-full

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

fuzz: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(RUN) tools/fuzz.py --minutes $(MINUTES)
	$(RUN) -m pip install --disable-pip-version-check atheris
	OMP_NUM_THREADS=1 $(RUN) tools/fuzz_coverage.py --target pickle --minutes $(MINUTES)
	OMP_NUM_THREADS=1 $(RUN) tools/fuzz_coverage.py --target rows --minutes $(MINUTES)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python " + sys.version.split()[0] + $(TOO_OLD))'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(RUN) -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: $(addprefix requirements-,$(addsuffix .txt,dev export search tensorboard)) $(VENV)/.installed
	$(RUN) -m pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

$(VENV)/.installed-docs: requirements-docs.txt | $(VENV)/bin/python
	$(RUN) -m pip install --disable-pip-version-check -r requirements-docs.txt
	touch $@

clean:
	rm -rf $(VENV) $(DEMO) $(DEMO)-full datasets/shapes datasets/shapes-demo site
