# make quickstart and make test set up their own virtual environment; the second run starts at once.
# PYTHON=python3.12 make test uses another interpreter; pip's own settings (PIP_*) are honoured.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint clean

help:
	@echo "make quickstart   train on real data and print recommendations (under 3 minutes on 2 cores)"
	@echo "make test         run the whole test suite"
	@echo "make lint         check style and types"
	@echo "make clean        remove the virtual environment and what the quickstart wrote"

quickstart: $(INSTALLED)
	$(BIN)/python examples/quickstart.py

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and pinned: a looser request may bring a build for other hardware, gigabytes larger
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "twotower needs Python 3.10 or newer, this is " + sys.version.split()[0])'
	@echo "Setting up $(VENV) (once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[baselines,report,serve,test,lint]"
	@touch $@

clean:
	rm -rf $(VENV) runs
