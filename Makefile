# The two commands of the README are `make up` and `make test`; the rest are their parts.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PATH := $(HOME)/.cargo/bin:$(PATH)

CARGO ?= cargo
GUEST_TARGET := x86_64-unknown-linux-musl
GUEST_BIN := target/$(GUEST_TARGET)/guest/wrenn-guest
WRENN := target/release/wrenn
ARGS ?=

.PHONY: help
help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: up
up: ## Install what is missing, build, start everything, print the URL and a key (ARGS=--detach returns)
	@scripts/install-deps.sh run build
	@$(MAKE) --no-print-directory build
	@$(WRENN) up $(ARGS)

.PHONY: build
build: guest ## Build the release binary, with the guest daemon inside
	$(CARGO) build --locked --release -p wrenn-cli

.PHONY: guest
guest:
	$(CARGO) build --locked --profile guest --target $(GUEST_TARGET) -p wrenn-guest

.PHONY: install
install: build ## Install the binary to /usr/local/bin
	install -m 0755 $(WRENN) /usr/local/bin/wrenn

.PHONY: test
test: ## Install what the tests need and run every test
	@scripts/install-deps.sh run build test
	@scripts/test.sh

.PHONY: lab
lab: ## Run a command in an emulated machine with KVM (ARGS='-- COMMAND…')
	@scripts/lab.sh $(ARGS)

.PHONY: test-firecracker
test-firecracker: ## Run the tests of the Firecracker driver in the lab (FIRECRACKER_BIN=PATH, ARGS='PART…')
	@scripts/test-firecracker.sh $(ARGS)

.PHONY: bench
bench: ## Measure what must be fast, as ratios against the bare part beneath it
	@scripts/install-deps.sh run build test
	@$(MAKE) --no-print-directory build
	@scripts/bench.sh

.PHONY: lint
lint: ## Formatting, clippy, licences and advisories
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

.PHONY: sqlx
sqlx: ## Regenerate the checked queries of the control plane
	@crates/control/scripts/sqlx-prepare.sh
