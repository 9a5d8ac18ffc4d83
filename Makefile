# Two commands for a new user: `make demo`, then `make test`. Everything is installed into .venv, pinned.

PYTHON ?= python3
BIN := .venv/bin
OUT := out/demo
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all lint bench docs
.DELETE_ON_ERROR:

## Compile the bundled checkpoint, check it, run it on the held-out digits; results in out/demo (what was compared
## after every pass is in checks.txt).
demo: .venv/installed
	mkdir -p $(OUT)
	$(BIN)/cstep compile spikformer-2-96 --checkpoint examples/spikformer-digits.safetensors --calibration digits \
		--test digits --output $(OUT)/digits.cstep --dump-ir $(OUT)/ir > $(OUT)/checks.txt
	@tail -n 2 $(OUT)/checks.txt
	$(BIN)/cstep disasm $(OUT)/digits.cstep --output $(OUT)/digits.asm
	$(BIN)/cstep run $(OUT)/digits.cstep digits --report $(OUT)

## The test suite, but for what takes minutes.
test: .venv/installed-for-tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=12 -m "not slow"

## All of it.
test-all: .venv/installed-for-tests
	$(BIN)/python -m pytest -q

## What every change must pass beside the tests.
lint: .venv/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m isa.manual | diff docs/isa.md - || { echo "docs/isa.md is out of date: make docs"; exit 1; }
	$(BIN)/python -m runtime.manual | diff docs/counting.md - || { echo "docs/counting.md is out of date: make docs"; exit 1; }

## The emulator against SpikingJelly and onnxruntime, seconds and memory of compiling, what a block costs.
bench: .venv/installed-for-tests
	$(BIN)/python examples/benchmark.py

## Generated pages, and the documentation as HTML in out/docs.
docs: .venv/installed-for-docs
	$(BIN)/python -m isa.manual > docs/isa.md
	$(BIN)/python -m runtime.manual > docs/counting.md
	$(BIN)/python -m sphinx -q -W -b html docs out/docs

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("cstep needs Python 3.11 or newer: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable .
	touch $@

# SpikingJelly without its requirements: they name packages that nothing here calls. What it imports is in [test].
.venv/installed-for-tests: .venv/installed
	$(INSTALL) --editable '.[test]'
	$(INSTALL) --no-deps spikingjelly==2.0.0
	touch $@

.venv/installed-for-docs: .venv/installed
	$(INSTALL) --editable '.[docs]'
	touch $@
