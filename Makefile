# make run    see it work on scikit-learn's digits        make check  lint and types
# make test   the whole test suite                        make bench  the benchmarks, one by one (hours)
#
# Where pip would fetch PyTorch's CUDA build (Linux on x86-64), take the CPU build:
#   make run TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt

.PHONY: run test check bench clean

run: $(VENV)/.installed
	$(BIN)/tenfold run digits --budget 3m

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev
	-$(BIN)/python benchmarks/guard/run.py
	$(BIN)/python benchmarks/resume/run.py
	$(BIN)/python benchmarks/baselines/run.py
	-$(BIN)/tenfold run fashion-mnist --budget 20m --out runs/bench $(if $(wildcard runs/bench),--resume)
	$(BIN)/python benchmarks/byhand/run.py fashion-mnist runs/bench

$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing PyTorch (the CPU build: see the top of the Makefile)"
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "torch>=2.13,<2.14"
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	@echo "installing Tenfold"
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
