# make demo: three sounds from the default checkpoint. make test: the tests. Each sets up what it needs in .venv.
# TORCH says which build is installed; the default is the range this project is tested with.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch>=2.13,<2.15
BIN := $(VENV)/bin

.PHONY: demo test lint clean

$(VENV)/core: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[plots]"
	touch $@

$(VENV)/dev: $(VENV)/core
	$(BIN)/python -m pip install --quiet -e ".[train,dev]"
	touch $@

demo: $(VENV)/core
	$(BIN)/meanaudio generate "a dog barks" "an explosion" "footsteps on gravel, followed by a door slam" -o demo --seed 1 --spectrogram

test: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2  # two processes, one thread each: together they would fight for the cores

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
