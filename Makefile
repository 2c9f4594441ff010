# Every target sets up what it needs in $(VENV), and uses that again as long as the requirements stay the same.
PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2
ARGS    ?=
NAMES   ?=
BIN     := $(VENV)/bin
# A Python that was asked for must be the one that runs; the default one only makes a new environment.
SETUP   := .ci/setup "$(VENV)" "$(PYTHON)" $(if $(filter file,$(origin PYTHON)),any,exact)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-long test-lowest bench prepare export readme check docs setup setup-run clean
MAKEFLAGS += --no-print-directory

help: ## show this list
	@echo "make TARGET [PYTHON=python3.12] [VENV=.venv] [WORKERS=2] [ARGS='arguments for pytest'] [NAMES='benchmarks']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s%s\n", $$1, $$2 }' Makefile

demo: setup-run ## ask the offline model two questions about the Python language reference
	@$(BIN)/python -m rlm demo

test: setup ## run the tests, the notebooks among them
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-long: setup ## the tests that take minutes, such as hundreds of kills at random moments
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m long $(ARGS)

test-lowest: ## the same with the lowest version of every requirement, in an environment of its own
	@$(MAKE) test VENV=.venv-lowest LOWEST=1

bench: setup ## measure against the floor: tables, and JSON
	@$(BIN)/python benchmarks/run.py $(NAMES) --json bench.json

prepare: export readme check test ## export, clean, README, tests: before every commit

export: setup ## write rlm/ from nbs/, and clean the notebooks
	@$(BIN)/nbdev-export
	@$(BIN)/nbdev-clean

readme: setup ## write README.md from nbs/index.ipynb
	@$(BIN)/python .ci/readme.py

check: setup ## is all that is generated up to date, are the notebooks clean, is the import graph in order?
	@$(BIN)/python .ci/check.py

docs: setup ## build the documentation site in _docs/ (needs Quarto)
	@command -v quarto >/dev/null || { \
	    echo "make docs needs Quarto, which pip cannot install: see https://quarto.org/docs/get-started/" >&2; exit 1; }
	@$(BIN)/nbdev-docs

setup: ## only make the environment with all that development needs
	@LOWEST=$(LOWEST) $(SETUP) dev

setup-run:
	@$(SETUP) run

clean: ## remove the environments and everything that is built
	rm -rf .venv* _docs _proc build dist *.egg-info nbs/nbdev.yml nbs/sidebar.yml .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
