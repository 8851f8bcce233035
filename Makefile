# `make demo` and `make test` are all a newcomer needs: each makes its environment first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint format check docs bench clean

help:  ## show this list
	@sed -n 's/^\([a-z%-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: $(VENV)/made  ## train on handwritten digits, exact and smooth, and draw the result
	$(BIN)/mcgrad demo

test: $(VENV)/made  ## run the tests
	$(BIN)/pytest -n auto --dist worksteal

test-%: $(VENV)/made-%  ## run one of the other groups: slow, interop, distributed, notebooks, browser
	$(BIN)/pytest -n auto --dist worksteal -m $*

# Eight simulated devices.
test-distributed: export XLA_FLAGS = --xla_force_host_platform_device_count=8

lint: $(VENV)/made  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/made  ## put the style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: $(VENV)/made  ## compare every closed-form gradient with autodiff and with differences
	$(BIN)/mcgrad check

docs: $(VENV)/made-docs  ## build the site, docs/_build/html/index.html
	$(BIN)/sphinx-build -W -n --keep-going -b html docs docs/_build/html

bench: $(VENV)/made  ## time the losses against autodiff and against bare matrix products
	$(BIN)/python -m bench --json bench/results/cpu.json --plot bench/results/cpu.png \
		--growth bench/results/growth.png

clean:  ## remove the environments and everything that was made
	rm -rf .venv* dist mcgrad-demo docs/_build docs/generated docs/notebooks .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/made: pyproject.toml
	@echo "Making $(VENV): the first time, a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[bench,demo,lint,test]"
	@touch $@

# What one group of tests needs beside that.
.PRECIOUS: $(VENV)/made-%
$(VENV)/made-%: $(VENV)/made
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@
