# `make help` says what there is. Nothing here needs more than a Rust toolchain, and root on Debian (or a Docker engine,
# or servers that already run: tests/servers/README.md) for the tests.

SHELL := /bin/bash
CARGO ?= cargo
CACHE := $(or $(CDC_TEST_CACHE),$(HOME)/.cache/cdc-test)
SECONDS_OF_DEMO ?= 60

DATABASE ?= mysql
SEEDS ?= 500
FIRST_SEED ?= 1
SIZE ?= mixed
comma := ,

# Most tests wait, for locks and timeouts of real servers: more of them at once than there are cores.
export RUST_TEST_THREADS ?= $(shell expr 2 '*' $$(nproc 2>/dev/null || echo 2))
# One kind of database's tests, as in the paths of their names.
tests_of = $(addsuffix ::,$(subst $(comma), ,$(DATABASE)))

.PHONY: help run build test faults cluster model simulate nemesis bench lint deny fmt doc servers servers-down sqlx-data

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

run: ## three captures share 12 changefeeds, lose one capture, and go on
	$(CARGO) run --release --quiet --locked -p cdc -- demo --seconds $(SECONDS_OF_DEMO)

build: ## the cdc binary, in target/release
	$(CARGO) build --release --locked -p cdc

test: ## every test, on real servers: SQLite in files; MySQL, MariaDB and TiDB in containers
	@env=$$(tests/servers/up mysql mariadb tidb) && eval "$$env" && $(CARGO) test --workspace --exclude cluster-model --locked
	@$(MAKE) --no-print-directory model
	@$(MAKE) --no-print-directory simulate SEEDS=50

faults: ## every fault at every round trip of every call of the store; DATABASE=mysql,mariadb,tidb
	@env=$$(tests/servers/up $(subst $(comma), ,$(DATABASE))) && eval "$$env" && CDC_FAULTS=all \
		$(CARGO) test --locked -p metadata-mysql --test store -- --nocapture $(addsuffix faults::,$(tests_of))

model: ## every state of small clusters, by production's own decisions; and eight planted mistakes, each of which must be found
	MODEL=all $(CARGO) test --profile proof --locked -p cluster-model --test model -- --nocapture --test-threads 1

simulate: ## the real runtime on the store in memory, faults of all kinds in virtual time: SEEDS=500 FIRST_SEED=1; SIZE=mixed, full or small
	SIZE=$(SIZE) SEEDS=$(SEEDS) FIRST_SEED=$(FIRST_SEED) \
		$(CARGO) test --profile proof --locked -p capture-runtime --test main seeds -- --nocapture

cluster: ## every test of whole clusters on one kind of store; DATABASE=mysql,sqlite,mariadb,tidb
	@env=$$(tests/servers/up mysql $(filter-out mysql sqlite,$(subst $(comma), ,$(DATABASE)))) && eval "$$env" && \
		$(CARGO) test --locked -p cluster-tests --test cluster -- --include-ignored $(tests_of)

nemesis: ## faults of all kinds on a real cluster, in random order: MINUTES=10 SEED=1 DATABASE=mysql (or tidb, mariadb) FAULTS=Suspended,..
	@env=$$(tests/servers/up $(sort mysql $(DATABASE))) && eval "$$env" && \
		NEMESIS_MINUTES="$(or $(MINUTES),10)" NEMESIS_SEED="$(or $(SEED),1)" NEMESIS_FAULTS="$(FAULTS)" \
		$(CARGO) test --locked -p cluster-tests --test cluster -- nemesis::$(DATABASE):: --nocapture --include-ignored

bench: ## every figure beside its raw baseline; QUICK=1: under 2 minutes; DATABASE=mysql,sqlite,mariadb,tidb; ONLY=heartbeat,..
	@servers="$(filter-out sqlite,$(subst $(comma), ,$(DATABASE)))" && \
		env=$$(test -z "$$servers" || tests/servers/up $$servers) && eval "$$env" && \
		QUICK="$(QUICK)" DATABASE="$(DATABASE)" ONLY="$(ONLY)" $(CARGO) run --release --quiet --locked -p bench

lint: ## format, clippy, docs, shell scripts, licences; warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --quiet
	tools/sqlx-data --check sqlite
	$(MAKE) --no-print-directory deny

deny: ## licences, sources and duplicate versions of what we depend on
	@command -v cargo-deny >/dev/null || test -x $(CACHE)/tools/bin/cargo-deny \
		|| $(CARGO) install cargo-deny --locked --quiet --root $(CACHE)/tools
	$(CARGO) fetch --locked --quiet # crates of other platforms too, which no build here has fetched
	PATH="$(CACHE)/tools/bin:$$PATH" $(CARGO) deny --offline --log-level error check bans licenses sources

fmt: ## format everything
	$(CARGO) fmt --all

doc: ## the documentation of every crate, in target/doc
	$(CARGO) doc --workspace --no-deps

servers: ## a Docker engine and the database images that the tests use; TiDB's takes Go 1.26 and some minutes the first time
	tests/servers/up mysql mariadb tidb

servers-down: ## stop the Docker engine, if `make servers` or `make test` started it
	tests/servers/down

sqlx-data: ## regenerate sqlx-data.json against a fresh SQLite file and a MySQL server
	tools/sqlx-data
