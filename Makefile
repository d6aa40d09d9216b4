# Headwater. `make demo` and `make test` set up what they need; nothing else has to be installed first.
# Needs: Python 3.11 to 3.14, make, a network to the Python package index. No GPU.

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
CORPORA := .cache/headwater
WORKERS ?= 2
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# else every process that a command or a test starts would compile the same files anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo federation test test-slow test-faults support fuzz check lint types layers docs bench bench-baselines bench-simulation bench-scale bench-codec bench-bits \
        bench-aggregation bench-merging bench-ranks bench-experts bench-tasks bench-cohorts bench-seeds bench-network bench-load bench-soak bench-lowmemory bench-methods bench-privacy bench-attacks lock stubs clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

$(VENV)/.demo: pyproject.toml constraints.txt scripts/setup.sh
	@scripts/setup.sh "$(PYTHON)" $(VENV) "simulation"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt scripts/setup.sh # all of .demo and more, in one installation
	@scripts/setup.sh "$(PYTHON)" $(VENV) "simulation,datasets,gguf,ray,tensorboard,speed,dev"
	@touch $(VENV)/.demo $@

$(CORPORA)/.sentiment: $(VENV)/.demo
	@$(BIN)/headwater fetch minilm sentiment --out $(CORPORA)
	@touch $@

demo: $(CORPORA)/.sentiment ## set up, fetch model and corpus, federate four owners' data, show the result
	@rm -rf runs/demo
	@$(BIN)/headwater simulate examples/sentiment/federation.toml --out runs/demo --workers $(WORKERS)

federation: $(CORPORA)/.sentiment ## a TLS server and four agents on this machine as processes, on the demo's data
	@rm -rf runs/federation
	@$(BIN)/headwater simulate examples/sentiment/federation.toml --engine network --out runs/federation \
	    --set baselines.alone=false

test: $(VENV)/.dev ## set up and run the tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: $(VENV)/.dev ## the tests that run for minutes: every example on real models (MERGEKIT=python: and mergekit)
	@$(BIN)/headwater fetch all --out $(CORPORA)
	@$(BIN)/python -m pytest -m slow -n $(WORKERS)

test-faults: $(VENV)/.dev ## disturb a real federation in every way we know; writes results/faults.md
	@HEADWATER_FAULT_TABLE=1 $(BIN)/python -m pytest -m faults -vv tests/faults

support: $(VENV)/.dev ## every adapter kind, task and architecture tried; writes docs/reference/support.md (FRESH=1: all anew)
	@$(BIN)/python scripts/support_table.py $(if $(FRESH),--fresh)

fuzz: $(VENV)/.dev ## atheris on every reader of strangers' bytes, ten minutes; writes results/fuzz.md
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[fuzz]"
	@$(BIN)/python scripts/fuzz.py

check: $(VENV)/.dev ## everything that needs no test run
	@$(MAKE) --no-print-directory -j $(WORKERS) types docs layers lint # mypy takes as long as all others

lint: $(VENV)/.dev ## ruff
	@$(BIN)/ruff format --check headwater tests benchmarks scripts
	@$(BIN)/ruff check headwater tests benchmarks scripts

types: $(VENV)/.dev ## mypy, strict
	@$(BIN)/mypy

layers: $(VENV)/.dev ## rooms import downward only
	@$(BIN)/lint-imports

docs: $(VENV)/.dev ## build the documentation, strictly
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: bench-codec bench-aggregation bench-seeds bench-simulation bench-network bench-load bench-baselines ## every benchmark; the last takes an hour

bench-codec: $(VENV)/.dev
	@$(BIN)/python benchmarks/codec.py
	@$(BIN)/python benchmarks/compeft.py

bench-compression: $(VENV)/.dev ## bytes and squared error of every codec on one client's update
	@HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/codec_errors.py

bench-whole-runs: $(VENV)/.dev ## bytes both ways and the last metric of whole runs, 3 corpora, 3 seeds; PARETO=1: every codec; hours
	@$(BIN)/headwater fetch minilm smollm2 sentiment glosses presidents --out $(CORPORA)
	@$(BIN)/python benchmarks/whole_runs.py --workers $(WORKERS) $(if $(PARETO),--corpora --pareto)

bench-aggregation: $(VENV)/.dev
	@$(BIN)/python benchmarks/aggregation.py

bench-merging: $(VENV)/.dev ## headwater merge beside PEFT (MERGEKIT=path/to/python: and mergekit; SMALL=1: a trial)
	@$(BIN)/python benchmarks/merging.py $(if $(MERGEKIT),--mergekit $(MERGEKIT)) $(if $(SMALL),--small)

bench-ranks: $(VENV)/.dev ## energy per rank where clients have ranks 2 to 16, by four merges
	@$(BIN)/python benchmarks/ranks.py

bench-experts: $(VENV)/.dev ## eight experts merged as they are and compressed
	@$(BIN)/python benchmarks/experts.py $(if $(SMALL),--small)

bench-tasks: $(VENV)/.dev ## adapters of eight tasks merged by every rule
	@$(BIN)/python benchmarks/tasks.py $(if $(SMALL),--small)

bench-cohorts: $(VENV)/.dev ## clients trained as one batch beside one after the other (PFL=path/to/python; FRESH=1: all anew)
	@$(BIN)/python benchmarks/cohorts.py $(if $(PFL),--pfl $(PFL)) $(if $(FRESH),--fresh) $(if $(SMALL),--small)

bench-seeds: $(VENV)/.dev ## replay of 4,096 seeds beside a loop of torch.randn
	@$(BIN)/python benchmarks/seeds.py

bench-simulation: $(VENV)/.dev ## 1,000 clients x 3 rounds
	@$(BIN)/python benchmarks/simulation.py

bench-scale: $(VENV)/.dev ## CPU and memory of rounds with 1,000 to 100,000 clients registered
	@$(BIN)/python benchmarks/scale.py

bench-bits: $(VENV)/.dev ## one federation's bits in both modes, here and on played processors
	@$(BIN)/headwater fetch minilm --out $(CORPORA)
	@$(BIN)/python benchmarks/bits.py

bench-network: $(VENV)/.dev ## latency, MB/s and memory beside Flower's own stack; 300 rounds
	@$(BIN)/python benchmarks/network.py

bench-load: $(VENV)/.dev ## 50, 200 and 500 agents against one daemon
	@$(BIN)/python benchmarks/load.py

bench-soak: $(VENV)/.dev ## whether the daemon's memory ends growing: 50 agents, 30 minutes
	@$(BIN)/python benchmarks/soak.py

bench-privacy: $(VENV)/.dev ## errors of correlated noise; secure aggregation beside plain sums and Flower's SecAgg+; an hour
	@$(BIN)/python benchmarks/mechanisms.py
	@$(BIN)/python benchmarks/masks.py
	@$(BIN)/headwater fetch minilm sentiment --out $(CORPORA)
	@$(BIN)/python benchmarks/private_examples.py
	@HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/robust.py $(if $(SMALL),--small)
	@$(BIN)/python benchmarks/private_rounds.py

bench-attacks: $(VENV)/.dev ## what attackers get of adapters, updates and LoRA's gradients, by epsilon; half an hour
	@$(BIN)/headwater fetch minilm smollm2 sentiment presidents --out $(CORPORA)
	@HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/attacks.py $(if $(SMALL),--small)

bench-lowmemory: $(VENV)/.dev ## memory of every way to train, a fresh process each
	@$(BIN)/headwater fetch minilm smollm2 --out $(CORPORA)
	@$(BIN)/python benchmarks/lowmemory.py

bench-methods: $(VENV)/.dev ## every local method to 95 % of backprop's accuracy, 3 seeds, two corpora; hours
	@HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/methods.py

bench-baselines: $(VENV)/.dev ## federated against centralised and dense, 3 seeds, two corpora
	@$(BIN)/headwater fetch minilm sentiment glosses --out $(CORPORA)
	@$(BIN)/python benchmarks/baselines.py --workers $(WORKERS)

lock: ## resolve every version afresh and write constraints.txt
	@scripts/lock.sh "$(PYTHON)"

stubs: ## regenerate the protobuf code, in an environment of its own
	@scripts/stubs.sh "$(PYTHON)"

clean: ## remove what was built, but not the runs
	@rm -rf $(VENV) build site *.egg-info
