# From a fresh clone, with Python 3.11 to 3.13 and nothing else:
#   make serve     install into .venv and serve on http://127.0.0.1:8000
#   make test      install into .venv and run the tests
# TORCH_INDEX=ADDRESS takes torch from another package index: one for an older driver (CUDA 12), or for CPUs alone. Its
# files have other hashes than those that are pinned: there the versions are pinned, and the index is trusted.
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
LINT := .lint
RUFF := $(LINT)/bin/ruff
STAMP := $(VENV)/.installed
SERVING := $(VENV)/.serving
# setuptools is pinned as well: it builds the package itself, without a network.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url pyproject.toml docker/build.in

.DEFAULT_GOAL := help
.PHONY: help install hooks serve test test-slow test-page test-reliability test-docker test-client test-ray lint style types format audit docs \
	bench constraints

# Durations are those of 2 cores, without the time of the first install.
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(STAMP) ## Make .venv with the pinned dependencies of serving, training and tests (5 to 10 min, 7.5 GB)

# What the container image has is enough to serve, and half the packages.
$(STAMP): REQUIREMENTS := constraints.txt
$(SERVING): REQUIREMENTS := docker/requirements.txt
$(STAMP) $(SERVING): constraints.txt docker/requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.11 to 3.13 is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing into $(VENV), once, which takes some minutes, 6 GB (7.5 with training and tests), and 3 GB more until it is done"
	@$(PYTHON) -m venv $(VENV)
	@if [ -z "$(TORCH_INDEX)" ]; then \
		$(BIN)/python -m pip install --quiet --require-hashes -r $(REQUIREMENTS); \
	else \
		awk '/^[^ ]/ { drop = /^(torch|torchvision|triton|nvidia|cuda)[a-z0-9-]*==/ } !drop' $(REQUIREMENTS) >$(VENV)/rest.txt && \
		grep -oE '^torch(vision)?==[^ ;]+' $(REQUIREMENTS) >$(VENV)/torch.txt && \
		$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r $(VENV)/rest.txt && \
		$(BIN)/python -m pip install --quiet --index-url "$(TORCH_INDEX)" -r $(VENV)/torch.txt; \
	fi
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

serve: $(or $(wildcard $(STAMP)),$(SERVING)) ## Serve the detector (ready in 30 s; make serve ARGS="--port 9000")
	@exec $(BIN)/frcnn serve $(ARGS)

# Two processes of one thread each take less time than one process of two. A file's tests stay in one process, as they
# share fixtures. The order is random; its seed is printed: ARGS=--randomly-seed=1 repeats it. A process that dies
# ends the run, as pytest-xdist waits for ever where it replaces one. A test that hangs ends with its threads' traces.
test test-slow: export OMP_NUM_THREADS ?= 1
PROCESSES ?= 2
SHARED = -n $(PROCESSES) --max-worker-restart 0 -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true

test: install ## Run the tests (10 min; make test ARGS="-k rpn")
	$(BIN)/python -m pytest $(SHARED) --dist loadfile $(ARGS)

test-slow: install ## Run the tests that train, resume runs or measure accuracy (8 min)
	$(BIN)/python -m pytest $(SHARED) --dist load -m slow $(ARGS)

test-page: install ## Test the page in Chromium, where there is one (5 min; make test-page ARGS="-k camera")
	$(BIN)/python -m pytest -m browser tests/service/page $(ARGS)

test-reliability: install ## Overload, faults, hostile input (minutes; make test-reliability ARGS="-k overload")
	$(BIN)/python -m pytest -m reliability -rP tests/reliability $(ARGS)

test-docker: install ## Build the image and run it, where Docker answers (11 min; make test-docker ARGS="-k scaled")
	$(BIN)/python -m pytest -m docker -rPs tests/docker $(ARGS)

# The generator needs older packages than the service, so it has an environment of its own.
test-client: install ## Generate a client from /openapi.json and call every path by it (1 min)
	@$(PYTHON) -m venv $(VENV)-generator
	@$(VENV)-generator/bin/python -m pip install --quiet openapi-python-client==0.29.1
	$(BIN)/python -m pytest tests/service/api/test_generated_client.py $(ARGS)

test-ray: install ## Scale and lose nodes of a Ray cluster on this machine (minutes; make test-ray ARGS="-k node")
	tests/scale/apart $(BIN)/python -m pytest -m ray -rP tests/scale $(ARGS)

lint: style types ## Check style and types (1 min)

# The pinned ruff in an environment of its own: style needs neither torch nor the package.
$(RUFF): constraints.txt
	@$(PYTHON) -m venv $(LINT)
	@sed -n '/^ruff==/,/[^\\]$$/p' constraints.txt > $(LINT)/requirements.txt
	@$(LINT)/bin/python -m pip install --quiet --require-hashes -r $(LINT)/requirements.txt
	@touch $@

style: $(RUFF) ## Check style: ruff alone, without an install (5 s)
	$(RUFF) check .
	$(RUFF) format --check .

types: install ## Check types (1 min)
	$(BIN)/mypy

format: $(RUFF) ## Format the code and correct what ruff can correct (5 s)
	$(RUFF) check --fix .
	$(RUFF) format .

hooks: $(RUFF) ## Let git run ruff on each commit (20 s)
	$(LINT)/bin/python -m pip install --quiet pre-commit
	$(LINT)/bin/pre-commit install

docs: install ## Write docs/api.md and docs/configuration.md from the code (10 s)
	$(BIN)/python docs/make.py

audit: install ## Look for known vulnerabilities of the pinned dependencies, where the index knows them (1 min)
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --require-hashes --disable-pip --requirement constraints.txt

bench: install ## Compare with torchvision, side by side (minutes; make bench ARGS="--rounds 3")
	$(BIN)/frcnn bench model $(ARGS)

constraints: ## Resolve the pinned dependencies again, to the newest (1 min)
	$(BIN)/python -m pip install --quiet uv
	$(COMPILE) --extra dev --extra train --extra ray --extra gpu --upgrade --output-file constraints.txt
	$(COMPILE) --extra otel --extra gpu --constraint constraints.txt --output-file docker/requirements.txt
	$(COMPILE) --extra otel --extra gpu --extra openvino --constraint constraints.txt --output-file docker/requirements-openvino.txt
