# `make` alone prints the tasks. Everything a task needs is set up by the task itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := streamer training tests scripts bench conftest.py
# Where it is set, each start of a service compiles torch's modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo check test explore tools chaos fuzz-video bench peers alerts named dashboard-picture report-pictures capacity avs decide method soak crowds scarce store-copy store-faults image image-test pin-images lint format kafka topics docs site top-picture model lock clean

help: ## Print the tasks
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

install: $(STAMP) ## Make .venv with the streamer command and everything for development

$(STAMP): requirements/bootstrap.txt requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes -r requirements/bootstrap.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --only-binary :all: --require-hashes -r requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# make demo [KEEP=1] [BOOTSTRAP=host:port] [CLIPS=folder QUERIES=file.txt MODEL=name PRETRAINED=tag-or-path]
demo: $(STAMP) ## Show the whole path on a real local Kafka, and write demo-report/
	$(BIN)/streamer demo $(if $(KEEP),--keep) $(if $(BOOTSTRAP),--bootstrap-servers "$(BOOTSTRAP)") \
	  $(if $(CLIPS),--clips "$(CLIPS)") $(if $(QUERIES),--queries "$(QUERIES)") \
	  $(if $(MODEL)$(CLIPS),$(if $(MODEL),--model "$(MODEL)"),--model demo) $(if $(PRETRAINED),--pretrained "$(PRETRAINED)")

# Tests are distributed one by one: none of them shares an expensive fixture with its neighbours.
check: lint ## Run lint and the tests that need no server, no browser and no model (a minute and a half)
	QUICK=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal tests/unit tests/chaos

# More workers than cores, since most of an integration test is waiting; those come first (testpaths), since a long file
# that begins last keeps one worker busy while the others have nothing left.
test: $(STAMP) tools ## Run all tests, the integration tests against a real Kafka
	$(BIN)/python -m streamer.local_kafka.startup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

explore: $(STAMP) ## Run the property tests with examples that are new each time
	EXPLORE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/unit tests/component tests/fuzz

# What tests run against and no wheel carries; the names are Debian's packages.
TOOLS := chromium npm prometheus redis-server
tools: ## Install the programs that tests run against, where they are missing (as root, on Debian)
	@missing=; for each in $(TOOLS); do command -v $$each >/dev/null || missing="$$missing $$each"; done; \
	command -v promtool >/dev/null || missing="$$missing prometheus"; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	elif [ -n "$$missing" ]; then \
	  echo "the tests need$$missing on the PATH; on Debian: apt-get install$$missing"; exit 1; fi

# make chaos [STORE=cluster: three primaries with a replica each, which are broken too] [SMALL=1: a few minutes]
#   [SEED=n] [COUNT=n] [KINDS=kill,truncated] [HOURS=n: goes on with new seeds until a difference is found]
chaos: $(STAMP) ## 200 faults of services, machines, brokers, topics, offsets and stores, and every event counted (under 30 minutes)
	$(BIN)/python -m tests.chaos --seed $(or $(SEED),1) $(if $(COUNT),--count $(COUNT)) $(if $(KINDS),--kinds $(KINDS)) \
	  $(if $(HOURS),--hours $(HOURS)) $(if $(STORE),--store $(STORE)) $(if $(SMALL),--small)

# make fuzz-video [SEED=n] [COUNT=n]
fuzz-video: $(STAMP) ## 5,000 damaged, lying and bomb-like files through the embedder, each accounted for (about 5 minutes)
	$(BIN)/python -m tests.fuzz.videos --count $(or $(COUNT),5000) --seed $(or $(SEED),1)

# make bench [NAMES="core text"]. The table in docs/performance.md: cp bench-report/results.json docs/bench/ && make docs
bench: peers ## Measure speed against what it could be and what others are, and write bench-report/ (15 minutes)
	$(BIN)/python -m bench $(NAMES)

# Packages that only bench/peers use; they pin versions of what ours needs too, and so lie beside them.
PEERS := $(VENV)/peers
peers: $(PEERS)/.installed
$(PEERS)/.installed: requirements/peers.txt $(STAMP)
	rm -rf $(PEERS)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target $(PEERS) --only-binary :all: --require-hashes -r requirements/peers.txt
	@touch $@

# The table in docs/evaluation.md: cp avs-report/results.json docs/avs/ && make docs
avs: $(STAMP) ## A synthetic video search benchmark: what reranking gains at several strengths of the engine (2 minutes)
	rm -rf avs-report
	$(BIN)/streamer benchmark --model demo --out avs-report --dtype float32

# make decide [RUNS=n]
decide: $(STAMP) ## Simulate pilots and sweeps with known truths: how often do they decide wrongly? (under 15 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.decisions $(if $(RUNS),--runs $(RUNS))

# They are: imputing, pooling, alpha by rule, hubs, negation, and matches.
method: $(STAMP) ## Measure what other ways of scoring gain, and write the tables of docs/evaluation.md and docs/match.md (25 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.cases.method
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.cases.alpha_and_hubs
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.cases.negation
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.cases.match
	$(BIN)/python scripts/write_docs.py

capacity: $(STAMP) ## Measure what clips and queries cost in a store, and write the tables of docs/capacity.md (about 5 minutes)
	$(BIN)/python -m bench.cases.capacity
	$(BIN)/python scripts/write_docs.py

alerts: $(STAMP) tools ## Let each alert fire for its cause in a real Prometheus beside running services (5 minutes)
	ALERTS=all $(BIN)/python -m pytest tests/integration/test_alerts.py

named: $(STAMP) tools ## Cause each fault that stays, and measure how long until /readyz or an alert names it (5 minutes)
	NAMED=all $(BIN)/python -m pytest -s tests/integration/test_named.py

dashboard-picture: $(STAMP) tools ## Draw docs/dashboard.png from a real Prometheus beside running services
	DASHBOARD_PICTURE=docs/dashboard.png $(BIN)/python -m pytest tests/integration/test_alerts.py -k dashboard

report-pictures: $(STAMP) tools ## Draw docs/reports/, pictures of the reports at the widths of a desk and of a phone
	mkdir -p docs/reports
	REPORT_PICTURES=docs/reports $(BIN)/python -m pytest tests/component/test_report_pages.py -k "wide_and_narrow"

soak: $(STAMP) ## Memory under a backlog of 500 MB, and a minute's decode, on a real Kafka (10 to 20 minutes)
	$(BIN)/python -m pytest -s tests/soak/soak.py

# make crowds [CLIENTS=5000] [SECONDS=60] [KINDS="slow scraping"] [POLITE=0]
crowds: $(STAMP) ## 5,000 clients of each bad kind on the metrics port of a loaded reranker (13 minutes)
	$(if $(CLIENTS),CLIENTS=$(CLIENTS)) $(if $(SECONDS),SECONDS=$(SECONDS)) $(if $(KINDS),KINDS="$(KINDS)") \
	  $(if $(POLITE),POLITE=$(POLITE)) $(BIN)/python -m pytest -s tests/soak/crowds.py

# make scarce [UPLOADS=200] [SECONDS=300]
scarce: $(STAMP) ## An embedder without disk, descriptors, processes or memory for minutes, under 200 uploads (15 minutes, as root)
	$(if $(UPLOADS),UPLOADS=$(UPLOADS)) $(if $(SECONDS),SECONDS=$(SECONDS)) $(BIN)/python -m pytest -s -n 3 tests/soak/scarce.py

store-copy: $(STAMP) ## 100,000 records from LMDB to a real cluster and back, the copies killed on the way (about 3 minutes)
	$(BIN)/python -m pytest -s tests/soak/store_copy.py

store-faults: $(STAMP) ## A cluster's servers hang, trickle, load and are lost under 200 queries/s (about 2 minutes; a quiet machine)
	$(if $(RATE),RATE=$(RATE)) $(BIN)/python -m pytest -s tests/soak/store_faults.py

pin-images: ## Ask registries for the digests of deploy/images.txt, and write deploy/.env (needs skopeo or docker)
	@$(PYTHON) scripts/pin_images.py

# make image [VARIANT=cpu|cuda] [BASE=image@digest] [IMAGE=name] [REBASE=1]
image: ## Build the services' image without Docker, on a base of Debian's packages unless BASE is given (about 5 minutes)
	@VARIANT="$(VARIANT)" BASE="$(BASE)" IMAGE="$(IMAGE)" REBASE="$(REBASE)" scripts/image.sh build

image-test: $(STAMP) image ## Run both services from the image without root, restricted as on Kubernetes (3 minutes)
	$(if $(IMAGE),IMAGE="$(IMAGE)") $(BIN)/python -m pytest -s tests/soak/image.py

lint: $(STAMP) ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Let ruff format and fix what it can
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

kafka: $(STAMP) ## Run a real local Kafka on port 9092 until Ctrl-C
	$(BIN)/streamer broker

topics: $(STAMP) ## Write the JSON Schemas in topics/ from the event models
	$(BIN)/python -m streamer.kafka.admin.topic_files

docs: $(STAMP) ## Write the generated parts of docs/ and deploy/ from code and measured results
	$(BIN)/python scripts/write_docs.py
	$(BIN)/python scripts/write_deploy.py

site: $(STAMP) ## Build docs/ into site/; a dead link or anchor fails
	PYTHONPATH=scripts $(BIN)/zensical build --strict --clean

top-picture: $(STAMP) ## Draw docs/top.svg, a picture of streamer top, from a running system
	STREAMER_TOP_SVG=docs/top.svg $(BIN)/python -m pytest -q tests/integration/test_top.py -k rebalance

model: $(STAMP) ## Train the small demo model (about 15 minutes on 2 cores)
	$(BIN)/python -m training.train --out streamer/demo/model --seed 0

COMPILE := $(BIN)/uv pip compile --quiet --only-binary :all: --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock"
lock: ## Pin the newest versions that pyproject.toml allows, with hashes
	test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes -r requirements/bootstrap.txt; }
	echo uv | $(COMPILE) - -o requirements/bootstrap.txt
	$(COMPILE) pyproject.toml --extra dev -o requirements/dev.txt
	$(COMPILE) pyproject.toml --extra gs --extra otel --extra redis -c requirements/dev.txt -o requirements/service.txt
	$(COMPILE) bench/peers/requirements.in -o requirements/peers.txt

clean: ## Remove what the tasks made, but for downloads in the user's cache
	rm -rf $(VENV) demo-report bench-report avs-report data dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
