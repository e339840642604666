# make demo   runs the whole daemon on real input, kills parts of it, shows that nothing is lost
# make test   lint, types and every test
#
# Both set up all they need: a virtual environment in .venv, packages at the versions of requirements-dev.lock.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WHEELS := $(VENV)/wheels
SERVERS := $(patsubst tests/servers/%.txt,$(VENV)/servers/%/.ready,$(wildcard tests/servers/*.txt)) \
           $(VENV)/servers/azurite/.ready $(VENV)/servers/aimock/.ready
PEERS := $(VENV)/peers
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
WORKERS ?= auto
SHELL := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-a1111 test-comfyui test-fluent-bit lint format types unit bench bench-peers figures samples protos lock clean system

help:
	@echo "make demo    run the daemon on real input, kill parts of it, show that nothing is lost"
	@echo "make test    lint, types and every test"
	@echo "make test-a1111 A1111_URL=…       the Automatic1111 connectors against a real server"
	@echo "make test-comfyui COMFYUI_URL=…   the ComfyUI connectors against a real server"
	@echo "make test-fluent-bit FLUENT_BIT=… etc/fluent-bit.conf by a real Fluent Bit (the path of the program)"
	@echo "make lint | format | types | unit | bench | bench-peers | figures | samples | protos | lock | clean"

setup: $(READY)

$(READY): pyproject.toml requirements-dev.lock
	@.ci/system-packages venv
	@echo "setting up $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "empd needs Python 3.11 or newer; make PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -r requirements-dev.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# What a fresh environment needs besides empd itself (pipx brings its own pip up to date): the packaging tests install from here.
$(WHEELS)/.ready: $(READY)
	@rm -rf $(WHEELS)
	@$(PIP) wheel --no-build-isolation -c requirements-dev.lock -w $(WHEELS) . pip
	@rm -f $(WHEELS)/empd-*.whl
	@touch $@

# Servers that the tests speak with, each in an environment of its own; the versions in tests/servers are all they need.
$(VENV)/servers/%/.ready: tests/servers/%.txt | $(READY)
	@echo "setting up $(@D)"
	@rm -rf $(@D) && $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check --no-input -qq install --no-deps -r $<
	@touch $@

# The same for those that run on Node.js.
$(VENV)/servers/azurite/.ready: .ci/node-server | $(READY)
	@.ci/node-server $(@D) azurite 3.35.0
$(VENV)/servers/aimock/.ready: .ci/node-server | $(READY)
	@.ci/node-server $(@D) @copilotkit/aimock 1.43.0

demo: $(READY)
	@$(BIN)/empd demo

test: lint types unit

lint: $(READY)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check . ; exit 1; }

format: $(READY)
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

types: $(READY)
	@$(BIN)/mypy --no-error-summary

# Many tests are of real processes that share the machine with each other. One that fails gets a second try with the
# machine to itself, in the open: what fails twice is broken; what passes then waits for too little, and is to be mended.
AGAIN := failed tests once more, one after the other: those that pass now lean on the speed of the machine
unit: system $(READY) $(WHEELS)/.ready $(SERVERS)
	@$(BIN)/pytest -q -n $(WORKERS) --dist worksteal $(TESTS) || { [ $$? = 1 ] && echo "$(AGAIN)" && \
	   $(BIN)/pytest -q -n 0 --last-failed --last-failed-no-failures none $(TESTS); }

# The tests of the ComfyUI connectors against a real server instead of its double; the graphs need no model.
test-comfyui: $(READY)
	@test -n "$(COMFYUI_URL)" || { echo "make test-comfyui COMFYUI_URL=… (the address of a server)"; exit 2; }
	@COMFYUI_URL=$(COMFYUI_URL) $(BIN)/pytest -q -n 0 tests/services/test_services_comfyui_server.py tests/services/test_services_comfyui_wire.py

# The same for Automatic1111; any checkpoint does. A1111_AUTH=user:password where the server has --api-auth.
test-a1111: $(READY)
	@test -n "$(A1111_URL)" || { echo "make test-a1111 A1111_URL=… (the address of a server)"; exit 2; }
	@A1111_URL=$(A1111_URL) A1111_AUTH=$(A1111_AUTH) $(BIN)/pytest -q -n 0 -rs tests/services/test_services_a1111_server.py

# It is in no package registry that the others come from; bring your own.
test-fluent-bit: $(READY)
	@FLUENT_BIT=$(or $(FLUENT_BIT),fluent-bit) $(BIN)/pytest -q -n 0 tests/config/real_fluent_bit.py

# Every scenario, in full size; the page is .bench/index.html.
bench: $(READY)
	@mkdir -p .bench
	@$(BIN)/empd bench --json .bench/empd.jsonl --report .bench

# Other job systems beside empd, each bounded in time; the page has both where `make bench` has run before.
bench-peers: $(PEERS)/.ready
	@mkdir -p .bench
	@PATH=$$PATH:/usr/sbin PYTHONPATH=bench $(PEERS)/bin/python -m peers --json .bench/peers.jsonl $(PEERS_OPTIONS); found=$$?; \
	   $(BIN)/empd bench report $$(ls .bench/empd.jsonl 2>/dev/null) .bench/peers.jsonl --into .bench && exit $$found

# empd is measured there with the libraries that it is tested with; the rest is as the peers want it.
$(PEERS)/.ready: $(READY) bench/peers/requirements.txt
	@.ci/system-packages peers
	@echo "setting up $(PEERS)"
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@grep -E '^(aiohttp|msgspec|pyzmq|uvloop)==' requirements-dev.lock > $(PEERS)/constraints.txt
	@$(PEERS)/bin/python -m pip --disable-pip-version-check --no-input -qq install -c $(PEERS)/constraints.txt \
	   hatchling editables -r bench/peers/requirements.txt
	@$(PEERS)/bin/python -m pip --disable-pip-version-check --no-input -qq install -c $(PEERS)/constraints.txt \
	   --no-build-isolation -e .
	@touch $@

# The tables and plots that the pages show, from the last `make bench` and `make bench-peers`.
figures: $(READY)
	@mkdir -p bench/figures
	@$(BIN)/python bench/readme_figures.py .bench/empd.jsonl .bench/peers.jsonl

# etc/empd.toml, from the table of settings.
samples: $(READY)
	@$(BIN)/python -c 'from empd.samples import sample_toml; print(sample_toml(), end="")' > etc/empd.toml

# The message types of gRPC services, from their .proto files.
PROTOS := empd/connectors/protocol
protos: $(READY)
	@for name in kserve reflection; do \
	   $(BIN)/python -m grpc_tools.protoc -I $(PROTOS) --descriptor_set_out=$(PROTOS)/$$name.binpb $$name.proto; done

system:
	@.ci/system-packages test

# The versions that the tests use, as they are installed now.
lock: $(READY)
	@{ echo "# Versions that the tests use; \`make lock\` writes this file."; \
	   $(BIN)/python -m pip --disable-pip-version-check freeze --exclude empd --exclude-editable 2>/dev/null; } > requirements-dev.lock.new
	@mv requirements-dev.lock.new requirements-dev.lock
	@touch $(READY)

clean:
	@rm -rf $(VENV) build dist .demo .bench .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks *.egg-info
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
