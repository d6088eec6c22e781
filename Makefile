# Needs Python 3.11 or newer, git and make; on Debian it installs the rest. PYTHON=... names another interpreter.
SHELL := bash
BIN := .venv/bin
CODE := $(wildcard src tests tools examples benchmarks)
INPUTS := pyproject.toml constraints.txt tools/venv
# So many files of tests beside each other, in tests/conftest.py's order: nearly all wait more than they compute.
TOGETHER := 3
BESIDE := $(if $(filter-out 1,$(TOGETHER)),-n $(TOGETHER) --dist loadfile --no-loadscope-reorder)
export PYTHON

.PHONY: demo demo-cluster test check docs bench soak clean compiler

# The chat page on http://localhost:4000; `make demo ARGS="--port 4001"` passes options on.
demo: .venv/.fastapi
	@$(BIN)/chatx demo $(ARGS)

# The same page on three nodes, with a broker of their own.
demo-cluster: .venv/.dev-demo
	@$(BIN)/chatx demo --nodes 3 $(ARGS)

# Everything on the main Python, and beside it the fast tests on each other one; `make test LONG=1` looks longer for
# counterexamples, `make test TOGETHER=1` runs one file of tests after the other.
test: check compiler
	@tools/chromium
	@tools/npm
	@tools/postgresql
	@tools/nats
	@command -v curl >/dev/null || tools/apt-install "a page shows how to ask the API with curl" curl
	@rm -f .coverage .coverage.*
	tools/beside-other-pythons env TEST_LONG=$(LONG) $(BIN)/coverage run -m pytest $(BESIDE) $(if $(LONG),--timeout=1800)
	@$(BIN)/coverage combine -q && $(BIN)/coverage report

check: .venv/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy $(CODE)
	$(BIN)/lint-imports --no-logo
	PATH="$(CURDIR)/$(BIN):$$PATH" pyright --ignoreexternal --verifytypes chatx
	$(BIN)/python tools/check_tree.py

# The pages and the reference as a site, in build/site; a warning is an error.
docs: .venv/.dev
	$(BIN)/sphinx-build --quiet --fail-on-warning -b html -d build/doctrees docs build/site

bench: .venv/.dev compiler
	@command -v erlc >/dev/null || tools/apt-install "the benchmarks compare with Erlang" erlang-base
	$(BIN)/python -m benchmarks $(ARGS)

# Ten minutes in which clients come, go, are cut off and read slowly: what the server holds is to be back where it began.
# `make soak ARGS="--minutes 120"` takes longer.
soak: .venv/.dev
	$(BIN)/chatx bench soak --threshold 'memory_late_growth<16MiB' $(ARGS)

compiler:
	@command -v cc >/dev/null || tools/apt-install "the benchmarks' load is compiled" gcc libc6-dev

clean:
	rm -rf .venv .venv-3.* .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist \
	    tests/npm/node_modules

.venv/.fastapi .venv/.dev-demo .venv/.dev: .venv/.%: $(INPUTS)
	@tools/venv .venv "$$(tools/pythons | head -n 1 | cut -d ' ' -f 2-)" $*
