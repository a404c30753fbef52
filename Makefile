# Everything on a fresh machine: `make demo` and `make test` create .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

.PHONY: demo test lint docs

demo: .venv/benchmarks
	$(BIN)/python -m benchmarks

test: .venv/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --cov --cov-report=term

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.venv/benchmarks: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[benchmarks]'
	touch $@

.venv/installed: .venv/benchmarks
	$(INSTALL) '.[benchmarks,cluster,dev,docs,integrations,pretrained]'
	touch $@
