# Two commands, each enough on a fresh machine with Python 3.11 or newer:
#   make search    set up, then search on DATA for BUDGET and write the front and its report to OUT
#   make test      set up, then lint, type-check and run the tests
# Others: make setup, make bench [BENCH=name], make clean.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
DATA   ?= digits
BUDGET ?= 200s
OUT    ?= runs/$(basename $(notdir $(patsubst %/,%,$(DATA))))
ARGS   ?=
BENCH  ?=
JOBS   ?= 2

BIN   := .venv/bin
READY := .venv/.ready
PIP   := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: search test setup bench clean
.DEFAULT_GOAL := search

search: $(READY)
	$(BIN)/nasopt search --data "$(DATA)" --budget "$(BUDGET)" --out "$(OUT)" $(ARGS)

test: $(READY)
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

setup: $(READY)

# torch goes first and alone: what is installed after it must not choose another build of it.
$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "nasopt needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e ".[onnx,compare,dev]"
	@touch $@

bench: $(READY)
	@if [ -n "$(BENCH)" ]; then $(BIN)/python benchmarks/$(BENCH).py $(ARGS); \
	else echo "Benchmarks (make bench BENCH=name):"; \
	  for f in benchmarks/[a-z]*.py; do [ ! -e "$$f" ] || echo "  $$(basename $$f .py)"; done; fi

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist src/nasopt.egg-info
