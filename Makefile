# What CI runs: `make check`. Needs `pip install -e '.[test,cbc,pyhessian,onnx,openvino,torchao]'`.
PYTHON ?= python

.PHONY: check lint types test bench

check: lint types test

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest -n 2

bench:
	$(PYTHON) benchmarks/resnet20_weights_only.py
