# Each target sets up what it needs: a virtual environment in .venv, and skerch in it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHELL := bash
.SHELLFLAGS := -o pipefail -c
# Two processes, which have the Slurm of one of them: PROCESSES=1 shows a test's output as it comes.
PROCESSES ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadgroup
OLDEST := $(shell sed -n 's/^python_requires = >=//p' setup.cfg)

.PHONY: demo test test-slow reliability mutations accuracy bench bench-quick overhead lint types docs clean

demo: $(VENV)/.installed
	$(BIN)/python -m skerch run config/experiment/digits.yaml

# Where this is root on Debian, the tests get a Slurm and a browser; SLURM=no installs neither. What
# cannot be tested is said at the end.
test: lint
	if [[ "$(SLURM)" != no ]] && ((!EUID)) && type apt-get >/dev/null 2>&1; then \
	  slurm/devcluster/install.sh 2>/dev/null || true; \
	  apt-get install -qq chromium >/dev/null 2>&1 || true; fi
	$(PYTEST) -m "not slow" $(PYTEST_OPTIONS) --cov

test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow $(PYTEST_OPTIONS)

# The tables of docs/reliability.md, measured anew: about half an hour.
reliability: $(VENV)/.installed-dev
	$(BIN)/python tests/jobs/chaos.py --kills 200 | $(BIN)/python docs/insert.py docs/reliability.md kills
	$(BIN)/python tests/jobs/corruption.py --flips 1000 | $(BIN)/python docs/insert.py docs/reliability.md corruption

# Does a test fail for every small change of the measurements and decompositions? Twenty minutes.
mutations: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet mutmut
	OMP_NUM_THREADS=1 $(BIN)/mutmut run && $(BIN)/mutmut results

# The tables of docs/accuracy.md and docs/svd.md, measured anew from the MNIST digits in the folder
# MNIST: an hour.
MNIST ?= ../shared/data
accuracy: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks --make accuracy --root $(MNIST)

# The tables of docs/performance.md, measured anew beside the peers, which are installed in .peers: an
# hour on two cores at rest. Exit status 1 if a figure falls short of its target.
bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks --make bench --root $(MNIST)

# The same figures from less work, in two minutes: does a change make something slow?
bench-quick: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks --quick

# Slurm's part of the same document, on a Slurm of its own: four minutes on two cores.
overhead: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks --make overhead

lint: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy sees skerch.analysis and skerch.jobs where they are imported from: in a tree of links.
types: $(VENV)/.installed-dev
	rm -rf .mypy_tree && mkdir -p .mypy_tree/skerch
	cd .mypy_tree/skerch && ln -s ../../skerch/* ../../analysis ../../jobs .
	$(BIN)/mypy

# The pages of docs/ as a site in build/site, by both of its builders: a warning is an error.
docs: types
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	rm -rf build/site && NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	rm -rf build/site && $(BIN)/zensical build --strict

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(OLDEST)".split("."))))' \
	|| { echo "skerch needs Python $(OLDEST) or newer: make PYTHON=python3.12, for example"; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null \
	|| { rm -rf $(VENV); echo "venv is missing: apt-get install python3-venv"; exit 1; }

$(VENV)/.installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	@echo "Installing skerch and torch, which is large, in $(VENV): some minutes"
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: setup.cfg pyproject.toml | $(VENV)/.installed
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .peers .mypy_tree build .cache dist *.egg-info
