# SPDX-License-Identifier: GPL-3.0-or-later
# make demo        everything of the README's tour, on a guest of its own
# make bench       our capture against QEMU's background-snapshot; BENCH=a,b chooses cases
# make test        every test at its short size; make test-long the same at full size
# make fuzz        every parser of others' input, two at a time, FUZZ_SECONDS each (600)
# One tier alone:  make lint | unit | native | guests | integration
PYTHON ?= /usr/bin/python3
VENV := build/venv
PY := $(VENV)/bin/python
ROUNDS ?= short
PYTEST_ARGS ?=
export ROUNDS

TIERS := lint unit native guests integration

.PHONY: help deps venv helper collection test test-long bench fuzz demo clean $(TIERS)
help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

deps:
	@scripts/install-deps

venv: $(VENV)/.stamp
$(VENV)/.stamp: tests/requirements.txt | deps
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

helper: deps
	+@$(MAKE) --no-print-directory -C native

collection: venv
	$(VENV)/bin/ansible-galaxy collection build --force --output-path build/dist

guests integration: helper
$(TIERS): venv
	$(PY) tests/run.py $@ -- $(PYTEST_ARGS)

test: venv
	$(PY) tests/run.py $(TIERS)

test-long:
	+@$(MAKE) --no-print-directory test ROUNDS=full

fuzz: deps
	@$(MAKE) --no-print-directory -C native -j2 fuzz FUZZ_SECONDS=$(or $(FUZZ_SECONDS),600)

demo: venv helper
	$(PY) tests/demo.py

bench: venv helper
	$(PY) tests/bench/bench.py

clean:
	rm -rf build native/build tests/output
