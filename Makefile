# make demo, make test, make test-slow, make test-npu, make lint: each creates .venv and installs what it needs.
# make ... TORCH_INDEX=https://download.pytorch.org/whl/cpu takes torch from there (the small CPU build).
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(VENV)/bin
# Two processes, each with whole files of tests, in order: what a file's tests share is made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow test-npu lint clean

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

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(INSTALLED): pyproject.toml constraints.txt scripts/check_machine.sh
	sh scripts/check_machine.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	@echo "Installing torch (a CUDA build is several GB; see README for the CPU build) ..."
	$(BIN)/python -m pip install --quiet -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@echo "Installing lrsa_lightning ..."
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
