# Each command sets itself up on a fresh machine: it creates a virtual environment with the versions of constraints.txt.
# ARGS passes options: make demo ARGS="--optimizer sgd", make test ARGS="-k cli".

PYTHON ?= python3
ARGS ?=
# Tests run in so many processes at once, of so many threads each: more threads than processors wait for one another.
# They start more, which import compiled code also where the environment keeps Python from storing it.
WORKERS ?= 2
THREADS ?= 1
RUN := .venv/bin/python -m
TEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=$(THREADS) $(RUN) pytest -q -n $(WORKERS) --dist worksteal
READY := .venv/ready
PEERS := .venv-peers

.PHONY: demo test test-all test-steady bed golden check check-page docs screenshots bench bench-peers bench-gpu clean

demo: $(READY)
	$(RUN) chainrule demo $(ARGS)

test: $(READY)
	$(TEST) -m "not slow" $(ARGS)

test-all: $(READY)
	$(TEST) $(ARGS)

# Runs the tests that train with the rounding of PyTorch's default kernels, and then with another seed and two threads.
test-steady: $(READY)
	ATEN_CPU_CAPABILITY=default $(TEST) -m "trains and not slow" $(ARGS)
	CHAINRULE_TEST_SEED=1 OMP_NUM_THREADS=2 $(RUN) pytest -q -m "trains and not slow and not printed" $(ARGS)

# Runs public faults and healthy trainings through the command, and counts the causes that are named.
bed: $(READY)
	$(RUN) tests.bed $(ARGS)

# Rewrites the expected output of tests/golden. Review the diff.
golden: $(READY)
	$(RUN) tests.golden

check: $(READY)
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

# Checks types and lint of the page's JavaScript. Only this needs Node.
check-page: node_modules
	npm run --silent check

node_modules: package.json
	npm install --no-audit --no-fund
	@touch $@

# Builds the documentation site into build/site. Warnings are errors, and every link is checked.
docs: $(READY)
	.venv/bin/python docs/build.py

# Takes pictures of the page for review, and those of the README. Needs chromium and playwright.
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

# torch is by far the largest package, so it is installed first and by itself.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "chainrule needs Python 3.11 or newer: make PYTHON=...")'
	@echo 'Setting up .venv (once). PyTorch takes a while.'
	$(PYTHON) -m venv .venv
	$(RUN) pip install -q -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(RUN) pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

# Other tools, with the same torch. If one cannot be installed, the others still run, and its row has the error.
PINNED := benchmarks/peers/constraints.txt
INSTALL := $(PEERS)/bin/python -m pip install -q
$(PEERS)/ready: pyproject.toml constraints.txt $(PINNED)
	@echo 'Setting up $(PEERS) (once). It takes some minutes.'
	$(PYTHON) -m venv $(PEERS)
	$(INSTALL) -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(INSTALL) -c constraints.txt -e . transformers
	$(INSTALL) --no-deps -r $(PINNED) || grep -v '^#' $(PINNED) | xargs -n 1 $(INSTALL) --no-deps || true
	@touch $@
