# Two commands: `make run` and `make test`. Both make the environment first if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8501

.PHONY: run test test-fast fuzz soak protections audit pictures check install install-dev clean

run: install
	$(BIN)/streamlit run streamlit_app.py --server.port $(PORT)

# The test files that say `pytestmark = pytest.mark.fast`; the others are not even imported.
test-fast: install-dev
	$(BIN)/python -m pytest -x -m fast $$(grep -l "^pytestmark = pytest.mark.fast" tests/unit/*.py)

# One process a core with one thread each: the tests wait for processes more than they compute.
test: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# Of every page, in both languages, light and dark, from the workspace as it is.
pictures: install-dev
	$(BIN)/python -m tests.pictures

# Every parser of foreign files, for SECONDS each (about an hour and a half as it is).
SECONDS ?= 600
fuzz: install-dev
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

# A random walk over everything that can happen to runs, for SECONDS.
soak: install-dev
	PERSONA_SOAK_SECONDS=$(SECONDS) $(BIN)/python -m pytest -s -m soak tests/faults/test_soak.py

# Takes each protection out and shows that its test fails; writes docs/results/protections.md.
protections: install-dev
	$(BIN)/python -m tests.protections

# Known advisories of what is installed; needs the service of PyPI (docs/dependencies.md). Strict:
# an index that knows a package but none of its advisories is a failure, not a clean answer.
audit: install-dev
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --strict

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: requirements.txt requirements-nodeps.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip wheel "setuptools<81"
	$(BIN)/pip install --quiet -r requirements.txt
	$(BIN)/pip install --quiet --no-deps -r requirements-nodeps.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/pip install --quiet -r requirements-dev.txt
	if command -v npm >/dev/null; then npm ci --silent --prefix tests/node \
		|| echo "llama.cpp could not be fetched: tests/unit/test_llama_cpp.py will be skipped"; fi
	touch $@

clean:
	rm -rf $(VENV)
