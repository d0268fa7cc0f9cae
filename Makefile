# Everything a fresh Debian 12 machine needs is installed by these targets; each can be run again.
PYTHON ?= /usr/bin/python3
VENV   := build/venv
RUN    := $(VENV)/bin/python -B

# What vmsnap imports, then what tests, demo and bench run.
PACKAGES := python3-distro python3-sdnotify python3-jsonschema \
	python3-venv e2fsprogs xfsprogs btrfs-progs dosfstools util-linux mount procps \
	qemu-guest-agent shellcheck

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.ready ## install what development needs (Debian packages, a venv)

build/.packages: Makefile
	@mkdir -p build
	@missing=$$(for p in $(PACKAGES); do \
	    dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	    [ "$$(id -u)" = 0 ] || { echo "not installed:" $$missing "- run this once as root" >&2; exit 1; }; \
	    apt-get update -q && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; \
	fi
	@touch $@

$(VENV)/.ready: build/.packages requirements-dev.txt setup.py pyproject.toml bin/vmsnap
	$(PYTHON) -m venv --system-site-packages $(VENV)
	$(VENV)/bin/pip install -q -r requirements-dev.txt
	$(VENV)/bin/pip install -q --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## take an application-consistent snapshot of a busy application, and prove it (root)
	$(RUN) -m demo

test: setup ## run every test (root)
	$(RUN) -m pytest

lint: setup ## format, lint, types, Python 3.9, shell scripts
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/vermin -q --no-tips --violations -t=3.9- vmsnap bin/vmsnap
	shellcheck .ci/run

format: setup ## rewrite the sources as the formatter wants them
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: setup ## measure against qemu-ga and fsfreeze (root, about 20 minutes)
	$(RUN) -m bench

clean: ## remove what was built
	rm -rf build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache ./*.egg-info
