# `make demo` makes a clip, `make test` runs the tests; both begin with nothing but Python 3.11.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
DATA := $(CURDIR)/data
DEMO_WEIGHTS := data/models/demo/ltx-2.3-demo.safetensors
JS := tests/contract
JS_INSTALLED := $(JS)/node_modules/.package-lock.json
OLD_CLIENTS := $(foreach version,0.11.0 0.13.2,$(JS)/python_modules/$(version)/installed)
FAL_SDK := $(JS)/python_modules/fal/installed
PYTEST_FLAGS ?= -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# a thread for each of the processes that test side by side
TESTING := OMP_NUM_THREADS=1

.PHONY: help demo test check lint test-full serve bench load clean

help:
	@echo "make demo       one clip, from the server's start to the MP4 in out/"
	@echo "make serve      the server, until Ctrl-C"
	@echo "make test       the tests that need nothing but Python and PyPI"
	@echo "make check      format, lint, types, floors, then the tests"
	@echo "make test-full  the tests, and those that need Node.js, npm, curl, Chromium, Prometheus and PostgreSQL"
	@echo "make bench      time and memory, stage by stage"
	@echo "make load       1,000 status requests a second and 5 submits, beside a running job"
	@echo "make clean      removes the environment and the caches; out/ and data stay"

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python is {v[0]}.{v[1]}: 3.11 or newer is needed; name one with make PYTHON=python3.11")'
	@echo "installing into $(VENV): the first time takes a few minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check "pip>=25.1"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e . --group dev
	@touch $@

$(JS_INSTALLED): $(JS)/package.json $(JS)/package-lock.json
	@command -v node >/dev/null || { echo "Node.js is missing: install the package nodejs (18 or newer)" >&2; exit 1; }
	@command -v npm >/dev/null || { echo "npm is missing: install the package npm" >&2; exit 1; }
	@npm ci --prefix $(JS) --silent --no-audit --no-fund --ignore-scripts
	@touch $@

$(OLD_CLIENTS): $(JS)/python_modules/%/installed: | $(INSTALLED)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade --target $(@D) fal-client==$*
	@touch $@

$(FAL_SDK): | $(INSTALLED)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade --target $(@D) fal==1.83.0
	@touch $@

$(DEMO_WEIGHTS): $(wildcard weights/demo/*.*) | $(INSTALLED)
	@echo "building the demo weights"
	@LTX_DATA=$(DATA) $(BIN)/ltxd weights build-demo
	@touch $@

demo: $(INSTALLED) $(DEMO_WEIGHTS)
	@$(BIN)/python scripts/demo.py

serve: $(INSTALLED) $(DEMO_WEIGHTS)
	@LTX_DATA=$(DATA) $(BIN)/ltxd serve

test: $(INSTALLED)
	@$(TESTING) $(BIN)/pytest $(PYTEST_FLAGS)

check: lint test

lint: $(INSTALLED)
	@$(BIN)/ruff format --quiet --check
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache --no-logo

test-full: test $(JS_INSTALLED) $(OLD_CLIENTS) $(FAL_SDK)
	@$(TESTING) $(BIN)/pytest $(PYTEST_FLAGS) -m "full and not slow and not gpu"

bench: $(INSTALLED) $(DEMO_WEIGHTS)
	@$(BIN)/python benchmarks/bench.py

load: $(INSTALLED) $(DEMO_WEIGHTS)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt --group load
	@$(BIN)/python benchmarks/load.py

clean:
	rm -rf $(VENV) $(JS)/node_modules $(JS)/python_modules .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
