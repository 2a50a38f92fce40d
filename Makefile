# Two commands matter: `make run` starts a cluster on this machine, `make test` proves that it works.
# Both do all their own set-up.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := $(CURDIR)/var/tools/bin
export PATH := $(CURDIR)/$(BIN):$(TOOLS):$(PATH)

NODES ?= 4
DRIVES ?= 4
BASE_PORT ?= 9000
PYTEST_ARGS ?=
BUDGET ?= 60s
SEED ?=

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: setup
setup: ## Prepare .venv (again only when pyproject.toml changed)
	@PYTHON="$(PYTHON)" scripts/setup.sh

.PHONY: run
run: setup ## Start a local cluster of four nodes under var/, until Ctrl-C
	@exec $(BIN)/holdfast dev --nodes $(NODES) --drives $(DRIVES) --base-port $(BASE_PORT) --dir var/cluster

.PHONY: test
test: setup test-setup lint rules ## Run every check and test (what CI runs)
	$(BIN)/pytest -m "not full" $(PYTEST_ARGS)

.PHONY: test-full
test-full: setup test-setup lint rules ## The same with the long runs
	$(BIN)/pytest $(PYTEST_ARGS)

.PHONY: test-setup
test-setup:
	@scripts/test-setup.sh

.PHONY: sim
sim: setup ## Simulate power-offs and more: BUDGET=60s of fresh seeds, or SEED=n once more
	$(BIN)/python -m tests.sim $(if $(SEED),--seed $(SEED),--budget $(BUDGET))

.PHONY: lint
lint: setup ## Check style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: rules
rules: setup
	@scripts/check-rules.sh

.PHONY: format
format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: setup ## Measure, print, and keep the figures in bench-results/
	$(BIN)/python -m bench.run

.PHONY: proto
proto: setup ## Generate node/rpc/wire from proto/
	@scripts/proto.sh

.PHONY: up
up: ## Start four nodes and Prometheus with docker compose (creates .env once)
	@scripts/create-env.sh .env
	docker compose up -d --build

.PHONY: clean
clean: ## Remove .venv, caches and build results; data under var/cluster stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
