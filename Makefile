# make demo    does the main job on a sample household under .demo/, without root
# make test    ruff, mypy and all tests; this is what CI runs
# make test-all   the same with the long matrices
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all lint clean

demo: $(STAMP)-demo
	@$(BIN)/python -m tests.demo

test: system-packages lint
	$(BIN)/python -m pytest -m "not slow"

test-all: system-packages lint
	$(BIN)/python -m pytest

lint: $(STAMP)-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: system-packages
system-packages: $(STAMP)-dev
	@$(BIN)/python -m tests.system_packages

$(BIN)/python:
	@sh tests/make_venv.sh "$(PYTHON)" "$(VENV)"

$(STAMP)-%: $(BIN)/python pyproject.toml
	@echo "Installing memu-backup into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
