# demo: a real call replayed through the real engine     inspect: that call, to look at    test: everything CI runs
# check: linters and types alone               bench, bench-load, bench-hosts, bench-cloud, bench-peers: speed and memory, as tables
# docs: the documents as a site               matrix: the tests on every supported Python found here
# format: tidy the code
.DELETE_ON_ERROR:
.PHONY: demo inspect docs docs-serve test check wheel wheel-built smoke-bare smoke-livekit smoke-pipecat smoke-server \
	pipecat-oldest chromium bench bench-load bench-hosts bench-cloud bench-peers bench-quality matrix format clean

VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# A name, since a comma would end an argument of `call`.
SELF := .[livekit,pipecat,server,encryption,dev]
# The first Python of 3.11 or newer on PATH; override with PYTHON=...
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

# Certificates of the system, as pip uses them; the first name is uv's older one.
export UV_NATIVE_TLS = 1
export UV_SYSTEM_CERTS = 1

# hnswlib comes as source alone: compiled once, not for every environment of the tests.
BUILT := build/built/$(VENV)

# install(python, what): with uv where it is to be had and works, else with pip.
define install
	{ test -x $(VENV)/bin/uv && $(VENV)/bin/uv pip install --quiet --python $(1) --constraint constraints.txt \
		--find-links $(BUILT) $(2); } \
		|| $(1) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--find-links $(BUILT) $(2)
endef

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "moss-voice needs Python 3.11 or newer on PATH (or PYTHON=/path/to/python)" >&2; exit 1; }
	@test -x $(PY) || "$(PYTHON)" -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check uv >/dev/null 2>&1 || true
	@echo "Installing moss-voice and its tools into $(VENV) (hnswlib is compiled: about a minute)"
	@mkdir -p $(BUILT)
	@$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --constraint constraints.txt \
		--wheel-dir $(BUILT) hnswlib || true
	@$(call install,$(PY),--editable '$(SELF)')
	@touch $@

demo: $(READY)
	@$(VENV)/bin/moss-voice demo

# The documents as a site, for a browser; a dead link or an unknown name ends the build.
docs: $(READY)
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet --site-dir build/site
	@echo "build/site/index.html"

docs-serve: $(READY)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs serve --dev-addr 127.0.0.1:8000

# The demo's call in the inspector, a page of this machine alone.
inspect: $(READY)
	@$(VENV)/bin/moss-voice inspect demo

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# The wheel alone, in environments of its own and away from the source tree: without extras, with each.
wheel: smoke-bare smoke-livekit smoke-pipecat smoke-server

wheel-built: $(READY)
	@rm -rf build/wheel && mkdir -p build/wheel $(BUILT)
	@$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .

smoke-bare: wheel-built
	@$(call smoke,bare,,smoke.py)

smoke-livekit: wheel-built
	@$(call smoke,livekit,[livekit],livekit_extra.py)

smoke-pipecat: wheel-built
	@$(call smoke,pipecat,[pipecat],pipecat_extra.py)

smoke-server: wheel-built
	@$(call smoke,server,[server],server_extra.py)

# smoke(name, extra, script): install the wheel with an extra, and run a script of tests/smoke there.
define smoke
	$(PY) -m venv build/wheel/$(1) \
		&& { $(call install,build/wheel/$(1)/bin/python,"$$(echo build/wheel/*.whl)$(2)"); } \
		&& cp tests/smoke/$(3) build/wheel/ && cd build/wheel && env \
		XDG_DATA_HOME=$(CURDIR)/build/wheel/data-$(1) XDG_CACHE_HOME=$(CURDIR)/build/wheel/cache-$(1) \
		$(1)/bin/python -I $(3)
endef

# The oldest Pipecat that is supported, in an environment of its own and without our pins.
OLDEST := build/pipecat-oldest

$(OLDEST)/.ready: pyproject.toml | $(READY)
	@rm -rf $(OLDEST) && $(PY) -m venv $(OLDEST)
	@{ test -x $(VENV)/bin/uv && $(VENV)/bin/uv pip install --quiet --python $(OLDEST)/bin/python \
		--find-links $(BUILT) --editable '.[pipecat,dev]' pipecat-ai==1.8.0; } \
		|| $(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		--find-links $(BUILT) --editable '.[pipecat,dev]' pipecat-ai==1.8.0
	@touch $@

pipecat-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python -m pytest --numprocesses 2 --dist load -m "not slow" tests/test_pipecat.py tests/test_pipecat_ends.py

# The browser of the pages' tests: the one that is here, else Debian's, where we may install it.
chromium:
	@command -v chromium || command -v chromium-browser || command -v google-chrome \
		|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq \
			&& DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } \
		|| echo "No Chromium here, and none could be installed: the tests of the pages are skipped."

# Tests wait for servers, processes and speech most of the time; those of a file share what they start.
SIDE_BY_SIDE := --numprocesses 4 --dist loadfile --no-loadscope-reorder

# The installations wait for the network, so they go on beside each other and the linters.
test: $(READY)
	@$(MAKE) --no-print-directory --jobs 3 --output-sync=target check wheel $(OLDEST)/.ready chromium
	@$(MAKE) --no-print-directory pipecat-oldest
	$(PY) -m pytest $(SIDE_BY_SIDE)

bench: $(READY)
	@mkdir -p build
	$(PY) -m benchmarks.run --json build/bench.json $(ARGS)

# How well a call recalls what it needs, on the evaluation data: each part of the retrieval off in turn.
bench-quality: $(READY)
	@mkdir -p build
	$(PY) -m benchmarks.quality --ablate --json build/quality.json $(ARGS)

# Up to 500,000 passages, 200 calls beside each other, a call of 5,000 turns: half an hour.
bench-load: $(READY)
	@mkdir -p build
	$(PY) -m benchmarks.load --json build/load.json $(ARGS)

# The plugins in their hosts: what they add to a reply's delay, and to a LiveKit job process's memory.
bench-hosts: $(READY)
	@mkdir -p build
	$(PY) -m benchmarks.livekit_delay --json build/livekit_delay.json
	$(PY) -m benchmarks.pipecat_delay --json build/pipecat_delay.json
	$(PY) -m benchmarks.livekit_memory --json build/livekit_memory.json

# A server under load, the cost of pushes and resumes, and pushes over a bad line to a dying server.
bench-cloud: $(READY)
	@mkdir -p build
	$(PY) -m benchmarks.cloud --json build/cloud.json
	$(PY) -m benchmarks.cloud_faults --json build/cloud_faults.json

# Beside what people use in our place, in an environment of its own (some 2.5 GB). With pip, which is told of
# further indexes and folders by its settings: see the requirements.
PEERS := .venv-peers

$(PEERS)/.ready: benchmarks/peers/requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "moss-voice needs Python 3.11 or newer on PATH (or PYTHON=/path/to/python)" >&2; exit 1; }
	@test -x $(PEERS)/bin/python || "$(PYTHON)" -m venv $(PEERS)
	@echo "Installing moss-voice and its peers into $(PEERS) (a few minutes)"
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check \
		--requirement benchmarks/peers/requirements.txt --editable .
	@touch $@

bench-peers: $(PEERS)/.ready
	@mkdir -p build
	$(PEERS)/bin/python -m benchmarks.peers --json build/peers.json $(ARGS)

matrix:
	@for v in 3.11 3.12 3.13; do \
		p=$$(command -v python$$v) && "$$p" -c '' 2>/dev/null || { echo "python$$v is not here: left out"; continue; }; \
		echo "== python$$v"; $(MAKE) --no-print-directory test VENV=.venv-$$v PYTHON=$$p || exit 1; done

format: $(READY)
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .

clean:
	rm -rf .venv .venv-* build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
