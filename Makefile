# `make run` and `make test` do all the set-up, on a fresh Debian or Ubuntu too.
SHELL := /bin/bash
PORT ?= 8000
BIN := .venv/bin
COMPILE := $(BIN)/uv pip compile --quiet --generate-hashes --universal --python-version 3.11 \
  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"
# Set REDIS=1 to run on a Redis of its own, or SSE_REDIS_URL to run on yours.
REDIS ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help run test check chaos wheel format lock clean
help:
	@echo 'make run      set up and serve http://127.0.0.1:$(PORT)/ (REDIS=1: with Redis, on all cores)'
	@echo 'make test     every check: lint, types, tests with real parts, coverage, the wheel'
	@echo 'make chaos    500 seeds of random faults (CHAOS_SEEDS=N)'
	@echo 'make format   lay the code out'
	@echo 'make lock     compile requirements*.txt anew'
	@echo 'make clean    remove what was set up'

run: .venv/run
	@$(if $(REDIS),tools/need redis-server)
	@BIND=127.0.0.1:$(PORT) DEMO=1 SSE_PUBLIC='demo/*' tools/serve $(if $(REDIS),--redis)

test: .venv/test tests/node_modules
	@tools/need redis-server nginx chromium chromedriver curl openssl
	$(MAKE) --no-print-directory check wheel

check:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report

chaos: .venv/test
	@tools/need redis-server
	CHAOS_SEEDS=$${CHAOS_SEEDS:-500} $(BIN)/python -m pytest -m chaos tests/chaos

wheel: .venv/test
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

format: .venv/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: .venv/test
	$(COMPILE) $(LOCK) requirements.in -o requirements.txt
	$(COMPILE) $(LOCK) requirements-dev.in -c requirements.txt -o requirements-dev.txt

clean:
	rm -rf .venv tests/node_modules dist build .coverage .hypothesis *.egg-info .mypy_cache .pytest_cache .ruff_cache

.venv/bin/python:
	@tools/need python3-venv
	python3 -m venv .venv

.venv/run: requirements.txt | .venv/bin/python
	$(BIN)/pip install --quiet --require-hashes -r requirements.txt
	@touch $@

.venv/test: requirements-dev.txt .venv/run
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.txt
	@touch $@

tests/node_modules: tests/package-lock.json
	@tools/need node npm
	cd tests && npm ci --no-audit --no-fund --loglevel=error
	@touch $@
