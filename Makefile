# Each target works as the first command in a fresh clone: what it needs is set up first, in
# .venv, and again whenever the build or the C code changed.
#
#     make test PYTHON=/usr/bin/python3     build with that interpreter (after make clean)
#     make test TESTS='-k pump -x'          arguments for pytest
#     make bench BENCH='--quick restart'    arguments for the benchmarks (--help tells)
#     make chaos CHAOS='--seed 7 kill'      arguments for the long test of survival

PYTHON ?=
CC ?= gcc
TESTS ?=
BENCH ?=
CHAOS ?=

VENV := .venv
BIN := $(VENV)/bin
BUILT := $(VENV)/.built
READY := $(VENV)/.ready
NATIVE := $(wildcard _native/*)
C_CODE := $(wildcard _native/*.c tests/native/*.c tests/bench/*.c tests/chaos/*.c)

# The wheel support of setuptools 70.1 spares a dependency on the wheel package.
BUILD_TOOLS := 'setuptools>=70.1' 'cffi>=1.15.1'
PRINT_EXTRAS := import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
    [print(item) for name in ("test", "check") for item in extras["optional-dependencies"][name]]
PRINT_WARNINGS := import runpy; print(runpy.run_path("_native/build.py")["WARNINGS"])

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test check check-format check-lint check-types check-c bench chaos format clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo    build, and see the founding examples at work'
	@echo 'make test    build, and run all tests'
	@echo 'make check   formatting, lint, types, compiler warnings'
	@echo 'make bench   measure, with other supervisors and loggers beside it'
	@echo 'make chaos   kill, upgrade and stop the daemon under load for 20 minutes: is anything lost?'
	@echo 'make install build, and install for systemd (packaging/install.mk has its variables)'
	@echo 'make deb     a package for Debian, in dist/'
	@echo 'make rpm     a package for Fedora, in dist/'
	@echo 'make format  put the Python code in shape'
	@echo 'make clean   remove all that was built'

demo: $(READY)
	@$(BIN)/python -m tests.e2e.demo

test: $(READY)
	@.ci/prerequisites --tests $(BIN)/python >/dev/null
	@$(BIN)/python -m tests.lab || echo 'tests that need such a machine will be skipped' >&2
	@$(BIN)/python -m pytest $(TESTS)

check: check-format check-lint check-types check-c

check-format: $(READY)
	@echo 'format' && $(BIN)/ruff format --check --quiet .

check-lint: $(READY)
	@echo 'lint' && $(BIN)/ruff check --quiet .

check-types: $(READY)
	@echo 'types' && $(BIN)/mypy --no-error-summary

check-c: $(READY)
	@echo 'compiler warnings' && for file in $(C_CODE); do \
	    $(CC) $$($(BIN)/python -c '$(PRINT_WARNINGS)') -Werror -O2 -I_native -c -o /dev/null $$file \
	        || exit 1; \
	done

bench: $(READY)
	@$(BIN)/python -m tests.bench $(BENCH)

chaos: $(READY)
	@.ci/prerequisites --tests $(BIN)/python >/dev/null
	@$(BIN)/python -m tests.chaos $(CHAOS)

format: $(READY)
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info sysup/_native.c sysup/_native*.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find sysup tests _native -name __pycache__ -prune -exec rm -rf {} +

# The extension is built into sysup/ and the package installed from there, so Python code runs
# as it stands; an old extension is removed first, lest a failed build leave it in use.
$(BUILT): pyproject.toml setup.py Makefile .ci/prerequisites $(NATIVE)
	@python=$$(.ci/prerequisites $(PYTHON)) && \
	    if ! $(BIN)/python -c '' 2>/dev/null; then \
	        echo "making $(VENV) with $$python" && $$python -m venv --clear $(VENV); \
	    fi
	@rm -f sysup/_native*.so
	@echo 'getting the build tools' && $(BIN)/python -m pip install --quiet $(BUILD_TOOLS)
	@echo 'building sysup, getting what it needs' && \
	    $(BIN)/python -m pip install --quiet --no-build-isolation --editable .
	@touch $@

$(READY): $(BUILT)
	@echo 'getting what its tests need' && $(BIN)/python -c '$(PRINT_EXTRAS)' | \
	    $(BIN)/python -m pip install --quiet --requirement /dev/stdin
	@touch $@

include packaging/install.mk
include packaging/packages.mk
