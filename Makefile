# make demo, make test, make test-slow, make test-npu, make lint, make docs: each creates .venv and installs what it needs.
# make test-serve creates .venv-serve, with vLLM for CPUs.
# make ... TORCH_INDEX=https://download.pytorch.org/whl/cpu takes torch from there (the small CPU build).
PYTHON ?= python3
VENV ?= .venv
SERVE_VENV ?= .venv-serve
SERVE_SECONDS ?= 900
TORCH_INDEX ?=
BIN := $(VENV)/bin
# Two processes, each with whole files of tests, in order: what a file's tests share is made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
INSTALLED := $(VENV)/.installed
# Without setuptools' page on editable installs.
QUIET_PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -c constraints.txt

.PHONY: demo test test-slow test-npu test-serve lint docs clean

demo: $(INSTALLED)
	$(BIN)/python scripts/demo.py

test: $(INSTALLED)
	$(PYTEST) -m "not slow"

test-slow: $(INSTALLED)
	$(PYTEST) -m slow

# On the genuine torch_npu and stand-in CANN libraries; says so and succeeds where gcc, torch_npu or a CPU build of
# torch is missing.
test-npu: $(INSTALLED)
	$(BIN)/python -m tests.npu.standin.lane -m pytest tests/npu

# In vLLM for CPUs; says so and succeeds where it cannot be installed within SERVE_SECONDS.
test-serve:
	@sh scripts/serve_venv.sh $(PYTHON) $(SERVE_VENV) $(SERVE_SECONDS) $(TORCH_INDEX); status=$$?; \
	if [ $$status -eq 77 ]; then exit 0; elif [ $$status -ne 0 ]; then exit $$status; fi; \
	$(SERVE_VENV)/bin/python -m pytest tests/serving/vllm

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The site, in site/; says so and succeeds where its packages cannot be installed.
docs: $(INSTALLED)
	@if $(QUIET_PIP) -e ".[docs]"; \
	then NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict; \
	else echo "make docs: SKIPPED: the packages of the extra docs cannot be installed" >&2; fi

$(INSTALLED): pyproject.toml constraints.txt scripts/check_machine.sh
	sh scripts/check_machine.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	@echo "Installing torch (a CUDA build is several GB; see README for the CPU build) ..."
	$(BIN)/python -m pip install --quiet -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@echo "Installing lrsa_lightning ..."
	$(QUIET_PIP) -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(SERVE_VENV) build dist site *.egg-info
