# Everything here starts from a plain Python 3.11 or newer: no uv, no activated environment, no root.
# State lives in .state (SCREENTEST_HOME), fetched reports in out/.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first Python that is new enough; `make PYTHON=/path/to/python3.12 ...` chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

UV_VERSION := 0.13.9
UV := .tools/bin/uv
BIN := .venv/bin
# uv must use the Python we found, never fetch one of its own.
UV_ENV := UV_PYTHON_DOWNLOADS=never UV_PYTHON=$(PYTHON) UV_PROJECT_ENVIRONMENT=.venv

# Model environments, outside the workspace lock; each has its requirements below services/gpu-worker/envs.
ENVS := diffusers judge stub
ENV_STAMPS := $(ENVS:%=.venvs/%/.installed)

# Typed strictly: the contract, the pure modules of the services, and the command line.
TYPED := proto/src/screentest \
	$(addprefix services/scheduler/src/screentest_scheduler/,admission.py archiving.py followups.py forecast.py \
		judge_costs.py judge_planning.py ladder.py lessons.py planning.py transitions.py) \
	$(addprefix services/gpu-worker/src/screentest_worker/,admission.py device_memory.py doctor.py findings.py \
		judge_preflight.py judgements.py model_env.py outcome.py pipeline_call.py pipeline_rules.py preflight.py rung.py signature.py tensor_header.py \
		trials.py weights_folder.py weights_layout.py) \
	$(addprefix services/reporter/src/screentest_reporter/,answer_noise.py case_study.py charts.py controls.py document.py \
		energy.py energy_ledger.py finding.py heat_map.py model_table.py narrative.py notes.py pareto.py ranking.py \
		scores.py scoring.py sweeps.py tally.py vitals.py votes.py wording.py) \
	ui/src/screentest_ui

PROJECTS := pyproject.toml $(wildcard */pyproject.toml services/*/pyproject.toml services/*/*/pyproject.toml)

.PHONY: help
help: ## List what can be made.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: demo
demo: install ## Run the main job on this machine without a GPU: ten miniature models, one report.
	$(BIN)/python -m screentest_ui.demo

.PHONY: up
up: install ## Start the local stack with its panel (ARGS="--device gpu-0" for the GPU).
	$(BIN)/screentest up $(ARGS)

.PHONY: down
down: install ## Stop the local stack; its state stays.
	$(BIN)/screentest down

# Most tests wait for processes: three files at once halve the time of two cores. Containers come last, by themselves.
# pytest's 5 is "nothing of that name here": the other half may have it.
WORKERS ?= 3
.PHONY: test
test: install ## Run all tests (ARGS="-k name" for some; WORKERS=0 one after the other).
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not engine" $(ARGS) || test $$? -eq 5
	$(BIN)/pytest -m engine $(ARGS) || test $$? -eq 5

.PHONY: faults
faults: install ## Run the fault suite, chaos with five seeds (tests/faults/README.md says what it holds).
	SCREENTEST_CHAOS_SEEDS="$${SCREENTEST_CHAOS_SEEDS:-1 2 3 4 5}" $(BIN)/pytest -n $(WORKERS) --dist loadfile -m fault $(ARGS)

.PHONY: faults-long
faults-long: install ## Kill workers and runners 200 times in stub sweeps, 10 times in miniature sweeps.
	$(BIN)/python -m tests.faults.long $(ARGS)

.PHONY: mutations
mutations: install ## Break one guarantee at a time in a copy and show the test that notices.
	$(BIN)/python -m tests.faults.mutate $(ARGS)

# A history takes 7 to 14 ms; 100,000 of them a quarter of an hour on two cores.
SEEDS ?= 100000
.PHONY: histories
histories: bootstrap ## Play SEEDS histories of the pure rules (100,000; make test plays 2,000).
	HISTORIES=$(SEEDS) $(BIN)/pytest -q -n 2 --timeout=0 tests/contract/test_histories.py $(ARGS)

.PHONY: check
check: bootstrap ## Lint, formatting, types, boundaries between packages, generated code, breaking changes.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(TYPED)
	$(BIN)/lint-imports --no-logo
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT \
		&& PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python proto/generate.py "$$fresh" \
		&& diff -r --exclude=__pycache__ --exclude=__init__.py "$$fresh/screentest/v1" proto/src/screentest/v1 \
		&& echo "generated code is current" \
		|| { echo "proto/src/screentest/v1 is not what proto/screentest/v1 says; run 'make proto'"; exit 1; }
	$(BIN)/python proto/breaking.py

.PHONY: proto
proto: bootstrap ## Generate the contract's code again.
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python proto/generate.py

.PHONY: proto-release
proto-release: bootstrap ## Make the contract of today the one that later changes must not break.
	$(BIN)/python proto/breaking.py --release

.PHONY: bench
bench: install ## Measure what the design promises.
	$(BIN)/python -m bench

.PHONY: secrets
secrets: bootstrap ## Make the missing passwords, keys and tokens, and the .env of docker compose.
	$(BIN)/screentest secrets $(ARGS)
	@# Containers run as the person who may read the secrets; root gives them to an ordinary user.
	@uid=$$(id -u); gid=$$(id -g); [ "$$uid" != 0 ] || { uid=1000; gid=1000; chown -R 1000:1000 .state/secrets; }; \
		mkdir -p .state/models; [ -e .env ] || { \
		[ -e /dev/nvidiactl ] && { profile=gpu; devices=gpu-0,cpu-0; } || { profile=rehearsal; devices=cpu-0; }; \
		printf 'SCREENTEST_UID=%s\nSCREENTEST_GID=%s\nCOMPOSE_PROFILES=%s\nSCREENTEST_DEVICES=%s\n' \
			"$$uid" "$$gid" "$$profile" "$$devices" > .env; \
		echo "docker compose will run as $$uid:$$gid with the profile $$profile (.env)"; }

.PHONY: certs
certs: bootstrap ## Sign a certificate for the scheduler's API (ARGS="--name gpu-host.lan").
	$(BIN)/screentest certs $(ARGS)

.PHONY: install
install: bootstrap envs ## Install everything: the workspace and the model environments.

.PHONY: bootstrap
bootstrap: .venv/.installed ## Install the workspace only.

.PHONY: envs
envs: $(ENV_STAMPS) ## Install the model environments only.

.PHONY: clean
clean: ## Remove what was installed and built; state, weights and reports stay.
	rm -rf .venv .venvs .tools .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# A stamp is newer than what it was made from: a second run installs nothing and needs no network.

.tools/.installed-$(UV_VERSION):
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; install one, or say make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"
	touch $@

.venv/.installed: .tools/.installed-$(UV_VERSION) uv.lock $(PROJECTS)
	$(UV_ENV) $(UV) sync --quiet --frozen --all-packages
	touch $@

.venvs/%/.installed: services/gpu-worker/envs/%/requirements.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; install one, or say make PYTHON=/path/to/python"; exit 1; }
	@echo "fetching the model environment $* with pip into .venvs/$*: $$(grep -c '==' $<) packages$$(grep -q '^torch==' $< && \
		echo ', torch among them (with CUDA some 3 GB; the README says how to take the CPU one)')"
	test -x .venvs/$*/bin/python || $(PYTHON) -m venv .venvs/$*
	.venvs/$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@
