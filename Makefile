# Two commands need nothing before them: `make demo` and `make test`. They set up .venv by themselves.
#   PYTHON   the interpreter to make .venv with
#   TORCH    what to install as torch; a CPU build is enough (README, "Install")
#   REPORT   what test-cann and test-npu write
PYTHON ?= python3
REPORT ?= npu_rope-report.txt
TORCH  ?= torch==2.13.0

SHELL := bash
VENV  := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/pip --disable-pip-version-check
NATIVE := $(shell find csrc cmake -type f) CMakeLists.txt setup.py

.PHONY: demo test test-cann test-npu test-lmdeploy bench lint clean

# The demo's last section shows LMDeploy's own layer, where its packages can be had.
demo: $(VENV)/built
	-@$(BIN)/python tests/lmdeploy/packages.py
	@$(BIN)/python -m npu_rope demo

# What tests would fetch and build by themselves, here with its progress shown.
test: $(VENV)/built
	@$(BIN)/python tests/lmdeploy/packages.py
	@$(BIN)/python -m npu_rope simulate -- true
	$(BIN)/python -m pytest $(ARGS)

# Every pair of LMDeploy and dlinfer of the compatibility table, not the newest alone.
test-lmdeploy: $(VENV)/built
	NPU_ROPE_LMDEPLOY_PAIRS=all $(BIN)/python -m pytest tests/test_lmdeploy.py $(ARGS)

# Both in the environment that has torch and npu_rope: not in .venv. On a machine with CANN, a chip
# or not: what its compiler makes of the kernels.
test-cann:
	$(PYTHON) -m pytest -p tests.report --report $(REPORT) tests/cann_build.py $(ARGS)

# On a machine with an NPU: the same, and the operator on the device.
test-npu:
	$(PYTHON) -m pytest -p tests.report --report $(REPORT) tests/cann_build.py \
	  tests/npu_operator.py tests/npu_norm.py tests/npu_streams.py tests/npu_faults.py $(ARGS)

bench: $(VENV)/built
	@$(PIP) install --quiet $$($(BIN)/python cmake/requirements.py bench)
	$(BIN)/python -m benchmarks $(ARGS)

lint: $(VENV)/packages
	@$(PIP) install --quiet $$($(BIN)/python cmake/requirements.py dev)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	git ls-files '*.h' '*.cpp' | xargs $(BIN)/clang-format --dry-run --Werror

clean:
	rm -rf $(VENV) build dist python/*.egg-info python/npu_rope/*.so

# torch first and by itself: what comes after is then satisfied by it and never replaces it.
$(VENV)/packages: pyproject.toml Makefile
	@echo "[1/3] environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/3] packages: torch (a few hundred MB), then what build, tests and demo need"
	@$(PIP) install --progress-bar on '$(TORCH)'
	@$(PIP) install --progress-bar on $$($(BIN)/python cmake/requirements.py build-system demo test)
	@touch $@

$(VENV)/built: $(VENV)/packages $(NATIVE)
	@echo "[3/3] building npu_rope"
	@set -o pipefail; PATH=$(abspath $(BIN)):$$PATH \
	  $(PIP) install --verbose --no-build-isolation --no-deps --editable . \
	  2>&1 | grep -E --line-buffered '^ *(\[[0-9]+/[0-9]+\]|npu_rope:|.*(error|warning|Error):)|Successfully'
	@$(BIN)/python -c 'import npu_rope'
	@touch $@
