# make help lists the targets. Two of them do everything on a fresh Debian
# machine, as root: make demo and make test.

SHELL    := /bin/bash
GO       ?= go
PREFIX   ?= /usr/local
BIN      := $(CURDIR)/bin
PROGRAMS := berthd berth-shim berth
# Static, without paths of the build machine, stamped with the commit.
# grpcnotrace leaves out the trace pages of gRPC, and with them the templates
# that keep the linker from dropping unused methods: 3 MB less of berthd.
BUILD    := CGO_ENABLED=0 $(GO) build -buildvcs=auto -trimpath -tags grpcnotrace -ldflags "-s -w"

.DEFAULT_GOAL := build
.PHONY: help build install deps test unit faults scripts demo bench proto lint fuzz crash soak test-vm clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

build: ## build berthd, berth-shim and berth into bin/
	@mkdir -p $(BIN)
	$(BUILD) -o $(BIN)/ $(PROGRAMS:%=./cmd/%)

install: build ## install the programs and the systemd unit under PREFIX (/usr/local)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 0755 $(PROGRAMS:%=$(BIN)/%) $(DESTDIR)$(PREFIX)/bin/
	ln -sf berth-shim $(DESTDIR)$(PREFIX)/bin/containerd-shim-berth-v2
	sed 's|@PREFIX@|$(PREFIX)|g' dist/berth.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/berth.service

deps: ## install what the tests and the demo need
	@scripts/deps.sh run test

test: ## every test: lint, units with the race detector, faults, scripts, foreign clients
	@scripts/test.sh

unit: ## the unit and integration tests alone
	$(GO) test -race ./...

faults: ## the tests with armed fault points alone
	@scripts/test.sh faults

scripts: build ## the tests of module test/ alone: scripts and foreign clients
	@scripts/test.sh scripts

demo: ## run a container from an image and see it survive a daemon that is killed
	@scripts/deps.sh run
	@$(MAKE) --no-print-directory build
	@scripts/demo.sh

bench: build ## measure berth beside the OCI runtime alone, and beside containerd where it is installed
	@scripts/bench.sh

proto: ## generate the Go code of api/ anew (needs protoc)
	api/generate.sh

lint: ## gofmt, go vet, staticcheck
	@scripts/test.sh lint

crash: ## random operations while daemon and shims are killed, for DURATION (5m); SEED repeats a run
	@scripts/deps.sh run
	cd test && BERTH_CRASH_DURATION=$(or $(DURATION),5m) BERTH_CRASH_SEED=$(SEED) $(GO) test -count=1 -v -timeout 0 ./crash

soak: ## what shim, daemon and machine hold after EXECS (10000) execs and CYCLES (2000) containers
	@scripts/deps.sh run
	cd test && BERTH_SOAK_EXECS=$(or $(EXECS),10000) BERTH_SOAK_CYCLES=$(or $(CYCLES),2000) $(GO) test -count=1 -v -timeout 0 ./soak

test-vm: ## tests of tasks and storage in a virtual machine with cgroup v2, runc and crun, quotas and erofs, and power cuts; RUN, SUITES=regexp select (SUITES=power)
	@RUN='$(RUN)' SUITES='$(SUITES)' scripts/vm.sh

fuzz: ## run every fuzz test for FUZZTIME (30s) each
	@scripts/fuzz.sh $(or $(FUZZTIME),30s)

clean: ## remove what the targets built
	rm -rf bin .tools
