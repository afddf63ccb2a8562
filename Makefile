# Every target makes .venv when it is missing or older than the two files that describe it.
#   make demo     train-to-bundle on the YOLO reference model, report in build/demo
#   make test     the tests
#   make check    what CI runs: lint, types, layers, wheel contents, tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT := build/demo

.PHONY: demo test check lint types layers wheel clean

demo: $(STAMP)
	$(BIN)/edgekit run models/yolo/recipe.toml --out $(OUT)
	@echo "Report: $(CURDIR)/$(OUT)/report.html"

test: $(STAMP)
	$(BIN)/python -m pytest -q

check: lint types layers wheel test

lint: $(STAMP)
	$(BIN)/ruff check edgekit targets models tests .ci
	$(BIN)/ruff format --check edgekit targets models tests .ci

types: $(STAMP)
	$(BIN)/mypy

layers: $(STAMP)
	$(BIN)/lint-imports

wheel: $(STAMP)
	@rm -rf build/wheel
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel . > /dev/null
	$(BIN)/python .ci/wheel_contents.py build/wheel/*.whl

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "edgekit needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Installing edgekit and its dependencies into $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[yolo,dev]"
	@touch $@
