# Everything trtkit needs lives in $(VENV), which the first target makes: only Python 3.10 to 3.13 and make must be there.
PYTHON ?= python3
VENV ?= .venv
# Two workers fit two cores; more only help where there are more.
WORKERS ?= 2

RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
TYPES := $(VENV)/.types
DOCUMENTATION := $(VENV)/.docs
# TensorRT-RTX has wheels for x86-64 Linux (and Windows, which has no use for this file); elsewhere the rest works without it.
EXTRAS := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),rtx$(shell echo ,))notebook,scale,dev
# One thread a worker: PyTorch and ONNX Runtime otherwise start one a core in every worker and slow each other down.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help install demo demo-models lab test coverage fuzz test-browser test-gpu test-wheel docs lint format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Make the virtual environment and install trtkit into it

demo: $(INSTALLED) ## Compare FP32, FP16 and INT8 of the embedded model: no GPU, no data, no arguments
	$(RUN) -m trtkit demo

# Which pixels a seed gives depends on the photographs, which come with these versions.
demo-models: $(INSTALLED) ## Train the demo's models on generated scenes into runs/demo-models: one NVIDIA GPU, 17 minutes
	$(RUN) -m pip install --quiet --disable-pip-version-check scikit-image==0.26.0 scikit-learn==1.9.1
	$(RUN) tools/train_demo.py runs/demo-models --minutes 16 --resume

lab: $(INSTALLED) ## Open the notebooks in JupyterLab
	$(RUN) -m trtkit lab

test: $(INSTALLED) ## Run the tests that need neither a GPU nor a browser
	$(ONE_THREAD) $(RUN) -m pytest -q -n $(WORKERS) --dist worksteal -m "not gpu and not browser and not exhaustive"

coverage: $(INSTALLED) ## Run the same tests with branch coverage; the report is in runs/coverage/index.html
	$(ONE_THREAD) $(RUN) -m pytest -q -n $(WORKERS) --dist worksteal -m "not gpu and not browser and not exhaustive" \
		--cov --cov-report=term:skip-covered --cov-report=html

fuzz: $(INSTALLED) ## Read 500 damaged files of each of nine kinds; the table is in docs/fuzzing.md
	$(ONE_THREAD) $(RUN) tests/fuzz/run.py --count 500 --workers $(WORKERS)

test-browser: $(INSTALLED) ## Click through the widgets in JupyterLab; needs Chromium, which CHROMIUM may name
	$(ONE_THREAD) $(RUN) -m pytest -q -m browser tests/browser

test-gpu: $(INSTALLED) ## Run the tests that need an NVIDIA GPU and TensorRT
	$(RUN) -m pytest -q -m gpu

test-wheel: $(INSTALLED) ## Build sdist and wheel into dist/ and use the wheel in an environment of its own
	$(RUN) tools/check_wheel.py dist

docs: $(DOCUMENTATION) ## Build the documentation into build/site: notebooks and code blocks run, links checked, no network
	$(ONE_THREAD) PYTHONPATH=tools $(RUN) -m documentation

lint: $(INSTALLED) $(TYPES) ## Check format, style and types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports --no-cache

format: $(INSTALLED) ## Format the code and sort its imports
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean: ## Remove the virtual environment, results and caches
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info < (3, 14) else \
		"trtkit needs Python 3.10 to 3.13, and $(PYTHON) is %d.%d; name another: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml requirements.lock trtkit/version.py | $(RUN)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[$(EXTRAS)]'
	@touch $@

$(DOCUMENTATION): $(INSTALLED)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[docs]'
	@touch $@

# The type checker reads TensorRT's API from stubs; what they depend on, TensorRT 10.13 itself, can't be installed everywhere.
$(TYPES): $(INSTALLED)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps tensorrt-stubs==10.13.0.35.1
	@touch $@
