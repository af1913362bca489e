# From a fresh clone, with Python 3.11 to 3.13 and nothing else:
#   make serve     install into .venv and serve on http://127.0.0.1:8000
#   make test      install into .venv and run the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SERVING := $(VENV)/.serving
# setuptools is pinned as well: it builds the package itself, without a network.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url pyproject.toml docker/build.in

.DEFAULT_GOAL := help
.PHONY: help install serve test test-page test-reliability test-docker test-ray lint audit api bench constraints

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(STAMP) ## Make .venv with the pinned dependencies of everything: serving, training, tests

# What the container image has is enough to serve, and half the packages.
$(STAMP): REQUIREMENTS := constraints.txt
$(SERVING): REQUIREMENTS := docker/requirements.txt
$(STAMP) $(SERVING): constraints.txt docker/requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.11 to 3.13 is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing into $(VENV), once, which takes some minutes, 5 to 7 GB, and 3 GB more until it is done"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --require-hashes -r $(REQUIREMENTS)
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

serve: $(or $(wildcard $(STAMP)),$(SERVING)) ## Serve the detector (arguments: make serve ARGS="--port 9000")
	@FRCNN_WEIGHTS=$${FRCNN_WEIGHTS:-auto} exec $(BIN)/frcnn serve $(ARGS)

test: install ## Run the tests (arguments: make test ARGS="-k rpn")
	$(BIN)/python -m pytest $(ARGS)

test-page: install ## Test the page in Chromium, where there is one (arguments: make test-page ARGS="-k camera")
	$(BIN)/python -m pytest -m browser tests/service/page $(ARGS)

test-reliability: install ## Overload, faults, hostile input: minutes (arguments: make test-reliability ARGS="-k overload")
	$(BIN)/python -m pytest -m reliability -rP tests/reliability $(ARGS)

test-docker: install ## Build the image and run it, where a Docker engine answers (arguments: make test-docker ARGS="-k scaled")
	$(BIN)/python -m pytest -m docker -rPs tests/docker $(ARGS)

test-ray: install ## Scale and lose nodes of a Ray cluster on this machine: minutes (arguments: make test-ray ARGS="-k node")
	tests/scale/apart $(BIN)/python -m pytest -m ray -rP tests/scale $(ARGS)

lint: install ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

api: install ## Write docs/api.md anew, from the OpenAPI document
	$(BIN)/python docs/make_api.py

audit: install ## Look the pinned dependencies up among known vulnerabilities, where the package index knows them
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --require-hashes --disable-pip --requirement constraints.txt

bench: install ## Compare with torchvision, side by side (arguments: make bench ARGS="--rounds 3")
	$(BIN)/frcnn bench model $(ARGS)

constraints: ## Resolve the pinned dependencies anew
	$(BIN)/python -m pip install --quiet uv
	$(COMPILE) --extra dev --extra train --extra ray --upgrade --output-file constraints.txt
	$(COMPILE) --extra otel --constraint constraints.txt --output-file docker/requirements.txt
	$(COMPILE) --extra otel --extra openvino --constraint constraints.txt --output-file docker/requirements-openvino.txt
