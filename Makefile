# `make demo` and `make test` do all the set-up that they need on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin
LIB ?= pyro
NUM_PROGRAMS ?= 1000
NUM_KILLS ?= 200
NUM_STEPS ?= 100000

.PHONY: setup demo test test-all fuzz faults gpu lint format bench tutorials docs support dist matrix clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -qq -c constraints.txt -e ".[all,dev]"
	touch $@

demo: setup
	$(BIN)/python -m models.digits_vae --demo --lib $(LIB)

test: setup  # less what takes long: each test has a case, and shared ones run in one of the libraries
	$(BIN)/python -m pytest -n 2 --dist worksteal --short

test-all: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal

FULL := $(addprefix tests/conformance/test_,idioms.py shapes.py mixed.py) tests/exact/test_two_level.py \
	$(addprefix tests/statistical/test_,conjugate.py programs.py objectives.py)

fuzz: setup  # random programs, and every case that otherwise runs in one library in turn
	VI_KIT_NUM_PROGRAMS=$(NUM_PROGRAMS) VI_KIT_IDIOMS=all $(BIN)/python -m pytest -n 2 -rP tests/fuzz $(FULL)

faults: setup  # fits that are killed at random times, and go on; memory over many steps
	VI_KIT_NUM_KILLS=$(NUM_KILLS) $(BIN)/python -m pytest tests/workflow/test_checkpoints.py -k killed
	VI_KIT_NUM_STEPS=$(NUM_STEPS) $(BIN)/python -m pytest -s tests/workflow/test_faults.py -k flat

gpu: setup  # what needs a GPU; without one it says so, case by case
	$(BIN)/python -m pytest -m gpu -rs tests/gpu

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  # writes benchmarks/README.md
	$(BIN)/python -m benchmarks --write

tutorials: setup
	$(BIN)/python tutorials/run.py

docs: setup .venv/.docs  # in build/docs; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d build/doctrees docs build/docs

.venv/.docs: pyproject.toml constraints.txt
	$(BIN)/python -m pip install -qq -c constraints.txt -e ".[docs]"
	touch $@

support: setup  # tries each estimator with each objective, as far as tests/docs/support.json does not have it
	$(BIN)/python -m tests.docs.support --try

dist:  # builds wheel and sdist, looks into them, and tries the wheel in empty environments
	$(PYTHON) tools/dist.py

matrix:  # with the oldest and the newest packages, and the Pythons that are here; NAMES="..." for some
	$(PYTHON) tools/matrix.py $(NAMES)

clean:
	rm -rf .venv build dist figures
