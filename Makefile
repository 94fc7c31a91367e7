# Thin: each target is a line that a person could type.

CARGO ?= cargo
# One selection of packages and features for everything, so that nothing is built twice.
ALL := --workspace --exclude lifeboat-ec2 --no-default-features
RELEASE := target/release

.PHONY: demo demo-cluster demo-python test lint build cluster-build cluster-up cluster-down cluster-test peers-build

build:
	$(CARGO) build --release $(ALL) --bins --lib --examples

demo: build
	$(RELEASE)/chaos demo $(ARGS)

# The same on real nodes, as root: Lifeboat installed by its chart, pods that kubelet runs.
demo-cluster: cluster-build build
	$(RELEASE)/chaos demo --cluster

# The same with trainers of NumPy, through the Python SDK.
demo-python: build
	@.ci/demo-python $(ARGS)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release $(ALL) --all-targets -- -D warnings
	$(CARGO) clippy --release $(ALL) --test cluster -- -D warnings
	@! command -v gofmt >/dev/null || ! gofmt -l tests/cluster | grep .

test:
	@.ci/test

# The real control plane, from pinned Go modules.
cluster-build:
	@tests/cluster/build
	@tests/cluster/helm/build
	@tests/cluster/definitions/build || [ $$? = 3 ]
	@tests/cluster/node/build || [ $$? = 3 ]

cluster-up: cluster-build build
	$(RELEASE)/chaos cluster up --karpenter $(ARGS)

cluster-down:
	$(RELEASE)/chaos cluster down $(ARGS)

# Two at a time, each on a control plane of its own: they wait more than they work.
cluster-test: cluster-build build
	$(CARGO) test --release $(ALL) --test cluster -- --nocapture --test-threads=2 $(ARGS)

# Those whom `chaos bench peers` compares Lifeboat with; no part of `test`.
peers-build: cluster-build
	@tests/cluster/peers/build
