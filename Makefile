# `make demo` and `make test` do everything on a fresh machine; the rest is for working on the project.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo

# Two workers with as many threads each as there are cores would stand in each other's way.
test test-fast test-long test-slurm: export OMP_NUM_THREADS := 1

# Where this is set, every process would compile torch and the rest anew, for seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-fast test-long test-slurm lint bench lock clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) pipeline/preflight.py --install
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' requirements.txt)"
	$(BIN)/uv pip install --python $(BIN)/python --requirements requirements.txt
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: setup
	$(BIN)/neuclip demo --workdir $(DEMO)

test: setup lint
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m "not long and not slurm"

# What is killed tens of times and ends the same, MLflow on PostgreSQL, every change of ranks and stages, the chain on
# real images.
test-long: setup
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m "long and not slurm"

# The chain on a real SLURM, whose nodes are this machine.
test-slurm: setup
	$(BIN)/pytest -m slurm

test-fast: setup lint
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m "not slow and not long and not slurm"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	@for benchmark in benchmarks/*.py; do $(BIN)/python $$benchmark --quick || exit 1; done

# The user's packages on top, what they need below, all pinned.
DIRECT := deepspeed|torch|torchvision|open-clip-torch|img2dataset|webdataset|pyarrow|mlflow|pytest
lock:
	$(BIN)/uv pip compile --quiet pyproject.toml --extra dev --no-annotate --no-header --no-emit-index-url \
		--python-version 3.11 --output-file $(VENV)/lock.txt
	@( echo '# Rewritten by `make lock` from pyproject.toml.'; \
	   grep -E '^($(DIRECT))==' $(VENV)/lock.txt; \
	   echo; echo '# What they need, resolved.'; \
	   grep -vE '^($(DIRECT))==' $(VENV)/lock.txt ) > requirements.txt

clean:
	rm -rf $(VENV) $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
