# What a developer types. Everything installs what it needs by itself, except
# Go: scripts/bootstrap says what to type where it cannot.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

REVISION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X main.release=$(REVISION)
# Tools live in a module of their own: the service does not depend on theirs.
TOOL := go tool -modfile=tools/go.mod
# How long each fuzz target runs.
FUZZTIME ?= 30s
# Arguments of make run, for example ARGS='--regions eu-central-1'.
ARGS ?=

.PHONY: help
help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: ## Run Trent on 127.0.0.1:4600 with a SoftHSM token and a private Postgres
	@scripts/bootstrap run
	@$(MAKE) --no-print-directory build
	@exec bin/trent dev $(ARGS)

.PHONY: build
build: ## Build bin/trent
	@mkdir -p bin
	@echo "building bin/trent; the first time this takes a minute or two" >&2
	@go build -trimpath -ldflags '$(LDFLAGS)' -o bin/trent ./cmd/trent

.PHONY: install-deps
install-deps: ## Install the Debian packages that running and testing need
	@scripts/bootstrap test

.PHONY: test
test: install-deps ## Run all tests: real SoftHSM, real Postgres, real AWS clients
	scripts/test

.PHONY: check lint
check: ## Check formatting, linters and known vulnerabilities
	@scripts/bootstrap run
	scripts/lint
lint: check

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME (30s)
	@scripts/bootstrap run
	FUZZTIME=$(FUZZTIME) scripts/fuzz

.PHONY: bench
bench: install-deps ## Measure: the raw device, the hsm layer, the service over HTTP
	go run ./cmd/trent-bench
	go run ./cmd/trent-bench hsm

.PHONY: clean
clean: ## Remove what was built (never .trent, which holds keys)
	rm -rf bin dist
