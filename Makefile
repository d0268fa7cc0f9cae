# Everything a fresh Debian 12 machine needs is installed by these targets; each can be run again.
PYTHON ?= /usr/bin/python3
VENV   := build/venv
RUN    := $(VENV)/bin/python -B

# What vmsnap imports; what tests, demo and bench run; what makes packages and repositories.
PACKAGES := python3-distro python3-sdnotify python3-jsonschema python3-yaml \
	python3-venv e2fsprogs xfsprogs btrfs-progs dosfstools util-linux mount procps \
	qemu-guest-agent qemu-system-x86 qemu-utils libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients \
	shellcheck mmdebstrap systemd-container \
	zsh fish man-db groff-base bash-completion \
	dpkg-dev debhelper dh-python pybuild-plugin-pyproject python3-all python3-setuptools python3-wheel \
	lintian rpm rpmlint createrepo-c apt-utils gnupg debian-archive-keyring

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench deb rpm repo clean
.PHONY: install install-python install-units install-data

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

test: setup ## run every test (root); builds the container's image first, once
	$(RUN) -m tests.system.image
	$(RUN) -m pytest

lint: setup ## format, lint, types, Python 3.9 (3.6 for cloud-init), shell scripts
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/vermin -q --no-tips --violations -t=3.9- vmsnap bin/vmsnap quiesce/*
	$(VENV)/bin/vermin -q --no-tips --violations -t=3.6- cloud-init/cc_vmsnap.py
	$(RUN) -m vmsnap.cli.completion completions/vmsnap.bash.in | shellcheck -
	shellcheck .ci/run debian/vmsnap.p* debian/tests/freeze-loop \
	    examples/snapshot/* cloud-init/cloud-init-hook cloud-init/50-vmsnap

format: setup ## rewrite the sources as the formatter wants them
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: setup ## measure against qemu-ga and fsfreeze (root, about 20 minutes)
	$(RUN) -m bench

# --- packages, below dist/ ---

deb: setup ## build the Debian package
	$(RUN) -m release deb

rpm: setup ## build the RPM packages, for each distribution in its turn
	$(RUN) -m release rpm

repo: setup ## make signed apt and dnf repositories of the built packages: KEY=FINGERPRINT [URL=https://...]
	$(RUN) -m release repo --key '$(KEY)' $(if $(URL),--url '$(URL)')

# --- installing: what is the same in every package ---

PYTHONDIR ?= /usr/lib/python3/dist-packages
UNITDIR   ?= /usr/lib/systemd/system
ZSHDIR    ?= /usr/share/zsh/vendor-completions
DATA      := $(DESTDIR)/usr/share
COMPLETION := $(PYTHON) -B -m vmsnap.cli.completion completions/vmsnap
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
	for section in 1 5 8; do \
	    install -d $(DATA)/man/man$$section && \
	    install -m 644 man/*.$$section $(DATA)/man/man$$section || exit 1; \
	done
	install -d $(DATA)/bash-completion/completions $(DESTDIR)$(ZSHDIR) $(DATA)/fish/vendor_completions.d
	umask 022 && $(COMPLETION).bash.in > $(DATA)/bash-completion/completions/vmsnap
	umask 022 && $(COMPLETION).zsh.in > $(DESTDIR)$(ZSHDIR)/_vmsnap
	umask 022 && $(COMPLETION).fish.in > $(DATA)/fish/vendor_completions.d/vmsnap.fish

clean: ## remove what was built
	rm -rf build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache ./*.egg-info
