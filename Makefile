# Inside the environment that README's set-up command makes; `make PYTHON=python` uses another one.
PYTHON ?= .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: style quality test test-all docs-check zoo slices model_cards notebook benchmarks help

style:  ## rewrite: sorted imports, one format
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

quality:  ## check without writing: lint, format, types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

test:  ## the default tests, doctests and pages
	$(PYTHON) -m pytest

test-all:  ## also the slow ones; still offline, still without an accelerator
	$(PYTHON) -m pytest -m "not network and not gpu and not multi_gpu"

docs-check:  ## what the pages and docstrings say
	$(PYTHON) -m pytest tests/test_docs.py tests/test_floors.py src

zoo:  ## every model type of the installed transformers, and docs/architectures.md from it (half an hour on two busy cores)
	PYTHONPATH=src:tests/architectures $(PYTHON) -m zoo.sweep --jobs 2 --output runs/zoo.jsonl; swept=$$?; \
	PYTHONPATH=src:tests/architectures $(PYTHON) -m zoo.table runs/zoo.jsonl --output docs/architectures.md && exit $$swept

slices:  ## every model type cut on disk and in memory, compared to the byte (an hour or so on two cores)
	PYTHONPATH=src:tests/architectures $(PYTHON) -m zoo.slices --jobs 2 --output runs/slices.jsonl

model_cards:  ## train and prune the small models of the examples again, and model_cards/ from them (five minutes or so)
	PYTHONPATH=src $(PYTHON) reproduce/model_cards.py --output_dir model_cards

notebook:  ## run examples/pruning_tour.ipynb and keep what it shows
	PYTHONPATH=src $(PYTHON) reproduce/notebook.py

benchmarks:  ## time everything against what one would use instead, and benchmarks/results/ (under 20 minutes on two idle cores)
	PYTHONPATH=src $(PYTHON) benchmarks/run.py

help:  ## this list
	@sed -n 's/^\([a-z_-]*\):  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14
