# What a person types. Everything is installed into .venv beside this file, from the hashed
# lock requirements.txt; nothing outside this directory is touched. All that is needed is
# Python 3.11 or later.

HOST = 127.0.0.1
PORT ?= 8000
# Branch coverage that `make test` asks for, in per cent.
COVERAGE = 100
# Which Python to make .venv with; found by itself when empty.
PYTHON =

BIN := .venv/bin
# Of the lock, only what the service runs with: all above the line that begins the tests' part.
SERVICE_PART := sed '/^\# --- tests and checks/,$$d' requirements.txt
# -qq: errors only. -I: packages of the user's own and PYTHONPATH do not count as installed here.
INSTALL := $(BIN)/python -I -m pip install -qq --disable-pip-version-check --require-hashes
# A user's own `pip config set global.user true` would make pip refuse inside .venv.
export PIP_USER := 0

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/  make \1@\2/p' Makefile | awk -F@ '{ printf "%-16s%s\n", $$1, $$2 }'

run: .venv/service.installed  ## start the service on http://127.0.0.1:8000 (PORT=…, HOST=…)
	@$(BIN)/python -m job_scheduler serve --host $(HOST) --port $(PORT)

test: lint  ## the static checks and the whole test suite, with coverage (htmlcov/index.html)
	$(BIN)/python -m pytest -n 2 --cov=job_scheduler --cov-report=term-missing --cov-report=html --cov-fail-under=$(COVERAGE)

bench: .venv/everything.installed  ## measure beside other schedulers; writes docs/benchmarks.md (BENCH="--quick …")
	@$(BIN)/python -m benchmarks $(BENCH)

lint: .venv/everything.installed  ## the static checks alone
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict
	$(BIN)/lint-imports --no-logo

format: .venv/everything.installed  ## lay the code out, and mend what can be mended by itself
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: $(BIN)/python  ## write requirements.txt anew from pyproject.toml: the newest that fits
	@$(BIN)/python .ci/lock

clean:  ## remove .venv and whatever the tools left (never a database)
	rm -rf .venv .bench .coverage .coverage.* htmlcov .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
	find job_scheduler tests -name __pycache__ -prune -exec rm -rf {} +

# Both marks lie inside .venv, so they vanish with it, and are older than a changed lock.
.venv/service.installed: requirements.txt | $(BIN)/python
	@echo "Installing the service into .venv (the first time this takes about a minute) …"
	@$(SERVICE_PART) > .venv/service.txt
	@$(INSTALL) -r .venv/service.txt
	@touch $@

.venv/everything.installed: requirements.txt | $(BIN)/python
	@echo "Installing the service, its tests and checks into .venv (the first time this takes about a minute) …"
	@$(INSTALL) -r requirements.txt
	@touch .venv/service.installed $@

# A half-made .venv (Debian's python3 without python3-venv makes one) is not left behind.
$(BIN)/python:
	@found=; bare=; for python in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || continue; \
	    if "$$python" -c 'import ensurepip, venv' 2> /dev/null; then found="$$python"; break; fi; \
	    bare="$$python"; \
	done; \
	if [ -z "$$found" ] && [ -n "$$bare" ]; then \
	    echo "$$bare cannot make virtual environments. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; \
	elif [ -z "$$found" ]; then \
	    echo "Python 3.11 or later was not found. Install it, or say where it is: make PYTHON=/path/to/python3 …" >&2; exit 1; \
	fi; \
	echo "Making .venv with $$("$$found" --version)"; \
	"$$found" -m venv --clear .venv || { rm -rf .venv; exit 1; }

.PHONY: help run test bench lint format lock clean
