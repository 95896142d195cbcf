# make demo    the live stream, from nothing: environment, install, server, URL
# make test    the tests, from nothing; test-slow and test-mutations are longer ones, and test-kernels
#              installs Triton (1 GB) and runs the GPU's kernels in its interpreter
# make viewers writes apps/viewers/vendor anew from npm's packages (Node 20); what is there is committed
# PYTHON=... chooses the interpreter (3.11 or newer), VENV=... its folder, ARGS=... options for the demo.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint $(CONSTRAINTS)
PACKAGING := pyproject.toml setup.py $(CONSTRAINTS)

.PHONY: demo test test-slow test-mutations test-kernels test-gpu lint viewers clean

demo: $(VENV)/.installed
	$(BIN)/fewstep stream $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/pytest

test-slow: $(VENV)/.installed-test
	$(BIN)/pytest -m 'slow and not gpu and not mutation'

test-mutations: $(VENV)/.installed-test
	$(BIN)/pytest -m mutation tests/core/objectives/test_mutations.py

test-kernels: $(VENV)/.installed-test
	@$(PIP) 'triton>=3'
	$(BIN)/pytest tests/modalities/video/test_triton_kernels.py

test-gpu: $(VENV)/.installed-test
	$(BIN)/pytest -m gpu

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Outside the package, or the wheel would hold node_modules.
viewers:
	mkdir -p build/viewers
	cp apps/viewers/bundle/* build/viewers
	npm ci --ignore-scripts --no-audit --no-fund --prefix build/viewers
	node build/viewers/bundle.mjs apps/viewers/vendor

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

# Debian ships venv without pip unless python3-venv is installed; then the system's pip fills it.
$(BIN)/python:
	@echo "Creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fewstep needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
	    $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	    $(PYTHON) -m pip --python $(VENV)/bin/python install -qq pip; }

$(VENV)/.installed: $(PACKAGING) | $(BIN)/python
	@echo "Installing fewstep and what it needs (about a minute)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: $(PACKAGING) | $(BIN)/python
	@echo "Installing fewstep, what it needs and the test tools (about a minute)"
	@$(PIP) --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: $(PACKAGING) | $(BIN)/python
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.installed-test $(VENV)/.installed
