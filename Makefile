# `make demo` and `make test` are all a newcomer needs: each makes its environment first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint format check bench clean

help:  ## show this list
	@sed -n 's/^\([a-z%-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: $(VENV)/made  ## train on handwritten digits, exact and smooth, and draw the result
	$(BIN)/mcgrad demo

test: $(VENV)/made  ## run the tests
	$(BIN)/pytest -n auto --dist worksteal

test-%: $(VENV)/made  ## run one of the other groups: slow, interop, distributed
	$(BIN)/pytest -n auto --dist worksteal -m $*

lint: $(VENV)/made  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/made  ## put the style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: $(VENV)/made  ## compare every closed-form gradient with autodiff and with differences
	$(BIN)/mcgrad check

bench: $(VENV)/made  ## time the losses against autodiff and against bare matrix products
	$(BIN)/python -m bench --json bench/results/cpu.json --plot bench/results/cpu.png \
		--growth bench/results/growth.png

clean:  ## remove the environments and everything that was made
	rm -rf .venv* dist mcgrad-demo .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/made: pyproject.toml
	@echo "Making $(VENV): the first time, a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[bench,demo,lint,test]"
	@touch $@
