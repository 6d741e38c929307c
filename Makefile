# make train: train and evaluate on the digits     make train ARGS="--data imagefolder:my/images"
# make test:  lint, type-check, test, build the docs (with Chromium on the machine also how reports look in it)
# FAISS=cuda for an NVIDIA GPU (faiss-gpu in place of faiss-cpu)

PYTHON ?= python3
FAISS ?= cpu
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test wheel-test reproduce notebook walk docs bench tables clean

train: $(VENV)/.recipes
	$(BIN)/accelerate launch --quiet recipes/train.py $(ARGS)

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --dist loadfile
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# the wheel of the last commit, installed and used outside the checkout, under two Pythons (half an hour, 5 GB for a while)
wheel-test: $(VENV)/.dev
	$(BIN)/python tests/packaging/check_wheel.py $(ARGS)

# the paper's experiments at the scale of the digits (less than two hours; goes on where it was stopped), then the page
reproduce: $(VENV)/.recipes
	$(BIN)/accelerate launch --quiet recipes/reproduce.py all --scale digits --results docs/results/digits $(ARGS)
	$(MAKE) tables

# run the notebook anew and keep its outputs (a minute)
notebook: $(VENV)/.dev
	$(BIN)/python docs/notebooks/run.py

# clone the last commit and type what the pages say (half an hour, 5 GB for a while)   make walk ARGS=--skip-tests
walk: $(VENV)/.dev
	$(BIN)/python tests/walk/newcomer.py $(ARGS)

docs: $(VENV)/.dev
	$(BIN)/mkdocs serve

# measure against peers and the floor, over processes and in chunks (half an hour, on a quiet machine); write the pages
bench: $(VENV)/.bench
	for script in must_show peers options scaling mined; do $(BIN)/python benchmarks/$$script.py $(ARGS) || exit 1; done
	for script in processes cached loader retrieval indexes; do $(BIN)/python benchmarks/$$script.py || exit 1; done
	$(BIN)/python benchmarks/make_page.py
	$(MAKE) tables

tables: $(VENV)/.recipes
	$(BIN)/python docs/make_tables.py

comma := ,
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# OpenCV without windows, which needs no libGL, takes the place of the one that the corruptions ask for.
install = $(PIP) install --editable ".[$(FAISS),recipes,corruptions$(1)]" \
	&& $(PIP) uninstall --yes opencv-python && $(PIP) install --force-reinstall --no-deps opencv-python-headless

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.recipes: pyproject.toml | $(VENV)/bin/python
	$(call install)
	touch $@

$(VENV)/.bench: pyproject.toml | $(VENV)/bin/python
	$(call install,$(comma)bench)
	touch $@ $(VENV)/.recipes

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(call install,$(comma)docs$(comma)dev)
	touch $@ $(VENV)/.recipes

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
