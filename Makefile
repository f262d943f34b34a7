# make demo: from a checkout to a measured bundle. make test: all tests. make help: the rest.
# Everything is kept inside the checkout: .venv, .cache and demo.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV ?= .venv
TORCH := torch==2.13.0
PYTEST_OPTIONS ?=
# Tests run in as many processes as there are processors, two at most: each takes a GB and more.
WORKERS ?= $(shell n=$$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc); echo $$((n > 2 ? 2 : n)))
PARALLEL = $(if $(filter-out 0 1,$(WORKERS)),-n $(WORKERS) --dist loadfile --max-worker-restart 0)
QUIET := $(if $(MAKE_TERMOUT),,--quiet)
COMMA := ,

SAMPLE := samples/debian_topics
BUNDLE := demo/topics
RUNTIMES := onnxruntime openvino litert

export XDG_CACHE_HOME := $(CURDIR)/.cache
export PIP_CACHE_DIR := $(XDG_CACHE_HOME)/pip
export HF_HOME := $(XDG_CACHE_HOME)/huggingface
export MPLCONFIGDIR := $(XDG_CACHE_HOME)/matplotlib
export HF_HUB_DISABLE_TELEMETRY := 1

PY := $(VENV)/bin/python
EDGESCRIBE := $(VENV)/bin/edgescribe

.PHONY: help demo demo-clean test test-fast test-arm lint bench bench-generate bench-summarize picture clean FORCE

help: ## list the targets
	@echo 'PYTHON=$(PYTHON) makes the environment $(VENV); set PYTHON=... for another interpreter (3.11 to 3.13).'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 20

# The environment. $(VENV)/.home names the checkout it was made for and is there only while the environment is whole:
# after an installation that was interrupted, or in a checkout that was moved, it is made anew.
BROKEN := $(if $(shell [ "$$(cat $(VENV)/.home 2>/dev/null)" = "$(CURDIR)" ] || echo yes),FORCE)

define install
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo 'edgescribe needs Python 3.11, 3.12 or 3.13; name one: make PYTHON=python3.11 $(MAKECMDGOALS)' >&2; exit 1; }
	@[ "$$(cat $(VENV)/.home 2>/dev/null)" = "$(CURDIR)" ] || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $(VENV)/.home
	$(PY) -m pip install $(QUIET) '$(TORCH)'
	$(PY) -m pip install $(QUIET) --editable '.[$(1)]'
	@echo "$(CURDIR)" > $(VENV)/.home
	@touch $@
endef

$(VENV)/.workbench: pyproject.toml $(BROKEN)
	$(call install,convert)

$(VENV)/.tests: pyproject.toml $(VENV)/.workbench
	$(call install,convert$(COMMA)dev)

FORCE:

demo: $(BUNDLE)/bundle.json ## install, convert the sample student, evaluate and measure it, try it
	@for runtime in $(RUNTIMES); do \
		echo; echo "$$runtime:"; \
		$(EDGESCRIBE) run $(BUNDLE) --runtime $$runtime --input $(SAMPLE)/demo.txt; \
	done
	@echo; echo 'bundle: $(BUNDLE)'; echo 'report: $(BUNDLE).report/report.html'

# Made once, and taken up where an interrupted conversion left it. With exit code 3 (over a device's budget) the bundle is
# there all the same, and what was printed and the report say so.
$(BUNDLE)/bundle.json: | $(VENV)/.workbench
	@mkdir -p $(dir $(BUNDLE))
	$(EDGESCRIBE) convert $(SAMPLE)/student --task classify --device raspberry-pi-5 --device host \
		--train $(SAMPLE)/train.jsonl.gz --validation $(SAMPLE)/validation.jsonl.gz --eval $(SAMPLE)/test.jsonl.gz \
		--recipe $(SAMPLE)/recipe.toml --out $(BUNDLE) \
		$(if $(wildcard $(BUNDLE).work/conversion.json),--resume) || \
		[ $$? -eq 3 ] || { echo 'make demo takes up what was done; make demo-clean throws it away' >&2; exit 1; }

demo-clean: ## take the demo's results away, so that make demo converts anew
	rm -rf demo

# Tests start hundreds of processes: what they import is compiled once, whatever holds for other programs here.
test test-fast test-arm: export PYTHONDONTWRITEBYTECODE :=

test: $(VENV)/.tests ## all tests
	$(PY) -m pytest $(PARALLEL) $(PYTEST_OPTIONS)

test-fast: $(VENV)/.tests ## the tests without training and without environments of their own
	$(PY) -m pytest -m 'not slow and not arm' $(PARALLEL) $(PYTEST_OPTIONS)

test-arm: $(VENV)/.tests ## the device side in an arm64 userland (needs Debian's qemu-user-static)
	$(PY) -m pytest -m arm $(PYTEST_OPTIONS)

# mypy takes a package's name from its folder, which in a checkout is any name: it looks through a link.
TYPED := -p edgescribe.device_profiles -p edgescribe.runtimes -p edgescribe.sdk -p edgescribe.converters \
	-m edgescribe -m edgescribe.errors -m edgescribe.__main__

lint: $(VENV)/.tests ## ruff and mypy
	$(PY) -m ruff check .
	@mkdir -p .cache/typed && ln -sfn ../.. .cache/typed/edgescribe
	MYPYPATH=.cache/typed $(PY) -m mypy $(TYPED) | sed 's#^\.cache/typed/edgescribe/##'

bench: $(BUNDLE)/bundle.json ## measure the demo's bundle against its peers (README, Figures)
	$(PY) benchmarks/classify.py --bundle $(BUNDLE)

bench-generate: $(VENV)/.workbench ## measure a writer against llama.cpp (compiled once) and other generators
	$(PY) benchmarks/generate.py

bench-summarize: $(VENV)/.workbench ## measure summarisers against CTranslate2, transformers and ONNX Runtime
	$(PY) benchmarks/summarize.py

picture: $(BUNDLE)/bundle.json ## take the README's picture of the demo's report (needs Debian's chromium)
	@profile=$$(mktemp -d) && trap 'rm -rf "$$profile"' EXIT && \
		chromium --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync \
		--disable-component-update --hide-scrollbars --user-data-dir="$$profile" --window-size=1100,1100 \
		--screenshot=docs/images/report.png "file://$(CURDIR)/$(BUNDLE).report/report.html"

clean: demo-clean ## take the demo, the environment and the caches away
	rm -rf $(VENV) .venv-peers .arm .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
