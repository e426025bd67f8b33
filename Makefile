# `make run` and `make test` do all the set-up, on a fresh Debian or Ubuntu too.
SHELL := /bin/bash
BIN := .venv/bin
PYTHON ?= python3
PORT ?= 8000
export PYTHON PORT
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONDONTWRITEBYTECODE  # each of some 500 servers that the tests start would compile all of sse
INSTALL := $(BIN)/pip install --quiet --no-input --require-hashes -r
COMPILE := $(BIN)/uv pip compile --quiet --generate-hashes --universal --python-version 3.11 \
  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

# The programs that the tests with browsers need.
PARTS := g++ redis-server nginx lighttpd caddy haproxy openssl chromium firefox-esr MiniBrowser Xvfb

.PHONY: help run example test check lint check-models check-docs docs chaos browsers lane-off containers doctor restarts bench bench-more audit wheel format lock clean
help:
	@echo 'make run      set up and serve http://127.0.0.1:$(PORT)/ (REDIS=1: with Redis, on all cores)'
	@echo 'make example  the same with an example: NAME=chat, scoreboard, auction or progress'
	@echo 'make test     every check: lint, types, docs, tests with real parts, coverage, the wheel'
	@echo 'make lint     the part of it that a commit has to pass: ruff and mypy'
	@echo 'make docs     the pages and the API reference as a site, in docs/_build/html'
	@echo 'make chaos    500 seeds of random faults (CHAOS_SEEDS=N)'
	@echo 'make browsers every browser through every proxy, and a table of the results'
	@echo 'make lane-off the tests with real servers, without the fast lane'
	@echo 'make containers  follow the Dockerfile on a Debian of its own, by debootstrap (as root)'
	@echo 'make doctor   the doctor against real proxies, with the time-outs that people have, and a table of the results'
	@echo 'make restarts restart five times under 10,000 streams, by reloads and by two instances behind nginx'
	@echo 'make bench    measure this and similar servers, and write docs/benchmarks.md (bench-more: servers in Go too)'
	@echo 'make audit    look for known vulnerabilities in the pinned packages'
	@echo 'make format   format the code'
	@echo 'make lock     pin the packages in requirements.txt and requirements/*.txt (LOCK=--upgrade: newest versions)'
	@echo 'make clean    remove everything that make has set up or built'

run: .venv/run
	@tools/serve $(if $(REDIS),--redis)

example: .venv/run
	@[ -f "examples/$(NAME)/app.py" ] || { echo "make example NAME=..., one of: $$(cd examples && ls -d */ | tr -d /| xargs)" >&2; exit 2; }
	@tools/serve --redis examples.$(NAME).app:app

test: .venv/test tests/node_modules/.package-lock.json
	@tools/need $(PARTS) chromedriver apache2 bwrap curl squid systemd-analyze varnishd
	@$(MAKE) --no-print-directory check wheel

check: lint
	@$(BIN)/coverage erase
	@$(MAKE) --no-print-directory --jobs=6 --output-sync=target $(SIDE_BY_SIDE:%='check-%')
	$(BIN)/python -m pytest $(ALONE)
	@$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# The hook of .pre-commit-config.yaml runs this too.
lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# These run alone, after all others. On a busy machine, thousands of clients that come at once are served too late, and
# a browser may take a stream that is late for one that does not get through.
ALONE := tests/live/test_arrival_storms.py tests/live/test_rolling_restarts.py tests/browser/test_every_engine.py

# These run the same lines thousands of times, which would take twice as long if each line were counted. All others have
# to reach the lines that coverage asks for.
MODELS := tests/chaos $(addprefix tests/test_,$(addsuffix .py,cut_everywhere fuzz_requests idle_stream_memory \
  lane_differential random_histories service_close))

# Six of these run at the same time, because they mostly wait: those that take longest first, and among them the two
# that compute. Each names the beginnings of its files.
SIDE_BY_SIDE := live-s[a-h] browser-[s-t] here-[i-z] models live-[b-c] browser-[e-l] live-s[i-z] live-[i-l] here-[a-h] \
  live-d browser-[m-r] live-[m-o] live-r[f-z] browser-[a-d] live-[p-q] live-r[a-e] live-[t-z] live-[e-h] live-a \
  browser-[u-z] docs

check-here-%:
	$(BIN)/coverage run -m pytest $(MODELS:%=--deselect=%) tests/test_$**.py
check-models:
	$(BIN)/python -m pytest $(MODELS)
check-live-%:
	$(BIN)/python -m pytest $(ALONE:%=--deselect=%) tests/live/test_$**.py
# The doctor measures in the tests' own process.
check-live-d:
	$(BIN)/coverage run -m pytest tests/live/test_d*.py
check-browser-%:
	$(BIN)/python -m pytest $(ALONE:%=--deselect=%) tests/browser/test_$**.py

# Every build starts afresh, because Sphinx warns only of the pages that it reads.
docs: .venv/test check-docs
check-docs:
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env --write-all --conf-dir docs . docs/_build/html

chaos: .venv/test
	@tools/need redis-server
	CHAOS_SEEDS=$${CHAOS_SEEDS:-500} $(BIN)/python -m pytest -m chaos

browsers: .venv/test
	@tools/need $(PARTS)
	BROWSERS=all $(BIN)/python -m pytest -s -m 'browsers or long'

# All suites with real servers, without the fast lane. `make test` runs those of wire, hand-off and drain both ways.
lane-off: .venv/test tests/node_modules/.package-lock.json
	@tools/need $(PARTS) chromedriver apache2 bwrap curl squid systemd-analyze varnishd
	LANE=off $(MAKE) --no-print-directory --jobs=6 --output-sync=target \
	  $(patsubst %,'check-%',$(filter live-% browser-%,$(SIDE_BY_SIDE)))
	LANE=off $(BIN)/python -m pytest $(ALONE)

# `make test` follows the Dockerfile's steps too, with this machine's /usr in the place of the base image.
containers: .venv/test
	@tools/need bwrap curl debootstrap nginx redis-server
	CONTAINERS=debian $(BIN)/python -m pytest tests/live/test_containers.py

doctor: .venv/test
	@tools/need $(PARTS) apache2 squid varnishd
	DOCTOR=all $(BIN)/python -m pytest -s tests/live/test_doctor.py

restarts: .venv/test
	@tools/need redis-server nginx
	STREAMS=10000 $(BIN)/python -m pytest -s -o faulthandler_timeout=1200 tests/live/test_rolling_restarts.py

# Not part of `make test`, because it asks the network, and its result may change from one day to the next.
audit: .venv/test
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r requirements.txt -r requirements/dev.txt

# The package g++ brings a C compiler and its headers.
bench: .venv/bench
	@tools/need g++ redis-server nginx
	$(BIN)/python -m bench --docs $(BENCH)
bench-more: .venv/bench
	@tools/need g++ redis-server nginx
	$(BIN)/python -m bench --docs --more $(BENCH)

# The folder of an earlier build would put files into the wheel that are deleted by now.
wheel: .venv/test
	@rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation

format: .venv/test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: .venv/test
	$(COMPILE) $(LOCK) requirements.in -o requirements.txt
	$(COMPILE) $(LOCK) requirements/dev.in -c requirements.txt -o requirements/dev.txt
	$(COMPILE) $(LOCK) requirements/bench.in -c requirements.txt -o requirements/bench.txt

clean:
	rm -rf .venv tests/node_modules bench/build docs/_build build dist *.egg-info .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache

.venv/run: requirements.txt
	@tools/need python3-venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "PYTHON=... has to be 3.11 or newer")'
	[ -x $(BIN)/pip ] || $(PYTHON) -m venv .venv
	$(INSTALL) requirements.txt
	@touch $@

.venv/test: requirements/dev.txt .venv/run
	$(INSTALL) requirements/dev.txt
	@touch $@

.venv/bench: requirements/bench.txt .venv/run
	$(INSTALL) requirements/bench.txt
	@touch $@

tests/node_modules/.package-lock.json: tests/package-lock.json
	@tools/need node npm
	cd tests && npm ci --no-audit --no-fund --loglevel=error
	@touch $@
