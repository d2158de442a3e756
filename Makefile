# Reversing the Noise. `make book` builds the site, `make test` runs everything that continuous integration runs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

PY := .venv/bin/python
SITE := _build/html
SOURCES := notebooks book companion _config.yml _toc.yml
PORT ?= 8000
JOBS ?= 2

# Nothing of the caller's Python leaks in; progress bars stay out of the pages; torch does not fight over two cores.
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP VIRTUAL_ENV
export PYTHONNOUSERSITE := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
export JUPYTER_PLATFORM_DIRS := 1

STAGES := lint unit nbval execute site scan browser

.PHONY: help setup book serve lab test $(STAGES) static api equations mutants format pins address clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-10s %s\n", $$1, $$2 }'

.venv/.installed: pyproject.toml constraints.txt book/tools/setup.sh
	@bash book/tools/setup.sh

setup: .venv/.installed ## the environment .venv, from constraints.txt

book: setup execute site ## the site, in _build/html
	@echo
	@echo "The book is built. Open it with either of"
	@echo "    make serve                     then http://localhost:$(PORT)"
	@echo "    xdg-open $(CURDIR)/$(SITE)/index.html"

serve: ## the built site at http://localhost:8000 (PORT=… for another port)
	@test -f $(SITE)/index.html || { echo "There is no site yet: run 'make book' first." >&2; exit 1; }
	@test -z "$$(find $(SOURCES) \( -name '__pycache__' -o -name '.*' -o -path book/api -o -path book/_static/mathjax \) -prune \
	  -o -type f -newer $(SITE)/index.html -print)" || \
	  echo "This site is older than its sources: 'make book' builds it anew." >&2
	@echo "http://localhost:$(PORT)  (Ctrl-C stops it)"
	@$(PY) -m http.server $(PORT) --bind 127.0.0.1 --directory $(SITE)

lab: setup ## the chapters in JupyterLab
	@.venv/bin/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks

test: setup ## everything continuous integration runs, stopping at the first failure
	@$(PY) book/tools/stages.py $(STAGES)

lint: setup ## style, notebooks, equation numbers
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check --exclude '*.ipynb' .
	@$(PY) book/tools/equations.py --check
	@$(PY) book/tools/lint_notebooks.py

unit: setup ## unit tests of the package and the tools
	@CHROMIUM=$$(bash book/tools/chromium.sh) COMPANION_REQUIRE_ALL=1 OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS) \
	  -p no:cacheprovider --jaxtyping-packages=companion,beartype.beartype tests --ignore=tests/site
	@echo "without the checker of annotations: what is traced, and refusals once more, in the package's own words"
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS) -p no:cacheprovider tests --ignore=tests/site -k "bad or refuses or compiler"

nbval: setup ## every chapter alone, in an empty folder, with the built wheel
	@$(PY) book/tools/run_nbval.py --jobs $(JOBS)

execute: setup ## run the chapters for the site, in parallel, into the cache
	@$(PY) book/tools/execute.py --jobs $(JOBS)

static: setup
	@$(PY) book/tools/mathjax.py

api: setup
	@$(PY) book/tools/api.py

site: setup static api ## build the site from the cache; every warning is an error
	@rm -rf _build/.doctrees $(SITE)
	@TQDM_DISABLE=1 OMP_NUM_THREADS=1 .venv/bin/jupyter-book build . -W -n --keep-going

scan: setup ## links, tracebacks, external loads and weight of the built pages
	@$(PY) book/tools/check_site.py $(SITE)

browser: setup ## the built site in a real browser, without network
	@CHROMIUM=$$(bash book/tools/chromium.sh) BOOK_SITE_REQUIRED=1 $(PY) -m pytest -q -n $(JOBS) \
	  -p no:cacheprovider tests/site

mutants: setup ## wrong versions of the package, each of which the tests must reject (minutes)
	@$(PY) tests/mutants.py

equations: setup ## write companion/equations.json from the chapters
	@$(PY) book/tools/equations.py

format: setup ## house style for the Python files; nothing stored in notebooks
	@.venv/bin/ruff check -q --fix . || true
	@.venv/bin/ruff format -q --exclude '*.ipynb' .
	@$(PY) book/tools/lint_notebooks.py --fix

pins: ## write constraints.txt from .venv
	@$(PY) book/tools/pins.py > constraints.txt.new && mv constraints.txt.new constraints.txt

address: setup ## set the book's public address: make address URL=https://…  (URL= unsets it)
	@$(PY) book/tools/address.py "$(URL)"

clean: ## remove everything that was built, but not .venv
	@rm -rf _build build dist *.egg-info book/api book/_static/mathjax
