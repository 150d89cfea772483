# `make help` lists the targets. Everything happens in .venv. Python 3.10 to 3.13 and the package index are needed, nothing else.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
# The first of these that is 3.10 to 3.13 (hydra-core does not start on 3.14); set PYTHON for another one.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)

.PHONY: help install run pretrained pegasus judge demo test test-all rehearsal lint types docs format tensorboard wheel clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.10 to 3.13 found. Install one, or run: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "Making the environment in $(VENV) with $(PYTHON); PyTorch is a large download, the first time takes a few minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

install: $(BIN)/.installed ## Make .venv and install the package and its tools

run: install ## Train a small adversarial VAE on drawn horses and birds (about five minutes on two cores)
	$(BIN)/python -m pegasus_lightning experiment=first_run

pretrained: install ## Make pegasi at once, with the model that comes with the package
	$(BIN)/python -m pegasus_lightning.generate pretrained=pegasus

pegasus: install ## Make pegasi with the model of `make run`: drawn, searched for, guided
	$(BIN)/python -m pegasus_lightning.generate run=runs/first_run
	$(BIN)/python -m pegasus_lightning.generate run=runs/first_run search=best_of
	$(BIN)/python -m pegasus_lightning.generate run=runs/first_run search=guided

judge: install ## Evaluate that model, and write the report page
	$(BIN)/python -m pegasus_lightning.evaluate run=runs/first_run
	$(BIN)/python -m pegasus_lightning.report runs/first_run

MODELS := adversarial_vae,two_fc_layers,four_conv_layers,spectral_norm,critic_without_batch_norm,vae_gan,acai
demo: install ## A small ablation on drawings, with an eighth model that must fail (about five minutes)
	$(BIN)/python -m pegasus_lightning -m experiment=demo_ablation --config-dir=experiments/survival/presets \
		model=$(MODELS),exploding || test $$? -eq 1
	$(BIN)/python experiments/survival/demo_outcome.py runs/demo_ablation

# Two processes with a thread each: the tests' networks are too small for more threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

test: install ## Run the fast tests (under four minutes on two cores)
	$(PYTEST) -m 'not slow'

test-all: install ## Run all tests, also the long proofs
	$(PYTEST)

rehearsal: install ## Run the GPU kit on the CPU with tiny sizes (under two minutes)
	out=$$(mktemp -d) && REHEARSAL=1 PYTHON=$(CURDIR)/$(BIN)/python bash experiments/gpu/run.sh $$out 600 || { cat $$out/*.txt; exit 1; }

lint: install ## Check style with ruff, and the layering of the rooms with import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install ## Check types with mypy
	$(BIN)/mypy

docs: install ## Write the documentation as a site to site/, and check its links
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open site/index.html"

format: install ## Fix style with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tensorboard: install ## Show all runs in TensorBoard
	$(BIN)/tensorboard --logdir runs

wheel: install ## Build a wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean: ## Remove .venv, caches and builds (runs/ and datasets/ stay)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
