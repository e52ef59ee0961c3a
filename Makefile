# make demo    the main job on a bundled model and bundled images; leaves demo-output/
# make test    the tests but the slow ones; make test-all runs those too
# make docs    the site in build/site; warnings are errors
# make notebooks  executes notebooks/ and writes them back
# make lint    ruff, and mypy on the built wheel
# Each makes the virtual environment and installs what it needs, once.

PYTHON ?= python3
JOBS ?= 2
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all docs notebooks lint clean

demo: $(VENV)/.run
	$(BIN)/onnxdrp demo --output demo-output

test: $(VENV)/.develop
	$(BIN)/python -m pytest -q -n $(JOBS) -m "not slow"

test-all: $(VENV)/.develop
	$(BIN)/python -m pytest -q -n $(JOBS)

docs: $(VENV)/.docs
	$(BIN)/python docs/pictures.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean

notebooks: $(VENV)/.develop
	$(BIN)/python notebooks/execute.py

# mypy sees the package as it is installed: passes/ and datareaders/ inside onnxdrp/
lint: $(VENV)/.develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist . > dist.log 2>&1 || { cat dist.log; exit 1; }
	rm -f dist.log
	$(BIN)/python -m pip install --quiet --no-deps --target build/installed dist/*.whl
	cd build/installed && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml -p onnxdrp

clean:
	rm -rf build dist dist.log demo-output *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

# The stamps are older than what they depend on when the metadata has changed: then pip looks again.
$(VENV)/.run: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.develop: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[test,lint]"
	@touch $@ $(VENV)/.run

$(VENV)/.docs: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	@touch $@ $(VENV)/.run

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
