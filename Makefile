# Every target makes and fills its own virtual environment; nothing has to be installed first.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
ONLY   ?=

.PHONY: help search test test-slow lint bench clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/made: 
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed: $(VENV)/made pyproject.toml
	$(BIN)/pip install --quiet --editable '.[digits]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

search: $(VENV)/installed ## search two minutes on digits, check the winners on fresh seeds, export the best
	$(BIN)/normact search experiment=first_search

test: $(VENV)/installed-dev ## the tests (at most 15 minutes on two cores)
	$(BIN)/python -m pytest -m 'not slow'

test-slow: $(VENV)/installed-dev ## the longer tests (at most 30 minutes)
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed-dev ## benchmarks; ONLY=NAME picks one, see CONTRIBUTING.md
	$(BIN)/python -m tests.benchmarks $(ONLY)

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
