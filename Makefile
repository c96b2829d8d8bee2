# bench: the default benchmark. test, check: what CI runs. report: tables and figures from the stored runs.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: bench test check report

bench: .venv/bench
	$(BIN)/python -m harness.bench replicate=next

report: .venv/bench
	$(BIN)/python -m harness.report build

test: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/bench: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python scripts/install.py -c constraints.txt -e .
	touch $@

.venv/dev: .venv/bench
	$(BIN)/python scripts/install.py -c constraints.txt -e ".[dev]"
	touch $@
