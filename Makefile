# Everything on a fresh machine: `make demo` and `make test` create .venv themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs

demo: .venv/installed
	$(BIN)/python -m benchmarks

test: .venv/installed
	$(BIN)/python -m pytest --cov --cov-report=term

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/mkdocs build --strict

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[benchmarks,dev,docs]'
	touch $@
