# On a fresh Debian 12 or newer, or Ubuntu 24.04:  sudo make demo   or   sudo make test
.PHONY: setup demo test test-quick lint bench clean

PYTHON := .venv/bin/python

setup:
	@.ci/setup run

# for all users: PREFIX is /usr/local by default, DESTDIR stands for /
.PHONY: install uninstall
install: setup
	@.ci/install

uninstall:
	@.ci/install uninstall

demo: setup
	@.venv/bin/redirty demo

# With PYTEST_ARGS just those. Without, first what runs on this kernel, two files at a time, as most of it
# waits most of the time; then the emulated machines, each of which keeps one processor busy, two at a time.
ifneq ($(strip $(PYTEST_ARGS)),)
test: test-setup
	@$(PYTHON) -m pytest $(PYTEST_ARGS)
else
test: test-setup
	@failed=0; \
	$(PYTHON) -m pytest --ignore tests/vm --numprocesses 2 --dist loadfile --durations 15 || failed=1; \
	$(PYTHON) -m pytest tests/vm --numprocesses 2 --dist loadgroup --durations 15 || failed=1; \
	exit $$failed
endif

# the traps of dirty tracking on every kernel, emulated
.PHONY: test-kernels
test-kernels: test-setup
	@$(PYTHON) -m tests.vm.matrix $(KERNELS_ARGS)

# without the VM and the long host tests
test-quick: test-setup
	@$(PYTHON) -m pytest tests/unit $(PYTEST_ARGS)

lint: test-setup
	@$(PYTHON) .ci/docstrings.py
	@$(PYTHON) .ci/texts.py
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check -q .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache

# what to run before a commit: no root, about two minutes
.PHONY: pre-commit
pre-commit: lint
	@$(PYTHON) -m pytest -q tests/unit --numprocesses 2 --dist loadfile $(PYTEST_ARGS)

# the documentation as a site; a warning is a failure
.PHONY: docs
docs:
	@.ci/setup docs
	@$(PYTHON) -m sphinx -q -W --keep-going -b html docs docs/build/html
	@echo "docs/build/html/index.html"

# the section of CHANGELOG.md for a release, from the fragments in news/:  make changelog VERSION=0.2.0
.PHONY: changelog
changelog: test-setup
	@$(PYTHON) -m towncrier build --yes --version "$(VERSION)"

bench: test-setup
	@$(PYTHON) -m tests.bench $(BENCH_ARGS)

# predictions beside real migrations of emulated machines, and CRIU's pre-dumps: see tests/bench/README.md
.PHONY: bench-migration
bench-migration: test-setup
	@$(PYTHON) -m tests.bench.migration $(BENCH_ARGS)

.PHONY: test-setup
test-setup:
	@.ci/setup test

# the Vagrant box, and all that can be done with it: see vagrant/README.md
.PHONY: vagrant-box vagrant-test
vagrant-box:
	@.ci/setup vagrant
	@/usr/bin/python3 -m vagrant.box

vagrant-test:
	@[ -x /usr/bin/python3 ] || .ci/setup vagrant
	@/usr/bin/python3 -m vagrant.box_check $(VAGRANT_TEST_ARGS)

clean:
	rm -rf .venv docs/build vagrant/build tests/workloads/build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
