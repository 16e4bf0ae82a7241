# make demo   set everything up and run the eight-schools example
# make test   set everything up and run the tests (ARGS=... goes to pytest)
# make docs   set everything up and build the site in docs/_build/html (NOTEBOOKS=off runs no code,
#             NOTEBOOKS=first_run that of one page)
# make lint   set everything up and run linter, format check and type check
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test docs lint clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/eight_schools.py

# A file's tests share trained samplers and compiled programs, so that one process takes all of them.
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile $(ARGS)

$(VENV)/.docs-installed: $(VENV)/.installed docs/conf.py
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	touch $@

# Two processes at most: each page with code runs samplers, which use several cores by themselves.
docs: $(VENV)/.docs-installed
	$(BIN)/python -m sphinx -b html -W --keep-going -j 2 docs docs/_build/html

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf .venv* build dist .pytest_cache .ruff_cache .hypothesis
