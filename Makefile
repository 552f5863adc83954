# demo: a real call replayed through the real engine     test: everything CI runs
# check: linters and types alone                         bench: speed and memory, as tables and JSON
# matrix: the tests on every supported Python found here  format: tidy the code
.DELETE_ON_ERROR:
.PHONY: demo test check wheel bench matrix format clean

VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# The first Python of 3.11 or newer on PATH; override with PYTHON=...
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "moss-voice needs Python 3.11 or newer on PATH (or PYTHON=/path/to/python)" >&2; exit 1; }
	@test -x $(PY) || "$(PYTHON)" -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check uv >/dev/null 2>&1 \
		|| echo "uv is not to be had; installing with pip"
	@echo "Installing moss-voice and its tools into $(VENV) (hnswlib is compiled: about a minute)"
	@if test -x $(VENV)/bin/uv; then \
		$(VENV)/bin/uv pip install --quiet --python $(PY) --constraint constraints.txt --editable '.[dev]'; \
	else \
		$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'; \
	fi
	@touch $@

demo: $(READY)
	@$(VENV)/bin/moss-voice demo

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# The wheel alone, in an environment of its own and away from the source tree.
wheel: $(READY)
	@rm -rf build/wheel && mkdir -p build/wheel
	@$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	@$(PY) -m venv build/wheel/venv
	@if test -x $(VENV)/bin/uv; then \
		$(VENV)/bin/uv pip install --quiet --python build/wheel/venv/bin/python --constraint constraints.txt build/wheel/*.whl; \
	else \
		build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt build/wheel/*.whl; \
	fi
	@cp tests/smoke/smoke.py build/wheel/ && cd build/wheel && env \
		XDG_DATA_HOME=$(CURDIR)/build/wheel/data XDG_CACHE_HOME=$(CURDIR)/build/wheel/cache \
		venv/bin/python -I smoke.py

test: check wheel
	$(PY) -m pytest

bench: $(READY)
	@mkdir -p build
	$(PY) -m benchmarks.run --json build/bench.json $(ARGS)

matrix:
	@for v in 3.11 3.12 3.13; do \
		p=$$(command -v python$$v) && "$$p" -c '' 2>/dev/null || { echo "python$$v is not here: left out"; continue; }; \
		echo "== python$$v"; $(MAKE) --no-print-directory test VENV=.venv-$$v PYTHON=$$p || exit 1; done

format: $(READY)
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .

clean:
	rm -rf .venv .venv-* build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
