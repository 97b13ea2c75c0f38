# Everything here runs from a fresh clone with Python 3.11+ and make: the first target
# that needs it builds .venv from requirements/, hashes checked.

PYTHON ?= python3
# MLX's back end on Linux: cpu, cuda12 or cuda13. macOS has Metal and needs none.
EXTRA ?= $(if $(filter Linux,$(shell uname -s)),cpu)
# Test processes side by side; 0 runs them in this one.
WORKERS ?= 2
MINUTES ?= 30
KILLS ?= 200
# Further words for pytest, the benchmarks, the soak or the chaos.
ARGS ?=
# UPGRADE=1 lets `make constraints` move pins that still satisfy pyproject.toml.
UPGRADE ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-$(or $(EXTRA),metal)
DISTRIBUTIONS := $(wildcard integrations/*)
PYPROJECTS := pyproject.toml $(addsuffix /pyproject.toml,$(DISTRIBUTIONS))
REQUIREMENTS := requirements/dev.txt $(if $(EXTRA),requirements/$(EXTRA).txt)
SUITES := $(filter-out tests/standard tests/conftest.py %__pycache__,$(wildcard tests/*))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-notebooks test-standard lint format bench bench-peers soak \
	chaos docs notebooks build constraints clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## build .venv (EXTRA=cuda13 for another back end)

demo: $(STAMP) ## watch a load wait for a generation
	$(BIN)/mlx-guarded demo

# In their order: by the number of their tests, files of one long test would come last.
test: $(STAMP) ## every test but the long ones, with coverage of guard and memory
	$(BIN)/pytest $(SUITES) -m "not soak" -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
		--cov=mlx_guarded_llm.guard --cov=mlx_guarded_llm.memory --cov-branch \
		--cov-report=term --cov-fail-under=95 $(ARGS)

test-notebooks: $(STAMP) ## run every notebook from its first cell to its last
	$(BIN)/pytest --nbmake --nbmake-timeout=600 --timeout=1200 notebooks $(ARGS)

test-standard: $(STAMP) ## the frameworks' own integration suites on real models, ~8 minutes
	$(BIN)/pytest tests/standard -n 0 $(ARGS)

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mlx_guarded_llm integrations tests benchmarks docs/examples

format: $(STAMP) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## every case against raw mlx-lm, then the scripts
	$(BIN)/python -m benchmarks $(ARGS)

bench-peers: $(STAMP) ## every case against raw mlx-lm and other servers, which it installs
	$(BIN)/python -m benchmarks --peers $(ARGS)

soak: $(STAMP) ## mixed load for MINUTES=30 (ARGS="--isolation thread")
	$(BIN)/python benchmarks/soak.py --minutes $(MINUTES) $(ARGS)

chaos: $(STAMP) ## kill the worker KILLS=200 times under load
	$(BIN)/python benchmarks/chaos.py --kills $(KILLS) $(ARGS)

docs: $(STAMP) ## build site/; broken links and examples that do not compile fail
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(STAMP) ## run them and write their outputs (ARGS=rag for one)
	$(BIN)/python notebooks/run.py $(ARGS)

build: $(STAMP) ## wheels and source archives of the four distributions, into dist/
	$(BIN)/uv build --all-packages --no-build-isolation --python $(BIN)/python

constraints: $(BIN)/uv ## compile requirements/ anew (UPGRADE=1 moves every pin)
	UV=$(BIN)/uv UPGRADE=$(UPGRADE) requirements/compile

clean: ## remove .venv and everything built
	rm -rf $(VENV) build dist site .coverage .coverage.* htmlcov
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find mlx_guarded_llm integrations tests benchmarks docs -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/uv: requirements/setup.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# `uv pip sync` removes what is not listed, so a change of EXTRA leaves no second back end.
$(STAMP): $(BIN)/uv $(PYPROJECTS) $(REQUIREMENTS)
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes $(REQUIREMENTS)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation \
		--editable . $(addprefix --editable ,$(DISTRIBUTIONS))
	@rm -f $(VENV)/.setup-*
	@touch $(BIN)/uv $@
