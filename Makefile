# Thin: each target is a line that a person could type.

CARGO ?= cargo
# One selection of packages and features for everything, so that nothing is built twice.
ALL := --workspace --exclude lifeboat-ec2 --no-default-features
RELEASE := target/release

.PHONY: demo test lint build

build:
	$(CARGO) build --release $(ALL) --bins --lib --examples

demo: build
	$(RELEASE)/chaos demo $(ARGS)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(ALL) --all-targets -- -D warnings

test:
	@.ci/test
