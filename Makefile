# make demo    install, train, evaluate, record, report
# make test    install, run the tests            make lint, make types: check style and types
# make lowest  run the tests with the lowest versions that pyproject.toml allows, in build/lowest
# make docs    install, build the site into build/docs; warnings are errors
# make memory-gym  install, add Memory Gym for env=memorygym and its tests
# make memory-maze install, add Memory Maze for env=memorymaze and its tests
#
# PYTHON       a Python of 3.11 or newer:        make install PYTHON=python3.12
# TORCH_INDEX  index of torch, in addition to PyPI. The default has builds for CPUs.
#              For an NVIDIA GPU:                make install TORCH_INDEX=https://download.pytorch.org/whl/cu130
#              For the build on PyPI:            make install TORCH_INDEX=
# EXTRA        extra of pyproject.toml:          make install EXTRA=dev
# DEMO         folder of the demo:               make demo DEMO=runs/another

PYTHON ?= python3
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
EXTRA ?= dev
DEMO ?= runs/demo

BIN := .venv/bin
STAMP := .venv/installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
TORCH := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX) --retries 1 --timeout 15)

.PHONY: install memory-gym memory-maze test lowest demo docs lint types

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11 or missing; name another: make install PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch $(TORCH)
	$(PIP) -e '.[$(EXTRA)]'
	@touch $@

memory-gym: install
	$(PIP) -e '.[memory-gym]'
	$(PIP) --no-deps memory-gym==1.0.2  # it demands old versions of gymnasium and pygame

memory-maze: install
	$(PIP) -e '.[memory-maze]'
	$(PIP) --no-deps memory-maze==1.0.3  # it demands the old gym, which breaks with numpy 2

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

lowest:
	test -x build/lowest/bin/python || $(PYTHON) -m venv build/lowest
	build/lowest/bin/python -m pip install --disable-pip-version-check -c tests/constraints-lowest.txt torch $(TORCH)
	build/lowest/bin/python -m pip install --disable-pip-version-check -c tests/constraints-lowest.txt -e '.[dev]'
	OMP_NUM_THREADS=1 build/lowest/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile

demo: install
	@if [ -f $(DEMO)/config.yaml ]; then $(BIN)/lssvwm resume $(DEMO); \
	else $(BIN)/lssvwm train experiment=tmaze output=$(DEMO); fi
	$(BIN)/lssvwm evaluate checkpoint=$(DEMO) output=$(DEMO)/evaluation
	$(BIN)/lssvwm record checkpoint=$(DEMO) mode=plan output=$(DEMO)/video
	$(BIN)/lssvwm record checkpoint=$(DEMO) mode=open_loop output=$(DEMO)/video
	$(BIN)/lssvwm report $(DEMO)
	@echo "open $(DEMO)/report.html in a browser: settings, curves, tables and videos on one page"

docs: install
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "open build/docs/index.html"

lint: install
	$(BIN)/ruff check

types: install
	@mkdir -p build/types && ln -sfn ../.. build/types/lssvwm
	$(BIN)/pyright --pythonpath $(BIN)/python
