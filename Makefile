# Every target first prepares .venv (once; see tools/setup.sh), so a fresh checkout needs only Python and make.

# Empty: the first of python3.11, python3.10, python3 that is a working 3.10 or 3.11.
PYTHON ?=
TRACES ?= tests/data/host-traces/a1111-1.10.1
# More arguments for the program behind test, demo, bench and replay: make test ARGS="-k ladder"
ARGS ?=

export PYTHON
py := .venv/bin/python
# One process a core, but not more than four; tests that share a host stay together.
pytest := $(py) -m pytest -n logical --maxprocesses 4 --dist loadgroup

# HOST counts only on make's command line: some shells and conda export a HOST of their own.
host := $(if $(filter command%,$(origin HOST)),$(HOST))

.PHONY: help setup screenshots demo test bench gpu package constraints evidence lab replay soak train lint house clean distclean

help:
	@echo "make demo    the embedded WebUI with DeepCache (ONCE=1: run once and stop; HOST=a1111, forge or sdnext; PORT=)"
	@echo "make test    the tests to run before a commit: each promise on each host, a few minutes"
	@echo "make test-all  all tests, with coverage (test-rest: what make test leaves out)"
	@echo "make bench   the benchmarks"
	@echo "make gpu     right, without waits and how fast on this machine's GPU, in at most nine minutes"
	@echo "make evidence  how near the pictures come on the laboratory's networks, into docs/ (after make lab; hours)"
	@echo "make replay  replay recordings of real hosts (TRACES=DIR)"
	@echo "make soak    a fault at every call of every recording, and 1000 random pictures (about an hour)"
	@echo "make train   trains the demo's small checkpoint from scratch (npm; about 75 minutes of a CPU core)"
	@echo "make lab     trains the laboratory's networks (kept in DEEPCACHE_LAB, default ~/.cache/deepcache-lab; npm; an hour)"
	@echo "make screenshots  pictures of the accordion, by a real browser, into docs/"
	@echo "make lint    ruff, the import contracts and mypy"
	@echo "make house   rooms, sizes, import contracts, how long the tests took (ARGS=--write: into CONTRIBUTING.md)"
	@echo "make package  the wheel for Python programs, into dist/"
	@echo "make constraints  requirements/constraints.txt anew from the lists beside it (ARGS=--newest: newest versions)"
	@echo "make clean   remove what the targets wrote; distclean removes .venv too"
	@echo "Options for all: PYTHON=interpreter (3.10 or 3.11), ARGS=\"more arguments\""

setup:
	@sh tools/setup.sh

demo: setup
	$(py) -m demo $(if $(filter 1,$(ONCE)),--once) $(if $(host),--host $(host)) $(if $(PORT),--port $(PORT)) $(ARGS)

test: setup
	$(pytest) -m "not slow" $(ARGS)

.PHONY: test-all test-rest

test-all: setup
	$(pytest) --cov=deepcache_ext --cov-report=term $(ARGS)

# Properties run in both: here with all their examples.
test-rest: setup
	$(pytest) -m "slow or hypothesis" $(ARGS)

bench: setup
	$(py) -m bench $(ARGS)

# With the Python that has torch for the card: .venv is made for CPUs. python -m bench.gpu --wheels: what else it needs.
gpu:
	$(or $(PYTHON),python3) -m bench.gpu $(ARGS)

evidence: setup
	$(py) -m bench.laboratory $(ARGS)
	$(py) -m bench.laboratory --write
	$(py) -m bench.rivals
	$(py) -m bench.rivals --write

replay: setup
	$(py) -m tests.replay $(TRACES) $(ARGS)

soak: setup
	$(py) -m tests.soak $(ARGS)

train: setup
	$(py) -m train $(ARGS)

lab: setup
	$(py) -m train.laboratory $(ARGS)

screenshots: setup
	$(py) -m demo.screenshots $(ARGS)

lint: setup
	$(py) -m ruff check .
	$(py) -m ruff format --check .
	.venv/bin/lint-imports
	$(py) -m mypy deepcache_ext

# The wheel for Python programs, into dist/.
package: setup
	rm -rf dist build/lib
	$(py) -m build --no-isolation --outdir dist .
	$(py) -m twine check --strict dist/*

constraints:
	python3 -m tools.constraints $(ARGS)

house: setup
	@$(py) -m tools.house $(ARGS)

clean:
	rm -rf demo/out build dist *.egg-info .coverage .coverage.* .hypothesis .mypy_cache .ruff_cache .pytest_cache
	rm -rf .import_linter_cache .test-time
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv
