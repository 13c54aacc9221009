# make run    see it work on scikit-learn's digits        make check  lint and types
# make test   the whole test suite                        make bench  the benchmarks, one by one (hours)
# make test-image, test-cluster    what is shipped, in podman and on Kubernetes' own control plane (Debian, as root, with a network)
#
# Where pip would fetch PyTorch's CUDA build (Linux on x86-64), take the CPU build:
#   make run TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt

CONTROL_PLANE := $(HOME)/.cache/tenfold-tests/control-plane

.PHONY: run test check bench clean test-image test-cluster

run: $(VENV)/.installed
	$(BIN)/tenfold run digits --budget 3m

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-image: $(VENV)/.installed-dev .clients/.installed
	TENFOLD_CLIENTS=.clients/bin/python $(BIN)/python -m pytest tests/containers/test_image.py

test-cluster: $(VENV)/.installed-dev
	tests/containers/control-plane.sh $(CONTROL_PLANE)
	$(BIN)/python -m pytest tests/containers/test_cluster.py

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev .peers/nncf/.installed .peers/inc/.installed
	-$(BIN)/python benchmarks/guard/run.py
	-$(BIN)/python benchmarks/guard/real.py
	$(BIN)/python benchmarks/resume/run.py
	$(BIN)/python benchmarks/baselines/run.py fashion-mnist
	$(BIN)/python benchmarks/baselines/run.py cifar10
	$(BIN)/python benchmarks/budgets/run.py fashion-mnist 10 30 60 90
	$(BIN)/python benchmarks/budgets/run.py cifar10 90
	$(BIN)/python benchmarks/noise/run.py
	$(BIN)/python benchmarks/noise/cost.py
	$(BIN)/python benchmarks/memory/run.py
	$(BIN)/python benchmarks/batch/run.py
	$(BIN)/python benchmarks/update/run.py
	$(BIN)/python -m benchmarks.serving.faults
	$(BIN)/python -m benchmarks.serving.bad --schemathesis .peers/schemathesis/bin/st
	for name in fashion-mnist language cifar10; do $(BIN)/python benchmarks/training/run.py $$name || exit 1; done
	$(BIN)/python benchmarks/byhand/run.py fashion-mnist runs/budgets/fashion-mnist/60m
	for run in fashion-mnist/60m cifar10/90m; do \
	    $(BIN)/python benchmarks/peers/run.py $${run%/*} runs/budgets/$$run \
	        --peer nncf=.peers/nncf/bin/python --peer inc=.peers/inc/bin/python || exit 1; \
	done

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

.clients/.installed: tests/clients/requirements.txt
	$(PYTHON) -m venv .clients
	.clients/bin/python -m pip install -q -r $<
	@touch $@

.peers/%/.installed: benchmarks/peers/requirements-%.txt
	$(PYTHON) -m venv .peers/$*
	.peers/$*/bin/python -m pip install -q $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r $<
	@touch $@

clean:
	rm -rf $(VENV) .clients .peers build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
