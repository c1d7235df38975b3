# weft. `make help` lists what can be made.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

BUILD   := build
BIN     := $(BUILD)/bin
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X github.com/weftmesh/weft/cmd/internal/cli.Version=$(VERSION)
FUZZTIME ?= 20s

.PHONY: help build demo demo-break demo-stop test lint fuzz bench bench-dns deps clean

help: ## list what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

build: ## the three commands, into build/bin
	@mkdir -p $(BIN)
	go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/weft ./cmd/weft-agent ./cmd/weft-controller

# What the lab starts besides: the workload of its machines, the members of etcd
# clusters, and the plain WireGuard program that wg-quick falls back to.
lab-bin: build
	@go build -trimpath -o $(BIN)/ ./e2e/lab/workload ./e2e/lab/etcdmember ./e2e/lab/streams ./e2e/lab/lookup ./e2e/demo
	@go build -trimpath -o $(BIN)/wireguard-go golang.zx2c4.com/wireguard
.PHONY: lab-bin

demo: deps lab-bin ## a mesh of three regions on this machine, fact by fact (root; KEEP=1 leaves it running)
	@$(BIN)/demo $(if $(KEEP),--keep)

demo-stop: ## end what `make demo KEEP=1` left running
	@$(BIN)/demo --stop

demo-break: deps lab-bin ## the demo again and again, each time with one mechanism off: is it noticed?
	@$(BIN)/demo --break

test: deps lab-bin ## everything, with the race detector (root for the scenarios in namespaces)
	WEFT_BIN=$(CURDIR)/$(BIN) go test -race -timeout 15m ./...
	@$(MAKE) --no-print-directory test-kernel

lint: ## format, vet, tidy
	@test -z "$$(gofmt -l . | tee /dev/stderr)"
	go vet ./...
	go mod tidy -diff
	go mod verify

# An input that is new costs ten runs at most to make smaller: by default a minute each,
# in which nothing else is tried.
fuzz: ## every fuzz target for FUZZTIME (default 20s)
	@grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do \
	  grep -ho '^func Fuzz[A-Za-z0-9_]*' $$dir/*_test.go | cut -c6- | sort -u | while read -r f; do \
	    echo "fuzz $$dir $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$dir || exit 1; \
	  done || exit 1; done

bench: deps lab-bin ## the figures (root)
	WEFT_BIN=$(CURDIR)/$(BIN) WEFT_BENCH=1 go test -count=1 -timeout 30m -run '^TestBench' -skip '^TestBenchTunnels$$' -v ./e2e ./mesh/agent | grep -E '^ *(figure:|---|ok|FAIL|panic)|: figure:|_test.go'

bench-dns: deps ## names answered per second, against CoreDNS, NSD and a bare miekg/dns loop (root)
	@mkdir -p $(BUILD)/rivals
	@[ -x $(BUILD)/rivals/coredns ] || GOBIN=$(CURDIR)/$(BUILD)/rivals go install github.com/coredns/coredns@v1.15.0
	@go build -trimpath -o $(BIN)/dnsbench ./dns/bench
	@$(BIN)/dnsbench -coredns $(BUILD)/rivals/coredns -nsd $(or $(shell command -v nsd),$(BUILD)/nsd/usr/sbin/nsd) -libs $(BUILD)/nsd/usr/lib/x86_64-linux-gnu

# nebula, and tailscale's fork of wireguard-go, of the version that its go.mod names:
# tailscaled itself wants a control server.
RIVALS  := $(CURDIR)/$(BUILD)/rivals
TSFORK  := github.com/tailscale/wireguard-go@v0.0.0-20260715223240-2e01ba5b00f0
bench-tunnel: deps lab-bin ## the userspace device against wireguard-go, nebula and tailscale's device (root)
	@mkdir -p $(RIVALS)/tailscale
	@for p in nebula nebula-cert; do [ -x $(RIVALS)/$$p ] || GOBIN=$(RIVALS) go install github.com/slackhq/nebula/cmd/$$p@v1.10.3; done
	@[ -x $(RIVALS)/tailscale-wireguard-go ] || { GOBIN=$(RIVALS)/tailscale go install $(TSFORK) && mv $(RIVALS)/tailscale/wireguard-go $(RIVALS)/tailscale-wireguard-go; }
	WEFT_BIN=$(CURDIR)/$(BIN) WEFT_RIVALS=$(RIVALS) WEFT_BENCH=1 go test -count=1 -timeout 30m -run '^TestBenchTunnels$$' -v ./e2e | grep -E '^(figure:|---|ok|FAIL|panic)|_test.go'
.PHONY: bench-tunnel

# Debian's real clients, which the tests and the demo use. Silent when they are here.
PROGRAMS := ip:iproute2 nsenter:util-linux ping:iputils-ping wg:wireguard-tools wg-quick:wireguard-tools dig:bind9-dnsutils \
            dnsperf:dnsperf iperf3:iperf3 nft:nftables curl:curl getent:libc-bin setpriv:util-linux python3:python3 \
            unshare:util-linux dbus-daemon:dbus-daemon kdig:knot-dnsutils node:nodejs escript:erlang-base \
            musl-gcc:musl-tools gcc:gcc gencat:libc6-dev strace:strace
MISSING = for p in $(PROGRAMS); do command -v $${p%%:*} >/dev/null || echo $${p\#\#*:}; done | sort -u | tr '\n' ' '
DEPSLOG := $(or $(TMPDIR),/tmp)/weft-deps.log
# Unpacked with their libraries, not installed: Debian would start the first, and the
# others would take this machine's own resolver over.
NSD      := nsd libevent-2.1-7 libfstrm0 libprotobuf-c1
RESOLVED := systemd-resolved libsystemd-shared libkmod2 libip4tc2 libapparmor1 libssl3
# $(call unpack,DIRECTORY,FILE OF IT,PACKAGES,WHAT IS NOT TRIED WITHOUT)
unpack = if [ ! -e $(BUILD)/$(1)/$(2) ] && command -v apt-get >/dev/null; then \
	  mkdir -p $(BUILD)/$(1) && cd $(BUILD)/$(1) && \
	  { apt-get download $(3) || { apt-get update && apt-get download $(3); }; } >/dev/null 2>&1 && \
	  for p in *.deb; do dpkg-deb -x $$p . || exit 1; done \
	    || echo "deps: $(1) could not be unpacked; $(4)" >&2; fi
deps: ## install the real clients that tests use (Debian, root); silent when satisfied
	@missing="$$($(MISSING))"; [ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "deps: installing $$missing" >&2; \
	  (apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing) >$(DEPSLOG) 2>&1 || tail -n 5 $(DEPSLOG) >&2; \
	  missing="$$($(MISSING))"; [ -n "$$missing" ] || exit 0; \
	fi; \
	echo "deps: not here: $$missing(Debian's packages; only root can install them); tests that need them are skipped" >&2; \
	[ "$${CI:-}" != true ] || { echo "deps: under CI=true that is a failure" >&2; exit 1; }
	@$(call unpack,openresolv,sbin/resolvconf,openresolv,the stock wg-quick client is not tried)
	@if cd $(BUILD)/openresolv/sbin 2>/dev/null && [ ! -x ../bin/resolvconf ]; then mkdir -p ../bin && \
	  sed 's|^LIBEXECDIR=.*|LIBEXECDIR=$(CURDIR)/$(BUILD)/openresolv/lib/resolvconf|' resolvconf >../bin/resolvconf && chmod +x ../bin/resolvconf; fi
	@$(call unpack,resolvconf,sbin/resolvconf,resolvconf,it is not tried as a laptop's resolver)
	@$(call unpack,nsd,usr/sbin/nsd,$(NSD),answers are not compared with it)
	@$(call unpack,resolved,lib/systemd/systemd-resolved,$(RESOLVED),it is not tried as a laptop's resolver)

clean: ## remove what was built
	rm -rf $(BUILD)

# What clients are told while programs are killed, paused and cut off, and while
# stores lose requests and answers, is recorded and judged; then a mesh is churned, and
# who reaches whom, and what has grown.
SECONDS ?= 300
soak: deps lab-bin ## state and mesh under harm, each judged for SECONDS (default 300; root; WEFT_SEED repeats)
	WEFT_BIN=$(CURDIR)/$(BIN) WEFT_SECONDS=$(SECONDS) go test -count=1 -timeout 0 -v -run '^(TestHistory|TestHistoryOfPrograms)$$' ./e2e/history ./e2e
	WEFT_BIN=$(CURDIR)/$(BIN) WEFT_SECONDS=$(SECONDS) go test -count=1 -timeout 0 -v -run '^TestChurn$$' ./e2e

mutants: ## planted mistakes, each of which the tests must notice (MUTANTS=DIR takes other patches, ONLY=REGEXP some)
	go run ./e2e/mutants $(if $(ONLY),--only '$(ONLY)') $(MUTANTS)
.PHONY: soak mutants

# The kernel's WireGuard, in a virtual machine that is unpacked, not installed. That it
# cannot be had here is a sentence; what fails in it is a failure, as is a skipped test,
# and, under CI=true, that it does not start, twice. Without the race detector: under
# emulation that takes minutes, and the same code runs with it on this machine.
VM   := $(CURDIR)/$(BUILD)/vm
# Of the firewall's tests those that ask the kernel something, and take seconds there;
# one after another, for the first loads the kernel's modules, and it takes its time.
FWVM := ^(TestMatrix|TestRates|TestNeighbours|TestHostsOwnFlows|TestQueriesAndProbesAreAnswered|TestForgedErrorsAboutOtherNetworks|TestMSSIsClamped|TestPathMTUErrorsReturn|TestPathMTU|TestTraceroute|TestRevokedFlowsEnd)$$
INVM := CGO_ENABLED=0 WEFT_BIN=$(CURDIR)/$(BIN) WEFT_VM_DIR=$(VM) go test -count=1 -timeout 4m
test-kernel: lab-bin ## tunnels of Debian's kernel, in a small virtual machine (root, network the first time)
	@CGO_ENABLED=0 go build -trimpath -o $(BIN)/kernel ./e2e/kernel
	@mkdir -p $(VM); said=$(VM)/unpack.log; why=; \
	starts() { $(BIN)/kernel pack $(VM) >$$said 2>&1 && WEFT_VM_LIMIT=60s $(BIN)/kernel exec $(VM) /bin/true >$$said 2>&1; }; \
	if [ "$$(id -u)" != 0 ]; then why="only root can share this machine's files with it"; \
	elif [ "$$(uname -m)" != x86_64 ] || ! command -v apt-get >/dev/null; then why="it is made of Debian's packages for amd64"; \
	elif [ ! -e $(VM)/vmlinuz.bin ] && ! timeout 180 ./e2e/kernel/unpack.sh $(VM) >$$said 2>&1; then why="it could not be unpacked: $$(tail -n 1 $$said)"; \
	elif ! starts && ! starts; then \
	  why="the virtual machine does not start, twice: $$(head -n 1 $$said)"; \
	  if [ "$${CI:-}" = true ]; then echo "test-kernel: $$why; under CI=true that is a failure" >&2; exit 1; fi; \
	fi; \
	if [ -n "$$why" ]; then echo "test-kernel: the kernel's WireGuard is not tried here: $$why" >&2; exit; fi; \
	$(MAKE) --no-print-directory -j2 -Otarget in-vm-agent in-vm-peers

# Two machines at a time, with a processor each.
in-vm-agent:
	@$(INVM) -run '^TestKernelBackend$$' -exec '$(CURDIR)/$(BIN)/kernel test $(VM)' ./e2e
in-vm-peers:
	@$(INVM) -run '^TestMachine$$' ./e2e/kernel
	@$(INVM) -parallel 8 -exec '$(CURDIR)/$(BIN)/kernel test $(VM)' ./peers/kernel
	@$(INVM) -parallel 1 -run '$(FWVM)' -exec '$(CURDIR)/$(BIN)/kernel test $(VM)' ./peers/firewall
.PHONY: test-kernel in-vm-agent in-vm-peers
