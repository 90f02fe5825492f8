# `make tutorial` and `make test` set everything up themselves; all they need is Python 3.11 or newer, and make.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
READY := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: tutorial test lab report clean help

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{printf "%-15s %s\n", $$1, $$2}'

tutorial: $(READY)  ## run every notebook; executed copies and figures go to build/notebooks
	$(PY) -m flownlib run --profile tutorial
	@$(PY) -m flownlib report --print --results build/notebooks/figures/results

test: $(READY)  ## run the tests, and every notebook, solution and study but the slowest (02_resnet) in the smoke profile
	$(PY) -m pytest
	FLOWN_PROFILE=smoke FLOWN_CACHE="$(CURDIR)/build/test-cache" $(PY) -m pytest notebooks \
		--nbval-lax --nbval-current-env --nbval-cell-timeout=1200 --ignore=notebooks/studies/02_resnet.ipynb

lab: $(READY)  ## open the notebooks in JupyterLab; figures and numbers of what you run go to build/figures
	$(VENV)/bin/jupyter lab --notebook-dir=. notebooks/00_start_here.ipynb

report: $(READY)  ## write the README's claims and the results page from figures/results
	$(PY) -m flownlib report

clean:  ## remove the environment, the cache and everything built
	rm -rf $(VENV) .cache build *.egg-info .pytest_cache

# one command installs torch and torchvision, so that they fit together
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed and '$(PYTHON)' was not found; install it or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed and '$(PYTHON)' is older or does not run; install one or name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's module venv is missing; install it, on Debian and Ubuntu by: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) || { echo "the installation failed, perhaps for want of a connection; trying once more"; $(INSTALL); }
	@touch $@
