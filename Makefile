# What these targets need on Debian 12, they install, if root runs them; each can be run again.
PYTHON ?= /usr/bin/python3
VENV   := build/venv
RUN    := $(VENV)/bin/python -B
# Files are spread over the cores, in the order of tests/conftest.py, and each stays in one process.
PYTEST := $(RUN) -m pytest -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

# The Debian packages of each tier of tests. What vmsnap and the tests import is not among them:
# pip installs what Debian has not installed already.
UNIT     := python3-venv
LINT     := $(UNIT) shellcheck python3-docutils
FS       := $(UNIT) e2fsprogs xfsprogs btrfs-progs util-linux mount fdisk procps qemu-guest-agent
RELEASE  := dpkg-dev debhelper dh-python pybuild-plugin-pyproject python3-all python3-setuptools \
	python3-wheel python3-distro python3-sdnotify python3-jsonschema python3-docutils git make \
	rpm createrepo-c apt-utils gnupg
PACKAGES := $(FS) $(RELEASE) lintian rpmlint shellcheck systemd man-db
SHELLS   := $(FS) zsh fish bash-completion man-db groff-base python3-docutils
IMAGES   := $(FS) mmdebstrap debian-archive-keyring
SYSTEM   := $(IMAGES) $(RELEASE) systemd-container
VM       := $(IMAGES) python3-docutils qemu-system-x86 qemu-utils libvirt-daemon libvirt-daemon-driver-qemu \
	libvirt-clients
BENCH    := $(FS) dosfstools
ALL      := $(sort $(LINT) $(PACKAGES) $(SHELLS) $(SYSTEM) $(VM) $(BENCH))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test unit fs faults packages shell system vm lint format bench deb rpm repo renew clean
.PHONY: install install-python install-units install-data

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# $(call debian,PACKAGES): install what is missing, or say how.
define debian
@missing=$$(for package in $(sort $(1)); do \
    dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || echo $$package; \
done); \
[ -z "$$missing" ] || if [ "$$(id -u)" != 0 ]; then \
    echo "not installed:" $$missing >&2; \
    echo "run this once as root: apt-get install --no-install-recommends" $$missing >&2; exit 1; \
else \
    apt-get update -q && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; \
fi
endef

needs-%:
	$(call debian,$($*))

PIP := $(VENV)/bin/pip install -q --disable-pip-version-check

$(VENV)/.test: requirements-test.txt requirements-run.txt | needs-UNIT
	$(PYTHON) -m venv --system-site-packages $(VENV)
	$(PIP) --require-hashes -r requirements-test.txt
	$(VENV)/bin/python -c 'import distro, jsonschema, sdnotify, yaml' 2>/dev/null || \
	    $(PIP) --require-hashes --use-pep517 -r requirements-test.txt -r requirements-run.txt
	@touch $@

# The program itself, as this checkout has it.
$(VENV)/bin/vmsnap: setup.py pyproject.toml bin/vmsnap $(VENV)/.test
	$(PIP) --no-deps --editable .
	@touch $@

$(VENV)/.lint: requirements-dev.txt $(VENV)/.test
	$(PIP) --require-hashes -r requirements-test.txt -r $<
	@touch $@

setup: needs-ALL $(VENV)/bin/vmsnap $(VENV)/.lint ## install all that development needs

demo: needs-FS $(VENV)/bin/vmsnap ## take an application-consistent snapshot of a busy application, and prove it (root)
	$(RUN) -m demo

# --- tests: all, or one tier ---

test: needs-ALL $(VENV)/bin/vmsnap ## run every test (root); builds the images of containers and machines first, once
	$(RUN) -m tests.system.image
	$(PYTEST)

unit: $(VENV)/.test ## the tests that anybody can run, in less than a minute
	$(PYTEST) -q tests/unit

fs: needs-FS $(VENV)/bin/vmsnap ## real filesystems on loop devices (root)
	$(PYTEST) tests/fs

faults: needs-FS $(VENV)/bin/vmsnap ## kills, stops and shortages at random moments (root): [SEED=N] [ROUNDS=100] [MINUTES=M]
	$(RUN) -m tests.faults $(if $(SEED),--seed=$(SEED)) $(if $(ROUNDS),--rounds=$(ROUNDS)) $(if $(MINUTES),--minutes=$(MINUTES))

packages: needs-PACKAGES $(VENV)/bin/vmsnap ## what is in the packages, and what their scripts do (root)
	$(PYTEST) tests/packages

shell: needs-SHELLS $(VENV)/bin/vmsnap ## completion and manual in real shells (root)
	$(PYTEST) tests/shell

system: needs-SYSTEM $(VENV)/bin/vmsnap ## containers with systemd (root); builds their images first, once
	$(RUN) -m tests.system.image containers
	$(PYTEST) tests/system

vm: needs-VM $(VENV)/bin/vmsnap ## whole virtual machines (root); builds their images first, once
	$(RUN) -m tests.system.image machines
	$(PYTEST) tests/vm

lint: needs-LINT $(VENV)/.lint ## format, lint, types, Python 3.9 (3.6 for cloud-init), shell scripts, manual
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/vermin -q --no-tips --violations -t=3.9- vmsnap bin/vmsnap quiesce/*
	$(VENV)/bin/vermin -q --no-tips --violations -t=3.6- cloud-init/cc_vmsnap.py
	$(RUN) -m vmsnap.cli.completion completions/vmsnap.bash.in | shellcheck -
	for page in man/*.rst; do $(RUN) -m vmsnap.cli.manual $$page >/dev/null || exit 1; done
	shellcheck .ci/run debian/vmsnap.p* debian/tests/freeze-loop \
	    examples/snapshot/* cloud-init/cloud-init-hook cloud-init/50-vmsnap

format: $(VENV)/.lint ## rewrite the sources as the formatter wants them
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: needs-BENCH $(VENV)/bin/vmsnap ## measure against qemu-ga and fsfreeze (root, about 20 minutes)
	$(RUN) -m bench

# --- packages, below dist/ ---

deb: needs-RELEASE $(VENV)/.test ## build the Debian package
	$(RUN) -m release deb

rpm: needs-RELEASE $(VENV)/.test ## build the RPM packages, for each distribution in its turn
	$(RUN) -m release rpm

repo: needs-RELEASE $(VENV)/.test ## make signed apt and dnf repositories of the built packages: KEY=FINGERPRINT [URL=https://...]
	$(RUN) -m release repo --key '$(KEY)' $(if $(URL),--url '$(URL)')

renew: needs-RELEASE $(VENV)/.test ## sign the apt index in dist/repo for another month: KEY=FINGERPRINT
	$(RUN) -m release renew --key '$(KEY)'

# --- installing: what is the same in every package ---

PYTHONDIR ?= /usr/lib/python3/dist-packages
UNITDIR   ?= /usr/lib/systemd/system
ZSHDIR    ?= /usr/share/zsh/vendor-completions
DATA      := $(DESTDIR)/usr/share
COMPLETION := $(PYTHON) -B -m vmsnap.cli.completion completions/vmsnap
MANUAL    := $(PYTHON) -B -m vmsnap.cli.manual
QUIESCERS := $(addprefix quiesce/,mariadb postgresql redis)

install: install-python install-units install-data ## install everything below DESTDIR, without a package
	umask 022 && $(PYTHON) -m compileall -q $(if $(DESTDIR),-s $(DESTDIR)) $(DESTDIR)$(PYTHONDIR)/vmsnap
	$(if $(DESTDIR),,-journalctl --update-catalog; systemctl daemon-reload)

install-python:
	for folder in vmsnap vmsnap/*/__init__.py; do \
	    folder=$${folder%/__init__.py} && install -d $(DESTDIR)$(PYTHONDIR)/$$folder && \
	    install -m 644 $$folder/*.py $(DESTDIR)$(PYTHONDIR)/$$folder || exit 1; \
	done
	install -m 644 vmsnap/py.typed $(DESTDIR)$(PYTHONDIR)/vmsnap
	install -m 644 vmsnap/config/app.schema.json $(DESTDIR)$(PYTHONDIR)/vmsnap/config
	install -m 644 vmsnap/provision/provision.schema.json $(DESTDIR)$(PYTHONDIR)/vmsnap/provision

install-units:
	install -d $(DESTDIR)$(UNITDIR)
	install -m 644 systemd/* $(DESTDIR)$(UNITDIR)

install-data:
	install -D -m 755 bin/vmsnap $(DESTDIR)/usr/bin/vmsnap
	install -d -m 700 $(DESTDIR)/etc/vmsnap $(DESTDIR)/var/lib/vmsnap \
	    $(addprefix $(DESTDIR)/etc/vmsnap/,apps.d scripts vmsnap.conf.d)
	install -m 600 etc/vmsnap.conf $(DESTDIR)/etc/vmsnap/vmsnap.conf
	install -D -m 644 vmsnap/config/app.schema.json $(DATA)/vmsnap/app.schema.json
	umask 022 && $(PYTHON) -B -m vmsnap.provision.document > $(DATA)/vmsnap/provision.schema.json
	install -D -m 644 cloud-init/cc_vmsnap.py $(DATA)/vmsnap/cloud-init/cc_vmsnap.py
	install -D cloud-init/cloud-init-hook $(DESTDIR)/usr/libexec/vmsnap/cloud-init-hook
	install -D -m 644 cloud-init/vmsnap-cloud-init.conf \
	    $(DESTDIR)/usr/lib/tmpfiles.d/vmsnap-cloud-init.conf
	install -D cloud-init/50-vmsnap $(DESTDIR)/etc/cloud/clean.d/50-vmsnap
	install -D -m 644 aws/ssm-document.yaml $(DATA)/vmsnap/aws/ssm-document.yaml
	install -d $(DESTDIR)/usr/lib/vmsnap/quiesce
	install -m 644 quiesce/holding.py $(DESTDIR)/usr/lib/vmsnap/quiesce
	install -m 700 $(QUIESCERS) $(DESTDIR)/usr/lib/vmsnap/quiesce
	install -d $(DESTDIR)/usr/lib/systemd/catalog
	umask 022 && $(PYTHON) -B -m vmsnap.journal.catalog en > $(DESTDIR)/usr/lib/systemd/catalog/vmsnap.catalog
	umask 022 && $(PYTHON) -B -m vmsnap.journal.catalog es > $(DESTDIR)/usr/lib/systemd/catalog/vmsnap.es.catalog
	umask 022 && for page in $(basename $(notdir $(wildcard man/*.rst))); do \
	    install -d $(DATA)/man/man$${page##*.} && \
	    $(MANUAL) man/$$page.rst > $(DATA)/man/man$${page##*.}/$$page || exit 1; \
	done
	install -d $(DATA)/bash-completion/completions $(DESTDIR)$(ZSHDIR) $(DATA)/fish/vendor_completions.d
	umask 022 && $(COMPLETION).bash.in > $(DATA)/bash-completion/completions/vmsnap
	umask 022 && $(COMPLETION).zsh.in > $(DESTDIR)$(ZSHDIR)/_vmsnap
	umask 022 && $(COMPLETION).fish.in > $(DATA)/fish/vendor_completions.d/vmsnap.fish

clean: ## remove what was built
	rm -rf build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache ./*.egg-info
