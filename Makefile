# Everything a developer needs: `make help`. Tools and the tests' control plane are built from pinned Go modules into
# CACHE, outside the checkout and outside the product's go.mod; the second use takes seconds.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

GOLANGCI_LINT_VERSION := v2.15.0
GOVULNCHECK_VERSION := v1.9.0

CACHE := $(or $(IAM4KUBE_TEST_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/iam4kube)
# The toolchain is in the path: a linter built by an older Go cannot read the code of a newer one.
TOOLS := $(CACHE)/tools/$(shell go env GOVERSION)
GOLANGCI_LINT := $(TOOLS)/golangci-lint-$(GOLANGCI_LINT_VERSION)/golangci-lint
GOVULNCHECK := $(TOOLS)/govulncheck-$(GOVULNCHECK_VERSION)/govulncheck

# The plugin of kubectl, a module of its own for the sake of the programs' dependencies.
PLUGIN := cmd/kubectl-iam4kube
MODULES := . $(PLUGIN) test
# The packages of test/ that need neither root nor an API server, by the ends of their names.
TEST_UNIT := demo|docs|fakests|progress
# Those that run nothing of ours beside each other, or simulate hours: without the race detector, which makes them
# several times slower. What is simulated, packages sts, server and internal/server/credentials run with it.
TEST_PLAIN := credentials|images|manifests|release
# Those that measure milliseconds, one after the other.
TEST_TIMED := outage|routingload|server
# That which has a browser, for `test-page`.
TEST_PAGE := page
# Those that have benchmarks alone, for `bench` and `bench-scale`; `lint` compiles them.
TEST_BENCH := bench|benchrouting|benchscale
# All with tests: those without would be compiled, too.
TEST_PACKAGES = go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...
# What brings the AWS clients of test/clients/programs, from Debian.
CLIENT_PACKAGES := awscli gdal-bin libvm-ec2-perl nodejs pgbackrest php-async-aws-core php-cli python3-awscrt python3-boto \
	python3-boto3 rclone ruby ruby-aws-sdk ruby-aws-sdk-core ruby-fog-aws s3cmd
# Further arguments for `go test`, for example: make test TESTFLAGS='-run TestRace -v'
TESTFLAGS ?=

# Compiled as for `build`: what they share, Kubernetes' client above all, comes from go's cache.
GORUN := CGO_ENABLED=0 go run -trimpath

# The compiler and the linker collect garbage less often, for a quarter less processor time. In the environment of
# `go` the variables would be the tests', too. What is compiled is the same, and so is its place in go's cache.
LESS_GC := GOGC=400 GOMEMLIMIT=3GiB
TOOLEXEC := '-toolexec=env $(LESS_GC)'
export GOFLAGS := $(if $(findstring toolexec,$(GOFLAGS)),$(GOFLAGS),$(strip $(shell go env GOFLAGS) $(TOOLEXEC)))

# What programs say of themselves.
VERSION ?= $(or $(shell git describe --tags --always --dirty 2>/dev/null),unreleased)
REVISION ?= $(or $(shell git rev-parse HEAD 2>/dev/null),unknown)
BUILDINFO := github.com/iam4kube/iam4kube/internal/buildinfo
LDFLAGS = -s -w -X $(BUILDINFO).version=$(VERSION) -X $(BUILDINFO).revision=$(REVISION)

##@ Build
BIN := bin
.PHONY: build
build: plugin ## the programs, static, into bin/; ip2service-init is ip2service without --mode node
	CGO_ENABLED=0 go build -trimpath -ldflags='$(LDFLAGS)' -o $(BIN)/ ./cmd/...
	CGO_ENABLED=0 go build -trimpath -ldflags='$(LDFLAGS)' -tags podonly -o $(BIN)/ip2service-init ./cmd/ip2service

.PHONY: plugin
plugin: # `kubectl iam4kube`
	mkdir -p $(BIN)
	cd $(PLUGIN) && CGO_ENABLED=0 go build -trimpath -ldflags='$(LDFLAGS)' -o $(abspath $(BIN))/ .

##@ Test
# -vet=off: `lint` vets. Here, go would do it once more, and with it all dependencies. -trimpath: what one checkout has
# compiled serves another. The race detector would sleep for a second before each test binary exits, in case that
# something still runs.
GOTEST := GORACE=atexit_sleep_ms=0 go test -race -vet=off -trimpath

# -count=1: go's cache does not notice changes of files outside of the module, as those of docs/.
.PHONY: test-unit
test-unit: ## what needs no root and no API server, within a minute
	$(GOTEST) $(TESTFLAGS) ./...
	cd $(PLUGIN) && $(GOTEST) $(TESTFLAGS) ./...
	cd test && $(GOTEST) -count=1 $(TESTFLAGS) $$($(TEST_PACKAGES) | grep -E '/($(TEST_UNIT))$$')

# -count=1 as above.
GOTEST_ROOT := -count=1 -parallel 8 -timeout 30m

# What computes takes the time that all others wait, and no more: SCHED_IDLE, chrt(1).
.PHONY: test
test: test-unit test-tools ## everything, as root on Debian: real API server, real AWS clients in network namespaces
	$(MAKE) --no-print-directory -j 2 test-timed test-plain

.PHONY: test-plain
test-plain:
	cd test && CGO_ENABLED=0 chrt --idle 0 env $(filter-out -race,$(GOTEST)) $(GOTEST_ROOT) -p 2 $(TESTFLAGS) $$($(TEST_PACKAGES) | grep -E '/($(TEST_PLAIN))$$')

# Parallel tests of a package are beside each other, because they wait more than they work, and two packages, because most
# keep more than one processor busy. Backwards, so that the last packages are not those that wait most.
.PHONY: test-others
test-others:
	cd test && $(GOTEST) $(GOTEST_ROOT) -p 2 $(TESTFLAGS) $$($(TEST_PACKAGES) | grep -Ev '/($(TEST_UNIT)|$(TEST_PLAIN)|$(TEST_TIMED)|$(TEST_PAGE)|$(TEST_BENCH))$$' | sort -r)

.PHONY: test-timed
test-timed: test-others # no two at once
	cd test && $(GOTEST) $(GOTEST_ROOT) -p 1 $(TESTFLAGS) $$($(TEST_PACKAGES) | grep -E '/($(TEST_TIMED))$$')

.PHONY: test-page
test-page: control-plane ## the page of the debug listener in Chromium, as root on Debian; TESTFLAGS=-update makes the pictures of docs/ anew
	hack/debian-packages.sh chromium iproute2
	cd test && $(GOTEST) -count=1 -timeout 10m ./page $(TESTFLAGS)

# Suites of Debian, each for its newest kernel, or SUITE/PACKAGE. What of a kernel is needed stays in CACHE.
KERNELS ?= bookworm
.PHONY: test-kernels
test-kernels: ## what the kernel does, on Debian's kernels KERNELS, each booted in an emulated machine; as root on Debian
	hack/debian-packages.sh clang iproute2 iptables kmod nftables qemu-system-x86 xz-utils
	cd test && $(GORUN) ./kernels $(TESTFLAGS) $(KERNELS)

.PHONY: bench
bench: control-plane ## throughput and latency beside a bare net/http server; tokens; 5,000 pods that start; wake-up of 10,000; rules beside iptables; injection
	hack/debian-packages.sh iproute2 iptables nftables
	cd test && go test -run '^$$' -bench . -benchtime 1x -timeout 60m -v ./bench/... ./benchrouting/... ./webhook/...

AGAINST ?= $(error AGAINST is missing: the commit to compare with, as in AGAINST=HEAD~1)
.PHONY: bench-against
bench-against: control-plane ## throughput, as `bench`, beside the server of another commit: AGAINST=COMMIT
	rm -rf $(BIN)/against && mkdir -p $(BIN)/against/source
	git archive $(AGAINST) | tar -x -C $(BIN)/against/source
	cd $(BIN)/against/source && CGO_ENABLED=0 go build -trimpath -o ../$(AGAINST) ./cmd/server
	cd test && IAM4KUBE_BENCH_AGAINST=$(abspath $(BIN)/against/$(AGAINST)) go test -run '^$$' -bench Throughput -benchtime 1x -timeout 30m -v ./bench

.PHONY: bench-scale
bench-scale: control-plane ## memory and time to sync with 50,000 pods and 5,000 ServiceAccounts
	cd test && go test -run '^$$' -bench . -benchtime 1x -timeout 60m -v ./benchscale $(TESTFLAGS)

##@ Cluster
.PHONY: demo
demo: VERSION := demo
demo: cluster-tools build ## real pods on a real Kubernetes cluster get their roles; the cluster stays
	cd test && $(GORUN) ./demo

.PHONY: demo-shell
demo-shell: ## a shell in which kubectl finds the demo's cluster
	cd test && PATH="$(abspath $(BIN)):$$PATH" $(GORUN) ./cluster/cmd/cluster shell

.PHONY: demo-down
demo-down: ## take the demo's cluster down
	cd test && $(GORUN) ./cluster/cmd/cluster down

# One column of the matrix, chosen by these.
E2E_PROXY ?= nftables
E2E_CNI ?= ptp
E2E_DATA_PATH ?= nftables
E2E_INJECTION ?= webhook
# What has injected pods, for E2E_INJECTION=policy: there is no webhook.
E2E_INJECTED := TestEveryPod|TestEveryClient|TestEveryQoS|TestInitContainer|TestWithoutNetAdmin|TestNoNetAdmin|FailsClosed|TestStartOf|TestHostNetworkPodsProve|TestWrongRoles|TestZeroDowntime
# What takes minutes, for e2e-all: an outage that differs from the one of a minute in nothing but its length, and a release
# for the registry. TestUpgrade is for test-upgrade.
E2E_SKIP ?= TestUpgrade|TestReleaseFromRegistry|TestZeroDowntime/API_server_down_for_five_minutes
.PHONY: e2e
e2e: cluster-tools client-tools network-policy registry-tools ## end-to-end tests on that cluster, with kube-proxy's mode E2E_PROXY, the CNI plug-in E2E_CNI, ip2service's E2E_DATA_PATH, and E2E_INJECTION, webhook or policy
	cd test && IAM4KUBE_E2E_PROXY=$(E2E_PROXY) IAM4KUBE_E2E_CNI=$(E2E_CNI) IAM4KUBE_E2E_DATA_PATH=$(E2E_DATA_PATH) IAM4KUBE_E2E_INJECTION=$(E2E_INJECTION) \
		$(GOTEST) -tags e2e -count 1 -parallel 16 -timeout 60m -v -skip '$(E2E_SKIP)' $(TESTFLAGS) ./e2e

.PHONY: quick-start
quick-start: cluster-tools ## README's quick start, on an empty cluster of that kind
	cd test && $(GORUN) ./controlplane/cmd/build helm
	cd test && $(GOTEST) -tags e2e -count 1 -timeout 30m -v $(TESTFLAGS) ./quickstart

.PHONY: e2e-all
e2e-all: ## the whole matrix, one column after the other, each with what takes minutes of waiting; one by eBPF; and injection by policy
	for proxy in nftables iptables; do for cni in ptp bridge; do \
		$(MAKE) e2e E2E_PROXY=$$proxy E2E_CNI=$$cni E2E_SKIP=TestUpgrade; \
	done; done
	$(MAKE) e2e E2E_DATA_PATH=ebpf E2E_SKIP=TestUpgrade
	$(MAKE) e2e E2E_INJECTION=policy E2E_SKIP='TestFailsClosed/no_webhook|TestZeroDowntime/API_server_down_for_five_minutes' TESTFLAGS="-run '$(E2E_INJECTED)'"

# What an upgrade starts from: the commit before chart, web identity, audit log and eBPF; from the first release on, its tag.
LAST_RELEASE := a51fd1098c99c8058d3b15560709931e8ab97228
.PHONY: test-upgrade
test-upgrade: cluster-tools ## from LAST_RELEASE to this version and back on that cluster, by docs/operations.md, under load
	hack/debian-packages.sh jq
	cd test && IAM4KUBE_E2E_PROXY=$(E2E_PROXY) IAM4KUBE_E2E_CNI=$(E2E_CNI) IAM4KUBE_E2E_FROM=$(LAST_RELEASE) \
		$(GOTEST) -tags e2e -count 1 -timeout 60m -v -run '^TestUpgrade$$' $(TESTFLAGS) ./e2e

.PHONY: images
images: image-tools ## the Dockerfile's images, built as the cluster's are, with buildah; prints the archives
	cd test && $(GORUN) ./images/cmd/build latest

.PHONY: test-tools
test-tools: control-plane image-tools client-tools registry-tools # what `test` needs and the checkout does not hold
	cd test && $(GORUN) ./controlplane/cmd/build certmanager
	hack/debian-packages.sh clang iproute2 iptables nftables openssl python3-cryptography python3-jwt
	$(MAKE) $(PROMETHEUS)

.PHONY: registry-tools
registry-tools: # a registry, and what brings a release into it
	cd test && $(GORUN) ./controlplane/cmd/build helm
	hack/debian-packages.sh skopeo
	$(MAKE) $(DOCKER_REGISTRY)

.PHONY: client-tools
client-tools: # the AWS clients of test/clients/programs
	hack/debian-packages.sh npm $(CLIENT_PACKAGES)
	$(MAKE) test/clients/js/node_modules/.package-lock.json

test/clients/js/node_modules/.package-lock.json: test/clients/js/package-lock.json
	npm --prefix $(<D) ci --no-audit --no-fund

# Debian's, not installed, because that would start them.
PROMETHEUS := $(CACHE)/prometheus
DOCKER_REGISTRY := $(CACHE)/docker-registry
$(PROMETHEUS) $(DOCKER_REGISTRY):
	rm -rf $@.partial && mkdir -p $@.partial
	cd $@.partial && { apt-get download -q $(@F) || { apt-get update -q && apt-get download -q $(@F); }; }
	cd $@.partial && dpkg-deb --fsys-tarfile $(@F)_*.deb | tar -x --strip-components=3 ./usr/bin && rm $(@F)_*.deb
	mv $@.partial $@

.PHONY: image-tools
image-tools: # what builds images
	hack/debian-packages.sh buildah ca-certificates libcap2-bin

.PHONY: cluster-tools
cluster-tools: control-plane image-tools # what the cluster runs on, and what its pods run
	cd test && $(GORUN) ./controlplane/cmd/build certmanager
	hack/debian-packages.sh awscli containerd containernetworking-plugins iproute2 iptables nftables python3-boto3 runc

.PHONY: network-policy
network-policy: # what enforces NetworkPolicies on the cluster's nodes, built once into CACHE
	cd test && $(GORUN) ./controlplane/cmd/build networkpolicy

.PHONY: control-plane
control-plane: # Kubernetes and etcd, built once into CACHE
	hack/debian-packages.sh gcc libc6-dev
	cd test && $(GORUN) ./controlplane/cmd/build

# Older API servers, each built once into CACHE, and the packages of test/ that need nothing else of a cluster.
VERSIONS ?= 1.31 1.34
TEST_VERSIONS := webhook|server|plugin
# Policies inject from Kubernetes 1.36 on.
TEST_POLICIES := TestPolicy|TestFixturesByPolicy|TestCheck/injected_by_a_policy|Test/^policy$$
.PHONY: test-versions
test-versions: control-plane ## what webhook, server and plugin need of the API server, on Kubernetes' VERSIONS; as root on Debian
	hack/debian-packages.sh iproute2 iptables nftables openssl
	for version in $(VERSIONS); do (cd test && export IAM4KUBE_TEST_KUBERNETES=$$version && $(GORUN) ./controlplane/cmd/build apiserver && \
		$(GOTEST) -count=1 -p 1 -parallel 8 -timeout 30m -skip '$(TEST_POLICIES)' $(TESTFLAGS) $$($(TEST_PACKAGES) | grep -E '/test/($(TEST_VERSIONS))$$')); done

.PHONY: monitoring
monitoring: ## alerts and dashboard of observability/, and their tables in docs/, anew from test/monitoring
	cd test && $(GORUN) ./monitoring/cmd/generate

##@ Release
# Where the images will be pushed to, for example registry.example/iam4kube.
REGISTRY ?=
# File of an Ed25519 private key: openssl genpkey -algorithm ed25519 -out key.pem
KEY ?=
# Its public key, which has come another way: openssl pkey -in key.pem -pubout -out key.pub
PUBLIC_KEY ?=
RELEASE ?= $(CURDIR)/dist/$(VERSION)
.PHONY: release
release: export GOTOOLCHAIN := auto
release: image-tools ## images, chart, manifests, SBOMs, provenance, checksums and signature of VERSION into RELEASE, for REGISTRY, signed by KEY
	git diff --quiet HEAD || { echo "release: the checkout differs from its commit" >&2; exit 1; }
	hack/debian-packages.sh openssl
	cd test && $(GORUN) ./release/cmd/release -version '$(VERSION)' -revision '$(REVISION)' -registry '$(REGISTRY)' \
		-created "$$(git log -1 --format=%ct)" -key '$(abspath $(KEY))' -dir '$(RELEASE)'

.PHONY: verify-release
verify-release: ## that the release in RELEASE is what was signed, by PUBLIC_KEY and without a network
	hack/verify-release.sh '$(RELEASE)' '$(PUBLIC_KEY)'

##@ Check
.PHONY: check
check: build test-unit lint-changed ## what one runs before each commit: build, test-unit, lint of what changed since SINCE

# A commit, for example: make check SINCE=origin/main
SINCE ?= HEAD

# The modules below test/build are none of MODULES.
.PHONY: lint-changed
lint-changed: $(GOLANGCI_LINT)
	for module in $(MODULES); do (cd $$module && \
		{ git diff --name-only --relative --diff-filter=d $(SINCE) -- '*.go' ':!test' ':!build' ':!$(PLUGIN)'; \
		git ls-files --others --exclude-standard -- '*.go' ':!test' ':!build' ':!$(PLUGIN)'; } | \
		xargs -r dirname | sort -u | sed 's,^,./,' | xargs -rt env $(LESS_GC) $(GOLANGCI_LINT) run); done

# Compiled for the linter as for `build`, dependencies come from the same entries of go's cache.
.PHONY: lint
lint lint-changed: export CGO_ENABLED := 0
lint lint-changed: export GOFLAGS := $(GOFLAGS) -trimpath
lint: $(GOLANGCI_LINT) ## golangci-lint, import directions and go.mod, in both modules
	$(GOLANGCI_LINT) config verify
	for module in $(MODULES); do (cd $$module && echo "lint $$module" && $(LESS_GC) $(GOLANGCI_LINT) run && go mod tidy -diff); done

.PHONY: fmt
fmt: $(GOLANGCI_LINT) ## gofumpt and grouped imports, in both modules
	$(GOLANGCI_LINT) fmt

# What is scanned is what runs: programs built as for the images, by the Go of go.mod's toolchain line or a newer one, so
# that a finding in what is in use cannot hide behind what this machine would build. The database comes by the module
# proxy, as of today. Stripped programs have no symbols, and every one of a package would count as called.
.PHONY: vuln
vuln: export GOTOOLCHAIN := auto
vuln: $(GOVULNCHECK) ## known vulnerabilities in the programs as the images have them, by the newest database
	database=$$(go mod download -json golang.org/x/vulndb@latest | sed -n 's/^\t"Dir": "\(.*\)",$$/\1/p'); \
	programs=$$(mktemp -d); trap 'rm -rf "$$programs"' EXIT; \
	$(MAKE) build BIN="$$programs" LDFLAGS=; \
	for program in "$$programs"/*; do \
		go version "$$program"; \
		$(GOVULNCHECK) -db "file://$$database/data/osv" -mode binary "$$program" || status=1; \
	done; exit $${status:-0}

.PHONY: clean
clean: ## remove what was built here; CACHE stays
	rm -rf bin dist test/clients/js/node_modules

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } /^##@ / { print "\n" substr($$0, 5) } /^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(GOLANGCI_LINT):
	@echo "building golangci-lint $(GOLANGCI_LINT_VERSION), once, 2 to 5 minutes"
	CGO_ENABLED=0 GOBIN=$(@D) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)

$(GOVULNCHECK):
	@echo "building govulncheck $(GOVULNCHECK_VERSION), once"
	CGO_ENABLED=0 GOBIN=$(@D) go install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)
