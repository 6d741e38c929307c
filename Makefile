# make train: train and evaluate on the digits     make train ARGS="--data imagefolder:my/images"
# make test:  lint, type-check and the fast tests     make test-all: slow tests, docs, site, wheel, walk (Chromium: reports)
# FAISS=cuda for an NVIDIA GPU (faiss-gpu in place of faiss-cpu; kept until FAISS=cpu)     PYTHON=python3.13 for another Python

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
FAISS := $(or $(FAISS),$(if $(wildcard $(VENV)/.*-cuda),cuda,cpu))
other := $(filter-out $(FAISS),cpu cuda)
$(if $(filter cpu cuda,$(FAISS)),,$(error Expected FAISS to be cpu or cuda, but got $(FAISS)))

# What is installed in .venv; each has all of RECIPES.
RECIPES := $(VENV)/.recipes-$(FAISS)
BENCH := $(VENV)/.bench-$(FAISS)
DEV := $(VENV)/.dev-$(FAISS)

.PHONY: train lint test test-all fuzz test-matrix wheel-test reproduce notebook walk docs bench tables python clean

train: $(RECIPES)
	$(BIN)/python recipes/train.py $(ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/lint.py

# what a contributor runs: all tests that are not marked slow
test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

# the rest: slow tests (with the code blocks of the docs and the strict build of the site), random calls, the wheel, the walk
test-all: $(DEV)
	$(BIN)/python -m pytest -n auto --dist loadfile -m slow
	$(MAKE) fuzz ARGS="--calls 200"
	$(MAKE) wheel-test walk

# random calls of every public function; exit status 1 if an outcome is neither a value nor an error that names an argument
fuzz: $(DEV)
	$(BIN)/python tests/fuzz.py $(ARGS)

# the tests under several settings of the processor: instruction sets, threads, load   make test-matrix ARGS=tests/functional
test-matrix: $(DEV)
	$(BIN)/python tests/matrix.py $(ARGS)

# the wheel of the last commit, installed and used outside the checkout (PYTHONPATH: tests/helpers)
wheel-test: $(DEV)
	PYTHONPATH=tests $(BIN)/python tests/helpers/check_wheel.py $(ARGS)

# the paper's experiments at the scale of the digits (less than two hours; continues after an interruption), then the page;
# with ARGS="--epochs 5" into a folder under runs/
reproduce: $(RECIPES)
	$(BIN)/python recipes/reproduce.py all --scale digits $(or $(ARGS),--results docs/results/digits)
	$(MAKE) tables

# run the notebook anew and keep its outputs (a minute)
notebook: $(DEV)
	$(BIN)/python docs/notebooks/run.py

# run the commands of the pages in a clone of the last commit, with the packages of .venv (a few minutes)
# ARGS=--install: with packages that make installs there, then make test (half an hour, 5 GB for a while)
walk: $(DEV)
	PYTHONPATH=tests $(BIN)/python tests/helpers/newcomer.py $(ARGS)

docs: $(DEV)
	$(BIN)/mkdocs serve

# measure against peers and the floor, over processes and in chunks (half an hour, on a quiet machine); write the pages
bench: $(BENCH)
	for script in every_size peers options; do $(BIN)/python benchmarks/$$script.py $(ARGS) || exit 1; done
	for script in processes cached loader retrieval indexes precision; do $(BIN)/python benchmarks/$$script.py || exit 1; done
	$(BIN)/python benchmarks/make_page.py
	-$(BIN)/python benchmarks/compiled.py  # needs Triton
	$(MAKE) tables

tables: $(RECIPES)
	$(BIN)/python docs/make_tables.py

PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
$(BENCH): more := ,bench
$(DEV): more := ,docs,dev

# faiss-cpu and faiss-gpu are the same files: where the other one is, both go before one is installed.
# OpenCV without windows, which needs no libGL, takes the place of the one that the corruptions ask for.
$(RECIPES) $(BENCH) $(DEV): pyproject.toml | python
	rm -f $(VENV)/.*-$(other)
	! $(PIP) show faiss-$(other:cuda=gpu) > /dev/null 2>&1 || $(PIP) uninstall --yes faiss-cpu faiss-gpu
	$(PIP) install --editable ".[$(FAISS),recipes,corruptions$(more)]"
	$(PIP) uninstall --yes opencv-python && $(PIP) install --force-reinstall --no-deps opencv-python-headless
	touch $@ $(RECIPES)

# The Python of .venv: new enough, and the one that was named.
old := import sys; sys.exit("make: expected Python 3.11 or newer, but %s is %d.%d; name another: PYTHON=python3.13" \
	% ((sys.executable,) + sys.version_info[:2]) if sys.version_info < (3, 11) else 0)
which := import sys; print(sys.base_prefix, sys.version)

$(BIN)/python:
	@$(PYTHON) -c '$(old)'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

python: $(BIN)/python
ifneq ($(origin PYTHON),file)
	@test "$$($(PYTHON) -c '$(which)')" = "$$($(BIN)/python -c '$(which)')" \
		|| { echo "make: $(VENV) is of another Python than $(PYTHON); remove it with: make clean" >&2; exit 1; }
endif

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
