# Everything starts from a clean checkout and needs Python 3.10 or newer, a package index, and nothing else.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Busy threads of several processes on few cores are many times slower than one each.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo space test test-all lint types docs bench report wheel clean

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
	$(BIN)/python -m pytest -n auto --dist worksteal

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

report: $(INSTALLED)  ## The tables in README and docs, from benchmarks/results/
	$(BIN)/python benchmarks/report.py

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist site demo *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
