# Each command sets itself up on a fresh machine: a virtual environment with the versions of constraints.txt.
# Options go in ARGS: make demo ARGS="--optimizer sgd", make test ARGS="-k cli".

PYTHON ?= python3
ARGS ?=
RUN := .venv/bin/python -m
READY := .venv/ready
PEERS := .venv-peers

.PHONY: demo test test-all test-steady golden check check-page screenshots bench bench-peers bench-gpu clean

demo: $(READY)
	$(RUN) chainrule demo $(ARGS)

test: $(READY)
	$(RUN) pytest -q -m "not slow" $(ARGS)

test-all: $(READY)
	$(RUN) pytest -q $(ARGS)

# The tests that train, with another rounding than this processor's, and with another seed.
test-steady: $(READY)
	ATEN_CPU_CAPABILITY=default $(RUN) pytest -q -m "trains and not slow" $(ARGS)
	CHAINRULE_TEST_SEED=1 $(RUN) pytest -q -m "trains and not slow and not printed" $(ARGS)

# Writes the expected output of tests/golden, to be read in the diff.
golden: $(READY)
	$(RUN) tests.golden

check: $(READY)
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

# Types and linter of the page's modules; the package itself needs no Node.
check-page: node_modules
	npm run --silent check

node_modules: package.json
	npm install --no-audit --no-fund
	@touch $@

# Pictures of the page, to be looked at, and those of the README: needs chromium and playwright.
screenshots: $(READY)
	$(RUN) tests.browser.screenshots build/screenshots docs/images

bench: $(READY)
	$(RUN) benchmarks $(ARGS)

bench-peers: $(PEERS)/ready
	$(PEERS)/bin/python -m benchmarks.peers $(ARGS)

bench-gpu: $(READY)
	$(RUN) benchmarks.gpu $(ARGS)

clean:
	rm -rf .venv $(PEERS)

# torch comes first and alone: it is by far the largest, and the rest then finds it there.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "chainrule needs Python 3.11 or newer: make PYTHON=...")'
	@echo 'Setting up .venv, once; PyTorch takes a while.'
	$(PYTHON) -m venv .venv
	$(RUN) pip install -q -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(RUN) pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

# Other tools, beside the same torch. One that cannot be had leaves the others standing; its row then says so.
PINNED := benchmarks/peers/constraints.txt
INSTALL := $(PEERS)/bin/python -m pip install -q
$(PEERS)/ready: pyproject.toml constraints.txt $(PINNED)
	@echo 'Setting up $(PEERS), once; it takes some minutes.'
	$(PYTHON) -m venv $(PEERS)
	$(INSTALL) -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(INSTALL) -c constraints.txt -e '.[fast]' transformers
	$(INSTALL) --no-deps -r $(PINNED) || grep -v '^#' $(PINNED) | xargs -n 1 $(INSTALL) --no-deps || true
	@touch $@
