# make test, make demo: from a fresh clone, with Python 3.10 or newer and pip. PYTHON=python3.12 make test picks another.

PYTHON ?= python3
SEED ?= 0

VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/installed

.PHONY: venv lint test demo demo-refiner demo-32 demo-distill clean

venv: $(INSTALLED)

# PyTorch first and by itself: a fixed version, so that the figures in the documentation can be had again.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

lint: venv
	$(PY) -m ruff check .
	$(PY) -m mypy

# A process a core, of at most four; a file's tests stay together, because they share what they make.
test: lint
	$(PY) -m pytest --numprocesses=logical --maxprocesses=4 --dist=worksteal

# Refines the shipped GAN with the shipped teacher and shows it before and after.
demo: venv
	$(PY) tools/demo.py --seed=$(SEED)

# The same with the teacher's network behind the GAN, which is better, and slower to draw from.
demo-refiner: venv
	$(PY) tools/demo.py --student=refiner --dest=out/demo-refiner.png --seed=$(SEED)

# The GAN alone at 32x32.
demo-32: venv
	$(PY) tools/demo.py --gan=fashion-32-gan.pkl --dest=out/demo-32.png --seed=$(SEED)

# Distils the shipped teacher to one step.
demo-distill: venv
	$(PY) tools/demo_distill.py --seed=$(SEED)

# Removes what make made; never runs/, datasets/ or out/.
clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
	find stylegan_di tools tests -name __pycache__ -type d -prune -exec rm -rf {} +
