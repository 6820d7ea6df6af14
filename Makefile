# Needs `pip install -e '.[test,cbc,pyhessian,onnx,openvino,torchao,compressed-tensors,gguf,mlx,ray,scores,trees,tensorboard,mlflow]'`; `make docs` needs `.[docs]`,
# `make mutants` needs `.[test,mutants]`.
# The sentences after ## are what `make` prints.
PYTHON ?= python

.DEFAULT_GOAL := help
.PHONY: help check lint types test test-fast newest format coverage mutants docs bench zoo soak targets clean

help:  ## Say what can be made.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

check:  ## Do what CI does: lint, types, documentation, tests.
	$(MAKE) --jobs 3 lint types docs  # each runs on one core
	$(MAKE) test

lint:  ## Look for mistakes and for files that are not formatted.
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:  ## Check the types of everything, strictly.
	$(PYTHON) -m mypy

test:  ## Run all tests, doctests and notebooks (minutes).
	$(PYTHON) -m pytest -n 2 --dist worksteal

test-fast:  ## Run what is quick enough before every commit.
	$(PYTHON) -m pytest -n 2 --dist worksteal -m "not slow"

newest:  ## Do what CI does with the newest dependencies instead of the tested ones.
	MPQ_CONSTRAINTS= bash .ci/run

format:  ## Rewrite the files as `make lint` wants them.
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

coverage:  ## Run all tests and list the lines that none of them reaches.
	$(PYTHON) -m pytest -n 2 --dist worksteal --cov --cov-report=term-missing:skip-covered

mutants:  ## Change the core and see whether a test dies: a sample (hours; goes on where it stopped).
	$(PYTHON) -m scripts.mutants benchmarks/mutants.json

docs:  ## Build the documentation into site/; a broken link is an error.
	$(PYTHON) -m mkdocs build --strict

bench:  ## Measure the search on ResNet-20 against uniform precisions and random search.
	$(PYTHON) benchmarks/resnet20_weights_only.py

zoo:  ## Take every model class of transformers through mpq (an hour or more; goes on where it stopped).
	$(PYTHON) -m scripts.zoo benchmarks/zoo.json

soak:  ## Kill every long command at random moments, and run it again (ten minutes).
	$(PYTHON) -m scripts.soak

targets:  ## Run the readers that are outside of CI, each in an environment of its own (gigabytes).
	$(PYTHON) -m scripts.targets --into benchmarks/targets.json

clean:  ## Remove what tests, tools and builds have left in the clone.
	rm -rf build dist site .coverage .coverage.* coverage.xml htmlcov
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
