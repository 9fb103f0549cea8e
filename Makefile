# Everything runs in .venv, which the targets make themselves: `make demo` and `make test` work as first commands.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet

.PHONY: install demo run test soak lint bench clean
.DELETE_ON_ERROR:

install: $(VENV)/server.installed  ## the gateway, the client and the command .venv/bin/hotindex

$(VENV)/server.installed: pyproject.toml constraints.txt .ci/provide
	@.ci/provide python $(PYTHON) $(VENV)
	@echo "installing into $(VENV) (hnswlib is compiled, which takes most of a minute) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install "$$(grep '^pip==' constraints.txt)"
	@CPATH="$(CURDIR)/$(VENV)/headers:$$CPATH" \
	  $(PIP) install --constraint constraints.txt --build-constraint constraints.txt --editable '.[server]'
	@touch $@

$(VENV)/dev.installed: $(VENV)/server.installed
	@echo "installing what tests and lint need ..."
	@$(PIP) install --constraint constraints.txt --build-constraint constraints.txt --editable '.[server,dev]'
	@touch $@

demo: install  ## make demo SECONDS=30 ends by itself
	@$(BIN)/hotindex demo $(if $(SECONDS),--seconds $(SECONDS))

run: install  ## a gateway with its data in ./data
	@$(BIN)/hotindex serve

test: $(VENV)/dev.installed
	@.ci/provide redis
	@$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

soak: $(VENV)/dev.installed  ## make soak MINUTES=10 SEED=1: gateways that share a Redis, under load, with faults at random
	@.ci/provide redis
	@$(BIN)/python -m tests.cluster.soak --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

lint: $(VENV)/dev.installed
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted: run $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: $(VENV)/dev.installed
	@$(BIN)/hotindex bench all

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
