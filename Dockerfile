# The one program, for both services. Versions are pinned; digests are not yet: whoever publishes an
# image pins them by what their registry serves (`docker buildx imagetools inspect`).
FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /src
# All that the workspace names, so that the lock file holds as it is.
COPY Cargo.toml Cargo.lock ./
COPY crates crates
COPY sdk/rust sdk/rust
COPY src src
COPY chaos chaos
COPY tests tests
# Doctor asks for the chart's own rights.
COPY deploy/helm/lifeboat/files deploy/helm/lifeboat/files
# glibc of bookworm: it runs on every distribution of the same age or younger.
RUN cargo build --locked --profile dist --no-default-features --package lifeboat --bin lifeboat

# glibc and nothing else to run: NVIDIA's library is loaded when the program runs, and needs it.
FROM debian:12.12-slim
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/target/dist/lifeboat /usr/local/bin/lifeboat
# The controller's. The chart says so itself, and that agents are root: host files are root's.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/lifeboat"]
