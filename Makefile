# Everything sets itself up: `make demo` and `make test` work on a fresh clone.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint fuzz bench soak clean

demo: .venv/.run ## the original's demo: 4 participants, 2 + 2 seats, 4 rounds, all real
	$(BIN)/flockllm demo --out runs/demo --force

test: .venv/.test lint ## lint, types, layers, contracts' artifacts, and all tests
	$(BIN)/pytest

lint: .venv/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/build_contracts.py --check

fuzz: .venv/.test ## a million calls against contract and model, coverage, mutants (an hour)
	$(BIN)/python -m fuzz.campaign --calls 1000000
	$(BIN)/python -m fuzz.coverage
	$(BIN)/python scripts/mutate_contract.py --count 130 --seed 2

soak: .venv/.test ## the slow tests: many kills, real IPFS peers, reorganisations
	$(BIN)/pytest -m slow

bench: .venv/.test ## what benchmarks/README.md quotes, but for training on data of your own (hours)
	for script in protocol codecs aggregation hosting federated attacks; do $(BIN)/python benchmarks/$$script.py; done

clean:
	rm -rf .venv runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv \
	  || { rm -rf .venv; echo "venv is missing: apt-get install python3-venv"; exit 1; }
	@$(BIN)/pip install -q --disable-pip-version-check 'pip>=25.1'

.venv/.run: .venv/bin/pip pyproject.toml constraints.txt
	@echo "Installing into .venv (a few minutes the first time) …"
	@$(BIN)/pip install -q -c constraints.txt -e .
	@touch $@

.venv/.test: .venv/.run
	@echo "Installing what the tests need …"
	@$(BIN)/pip install -q -c constraints.txt -e '.[host,parquet,s3]' --group dev
	@for need in chromium:chromium bwrap:bubblewrap; do \
	  command -v $${need%:*} >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null \
	  || { apt-get update -qq; apt-get install -y -qq --no-install-recommends $${need#*:} >/dev/null; } \
	  || echo "$${need#*:} could not be installed: the tests that need it are skipped"; done
	@touch $@
