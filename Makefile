# Everything starts from a clean checkout and needs Python 3.10 or newer, a package index, and nothing else.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The oldest Python, and the oldest version of each library, that pyproject.toml allows.
OLDEST_PYTHON ?= python3.10
OLDEST_VENV ?= .venv-oldest
# Busy threads of several processes on few cores are many times slower than one each.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo space test test-quick test-oldest lint types docs bench bench-check faults tune experiments experiments-quick paper-table1 report figures wheel clean

$(INSTALLED): pyproject.toml setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

demo: $(INSTALLED)  ## Erase one class from the embedded model, compare before and after, and use the result
	$(BIN)/hf-esc erase embedded --dataset embedded --forget Trouser --output demo --overwrite
	$(BIN)/python examples/use_erased_model.py --model demo --original embedded --dataset embedded --picture demo/pipeline.png

$(VENV)/.demo: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[demo]"
	touch $@

space: $(VENV)/.demo  ## The demo page, on this machine
	$(BIN)/python examples/space/app.py

test: $(INSTALLED)  ## The whole suite, offline
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-quick: $(INSTALLED)  ## The tests that take no more than a few seconds each
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow"

$(OLDEST_VENV)/.installed: requirements/oldest.txt pyproject.toml setup.cfg
	@command -v $(OLDEST_PYTHON) > /dev/null || { echo "make test-oldest runs the suite in $(OLDEST_PYTHON), which is \
	not on the path. Install it, or name it: make test-oldest OLDEST_PYTHON=/path/to/python3.10" >&2; exit 1; }
	$(OLDEST_PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements/oldest.txt -e ".[test]"
	touch $@

test-oldest: $(OLDEST_VENV)/.installed  ## The whole suite, offline, with the oldest versions that pyproject.toml allows
	$(OLDEST_VENV)/bin/python -m pytest -n auto --dist worksteal

$(VENV)/.dev: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev  ## The documentation, into site/
	$(BIN)/mkdocs build --strict

bench: $(INSTALLED)  ## The bars of speed and memory and what ESC and ESC-T do to the embedded models, into benchmarks/results/
	$(BIN)/python benchmarks/performance.py
	$(BIN)/python benchmarks/embedded.py
	$(BIN)/python benchmarks/several_classes.py
	$(BIN)/python benchmarks/esc_t.py

bench-check: $(INSTALLED)  ## Are there results of every method, model and class?
	$(BIN)/python benchmarks/complete.py

faults: $(INSTALLED)  ## Damaged folders, killed commands, full disks: what is missing of benchmarks/results/faults.json
	$(BIN)/python benchmarks/faults.py

tune: $(INSTALLED)  ## Learning rates of all methods on validation images, into benchmarks/results/tuning/
	$(BIN)/python benchmarks/tune.py --model embedded/resnet
	$(BIN)/python benchmarks/tune.py --model embedded/all-cnn --epochs 1
	$(BIN)/python benchmarks/tune.py --model embedded/vit --epochs 1
	$(BIN)/python benchmarks/tune.py --model embedded/resnet --fraction 0.1 --retrain build/retrain  # it says what it needs

experiments: $(INSTALLED)  ## What is missing of all experiments, into benchmarks/results/experiments/; hours if nothing is there
	$(BIN)/python benchmarks/run.py

experiments-quick: $(INSTALLED)  ## One class, one seed, methods without retain images: a few minutes
	$(BIN)/python benchmarks/run.py --quick True

paper-table1: $(INSTALLED)  ## Table 1 of the paper on its own data and networks: needs the Hub and a GPU
	$(BIN)/python benchmarks/paper.py

report: $(INSTALLED)  ## The tables in README and docs, from benchmarks/results/
	$(BIN)/python benchmarks/report.py

figures: $(VENV)/.dev  ## The figures of the experiments, into docs/images/
	$(BIN)/python benchmarks/figures.py

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist site demo *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
