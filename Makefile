# What a person or a CI job runs. Needs make and Python 3.11 or newer; everything else comes, pinned, into .venv.

PYTHON ?= python3
PYTEST_ARGS ?=
# Tests wait more than they compute. For a debugger: make test PYTEST_ARGS="-n 0 --pdb -k name"
TEST_PROCESSES ?= 4
DEMO_ARGS ?=
SERVE_ARGS ?=
BENCH_ARGS ?=
CHAOS_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPILE := $(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --python-version 3.11 --universal --no-header

.DEFAULT_GOAL := help
.PHONY: help install demo serve test check bench chaos lock docs clean

help: ## say what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

install: $(STAMP) ## put Cogflare and its tools into .venv

# The marker is written last: an install that was interrupted is done again, one that is whole is left alone.
$(STAMP): pyproject.toml requirements/uv.txt requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Cogflare needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(or $(MAKECMDGOALS),install)"; exit 1; }
	@echo "==> installing into $(VENV) (again only when the requirements change)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt || \
		{ echo "==> once more with pip, which may know a mirror or a proxy that uv does not"; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## show the main job: a server, two workers, the official client
	@$(BIN)/cogflare demo $(DEMO_ARGS)

serve: $(STAMP) ## run a server on this machine, data in ./cogflare-data
	@$(BIN)/cogflare serve $(SERVE_ARGS)

test: check ## check, then all tests (PYTEST_ARGS="-k name -x" passes through)
	@echo "==> tests"
	@$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: $(STAMP) ## lint, types, layers, sizes; runs nothing
	@echo "==> ruff"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "some files want: $(BIN)/ruff format ."; exit 1; }
	@echo "==> mypy --strict"
	@$(BIN)/mypy --strict --no-error-summary
	@echo "==> layers"
	@$(BIN)/lint-imports --no-logo >$(VENV)/layers.log || { cat $(VENV)/layers.log; exit 1; }
	@echo "==> module sizes"
	@find src -name '*.py' -exec wc -l {} + | awk '$$1 > 500 && $$2 != "total" { print $$2 ": " $$1 " lines, 500 at most"; bad = 1 } END { exit bad }'

bench: $(STAMP) ## measure the gateway on this machine
	@$(BIN)/python -m bench $(BENCH_ARGS)

chaos: $(STAMP) ## try hard to break it: 30 runs under faults, an hour (CHAOS_ARGS="--sqlite 2 --postgres 0")
	@PYTHONPATH=tests $(BIN)/python -m chaos.long $(CHAOS_ARGS)
	@$(BIN)/python -m pytest tests/chaos/long_absences.py

lock: $(STAMP) ## resolve requirements/*.txt and what pins the clients of the tests anew
	@$(COMPILE) pyproject.toml --group dev -o requirements/dev.txt >/dev/null
	@$(COMPILE) pyproject.toml -c requirements/dev.txt -o requirements/runtime.txt >/dev/null
	@$(COMPILE) --group bootstrap -c requirements/dev.txt -o requirements/uv.txt >/dev/null
	@$(COMPILE) --group agent -c requirements/dev.txt -o src/cogflare/agent/requirements.txt >/dev/null
	@for client in tests/clients/replicate-python-* tests/clients/cog-*; do \
		excludes=$$client/excludes.txt; test -f $$excludes || excludes=/dev/null; \
		$(COMPILE) $$client/requirements.in --excludes $$excludes -o $$client/requirements.txt >/dev/null || exit 1; \
	done
	@$(COMPILE) tests/clients/runpod/requirements.in --excludes tests/clients/runpod/excludes.txt \
		-o tests/clients/runpod/requirements.txt >/dev/null
	@if command -v npm >/dev/null; then for folder in tests/clients/replicate-js tests/support/miniflare; do \
		(cd $$folder && npm install --silent --package-lock-only --omit-lockfile-registry-resolved) || exit 1; \
	done; fi

docs: $(STAMP) ## write docs/reference/cli.md anew from the commands
	@PYTHONPATH=tests $(BIN)/python -m support.cli_reference >docs/reference/cli.md.new
	@mv docs/reference/cli.md.new docs/reference/cli.md

clean: ## remove what was built; data and demo output stay
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
