# `make quickstart` trains the embedded model, `make test` passes the tests; each makes .venv by itself, from the first
# Python here that is 3.11 or 3.12. `make test-cluster` tests vLLM, Ray and DeepSpeed, on a CPU, in .venv-cluster: they
# pin other versions. `make test-gpu` tests and measures on a GPU.

CANDIDATES = python3.11 python3.12 python3 python
SUITABLE   = import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON    := $(shell for p in $(CANDIDATES); do "$$p" -c "$(SUITABLE)" >/dev/null 2>&1 && echo "$$p" && break; done)
BIN        = .venv/bin
PIP        = $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
CODE       = k2rl envs rewards tests benchmarks
# The pinned build, named before anything asks for just any torch.
TORCH      = $(shell grep '^torch==' constraints.txt)

DEEPSPEED  = deepspeed==0.19.8

.PHONY: quickstart test test-cluster test-gpu lint clean

quickstart: .venv/.installed
	$(BIN)/k2rl train quickstart $(ARGS)

test: lint
	$(BIN)/python -m pytest $(ARGS)

test-cluster: .venv-cluster/.installed
	.venv-cluster/bin/python -m pytest -m cluster $(ARGS)

# What takes a GPU; without one it says so.
test-gpu: .venv/.installed-dev
	$(BIN)/python -m pytest -m gpu -rs $(ARGS)
	$(BIN)/python benchmarks/gpu.py

lint: .venv/.installed-dev
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

# Stamps: a second call is instant, a changed pyproject.toml or constraints.txt installs again.
.venv/.installed: pyproject.toml constraints.txt
ifeq ($(PYTHON),)
	@echo "error: no Python 3.11 or 3.12 with venv here (tried: $(CANDIDATES)); install one, or: make PYTHON=/path/to/python" >&2; exit 2
endif
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv; the first time takes a few minutes"
	@$(PIP) "$(TORCH)"
	@$(PIP) -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	@$(PIP) -e ".[dev]"
	@touch $@

.venv-cluster/.installed: pyproject.toml requirements-cluster-cpu.txt
	@test -x .venv-cluster/bin/python || $(PYTHON) -m venv .venv-cluster
	@echo "installing vLLM, Ray and DeepSpeed into .venv-cluster: 3 GB, some minutes"
	@.venv-cluster/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r requirements-cluster-cpu.txt
	@.venv-cluster/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation $(DEEPSPEED) -e .
	@touch $@

clean:
	rm -rf .venv .venv-cluster build dist .mypy_cache .ruff_cache .pytest_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
