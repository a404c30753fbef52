# Everything on a fresh machine: `make demo` and `make test` create .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable
SCHEMA := $(BIN)/check-jsonschema --quiet --builtin-schema

.PHONY: demo test quick lint docs

demo: .venv/benchmarks
	$(BIN)/python -m benchmarks

# What the slowest tests cost is printed: a slow test must earn its time. One thread for
# each of two processes, because two threads each would wait for one another.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder \
		--durations 20 --cov --cov-report=term

# The developer's loop, one process a core: no slow test, no other library, and none that
# has "compile" in its name.
quick: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -k "not compile" --durations 5 \
		--numprocesses 2 --dist worksteal tests --ignore tests/benchmarks --ignore tests/integrations

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(SCHEMA) vendor.github-workflows .github/workflows/*.yml
	$(SCHEMA) custom.github-workflows-require-timeout .github/workflows/*.yml
	$(SCHEMA) vendor.dependabot .github/dependabot.yml
	$(SCHEMA) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(SCHEMA) vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml
	$(SCHEMA) vendor.citation-file-format CITATION.cff
	$(BIN)/zizmor --offline --quiet .github

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/benchmarks: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[benchmarks]'
	touch $@

.venv/installed: .venv/benchmarks
	$(INSTALL) '.[benchmarks,cluster,dev,docs,integrations,pretrained]'
	touch $@
