//! The table of keys: what each is called, what it may be, and what it is when nobody sets it.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use lifeboat_domain::budget;
use lifeboat_domain::policy::Asked;
use lifeboat_domain::policy::BackgroundPolicy;
use lifeboat_domain::policy::DrainPolicy;
use lifeboat_domain::policy::KarpenterMode;
use lifeboat_domain::policy::OnDemand;
use lifeboat_domain::policy::OperatingMode;
use lifeboat_domain::policy::Others;
use lifeboat_domain::policy::Policy;
use lifeboat_domain::policy::Prepare;
use lifeboat_domain::policy::RebalancePolicy;
use lifeboat_domain::policy::ReplacementPolicy;
use lifeboat_domain::signal::NOTICE;
use lifeboat_domain::workload::Hold;

use super::Admin;
use super::Agent;
use super::Collect;
use super::CollectMode;
use super::Config;
use super::Fault;
use super::Faults;
use super::Kubernetes;
use super::Lease;
use super::Log;
use super::LogFormat;
use super::NodeSelector;
use super::Nodes;
use super::Program;
use super::Queue;
use super::Sources;
use super::Store;
use super::Webhook;
use super::read::Key;
use super::read::Preset;
use super::read::Reader;
use super::read::bandwidth;
use super::read::bytes_within;
use super::read::label;
use super::read::url;
use super::read::variable;
use super::read::within;
use super::read::word;
use super::read::written;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What first aid may take: three tries of the fence at two seconds each, beside the record.
const FIRST_AID: Duration = Duration::from_secs(8);

const MODES: [(&str, OperatingMode); 2] =
    [("observe", OperatingMode::Observe), ("protect", OperatingMode::Protect)];
const KARPENTER: [(&str, KarpenterMode); 2] =
    [("beside", KarpenterMode::Beside), ("none", KarpenterMode::None)];
const HOLDS: [(&str, Hold); 2] = [("always", Hold::Always), ("on-signal", Hold::OnSignal)];
const OTHERS: [(&str, Others); 2] = [("false", Others::Leave), ("true", Others::Drain)];
const COLLECT: [(&str, CollectMode); 3] =
    [("on", CollectMode::On), ("dry-run", CollectMode::DryRun), ("off", CollectMode::Off)];
const ASKED: [(&str, Asked); 2] = [("false", Asked::Never), ("true", Asked::ByUs)];
const ON_DEMAND: [(&str, OnDemand); 2] = [("false", OnDemand::Never), ("true", OnDemand::Last)];
const SWITCH: [(&str, Switch); 2] = [("false", Switch::Off), ("true", Switch::On)];
const PREPARE: [(&str, Prepare); 3] = [
    ("nothing", Prepare::Nothing),
    ("node", Prepare::Node),
    ("node-and-save", Prepare::NodeAndSave),
];

#[derive(Clone, Copy)]
enum Switch {
    Off,
    On,
}

const KEYS: &[Key] = &[
    needed(
        "cluster",
        "a name of up to 63 letters, digits, `-`, `.` and `_`",
        "The name of this cluster. Every checkpoint's path begins with it.",
    ),
    needed(
        "region",
        "an AWS region, like `eu-central-1`",
        "The region of this cluster. Messages from another are not ours.",
    ),
    absent(
        "account",
        "an AWS account id of 12 digits",
        "The account of this cluster. Where it is set, messages from another are not ours.",
    ),
    key(
        "mode",
        "protect",
        "`protect` or `observe`",
        "`observe` hears, plans and records, and writes nothing but our own objects.",
    ),
    key(
        "namespace",
        "lifeboat-system",
        "the name of a namespace",
        "Where Lifeboat itself runs: its Lease and its pause mark.",
    ),
    key(
        "nodes.selector",
        "",
        "a label selector, or nothing for GPU Spot nodes",
        "Which nodes are cared for.",
    ),
    absent(
        "kubernetes.server",
        "a URL",
        "The API server. Without it, the pod's service account or the kubeconfig says.",
    ),
    Key {
        name: "queue.url",
        default: Preset::ForController,
        allowed: "the URL of an SQS queue",
        what: "The queue that EventBridge fills. Never Karpenter's own.",
    },
    absent("queue.endpoint", "a URL", "Another address for the SQS API."),
    key("queue.wait", "20s", "a duration, 1s to 20s", "How long one receive waits for a message."),
    key(
        "queue.visibility",
        "30s",
        "a duration, 9s to 12h",
        "How long a message in hand is hidden from other replicas. Longer than first aid may take.",
    ),
    key("queue.pollers", "4", "a number, 1 to 32", "Receives at a time on each replica."),
    needed("store.bucket", "the name of a bucket", "Where checkpoints go."),
    key(
        "store.prefix",
        "",
        "a path without a leading or closing `/`, or nothing",
        "What every path in the bucket begins with.",
    ),
    absent("store.endpoint", "a URL", "Another address for the S3 API."),
    absent("store.region", "an AWS region", "The bucket's region, where it is not `region`."),
    key("store.chunk", "32MiB", "a size, 1MiB to 64MiB", "The size of a chunk."),
    key(
        "store.inFlight",
        "256MiB",
        "a size, 1MiB to 64GiB",
        "Bytes read and not yet stored, at most.",
    ),
    absent(
        "store.connections",
        "a number, 1 to 256",
        "Requests to the bucket at a time. Without it, one for each 0.4 Gbit/s of the node's network (the figure that AWS's own client plans with), 10 to 250; fewer while the bucket says \"slow down\". `store.inFlight` bounds them too: a request carries one `store.chunk`.",
    ),
    key(
        "collect.mode",
        "on",
        "`on`, `dry-run` or `off`",
        "Whether the controller deletes what nothing in the bucket names any more. `dry-run` only logs and counts what it would delete.",
    ),
    key(
        "collect.keep",
        "2",
        "a number, 1 to 1000",
        "States of a job key that stay, the newest first. Pinned ones stay beside these.",
    ),
    key(
        "collect.every",
        "30m",
        "a duration, 1m to 24h",
        "How often every job key is looked at. Nothing younger than an hour is deleted.",
    ),
    key(
        "karpenter.mode",
        "beside",
        "`beside` or `none`",
        "`none`: managed node groups or Cluster Autoscaler.",
    ),
    key(
        "hold.default",
        "always",
        "`always` or `on-signal`",
        "When a protected pod is held against other drains, unless it says so itself.",
    ),
    key(
        "drain.maxGrace",
        "15s",
        "a duration, 1s to 60s",
        "The longest grace for a pod whose state is saved.",
    ),
    key(
        "drain.margin",
        "5s",
        "a duration, 1s to 30s",
        "Time kept between the end of a grace and the deadline.",
    ),
    key(
        "drain.sigtermMargin",
        "10s",
        "a duration, 1s to 60s",
        "The same for pods that save themselves on SIGTERM.",
    ),
    key(
        "drain.sharersUntil",
        "35s",
        "a duration, 2s to 120s",
        "With less than this left, a durable pod no longer waits for the others on its GPU.",
    ),
    key(
        "drain.others",
        "false",
        "`true` or `false`",
        "Whether unprotected pods are drained too. Only without Karpenter.",
    ),
    key(
        "replacement.enabled",
        "true",
        "`true` or `false`",
        "Whether a replacement is asked for before the first eviction.",
    ),
    key(
        "replacement.maxInFlight",
        "10",
        "a number, 1 to 1000",
        "Replacement claims alive at a time.",
    ),
    key(
        "replacement.maxPerHour",
        "60",
        "a number, 1 to 10000",
        "Replacement claims made in any hour.",
    ),
    key(
        "replacement.onDemandLast",
        "false",
        "`true` or `false`",
        "Whether on-demand is tried when Spot is not to be had.",
    ),
    key(
        "replacement.onDemandMaxNodes",
        "0",
        "a number, 0 to 1000",
        "On-demand replacements alive at a time.",
    ),
    key("replacement.maxAttempts", "6", "a number, 1 to 20", "Claims tried for one interruption."),
    key(
        "replacement.unused",
        "10m",
        "a duration, 1m to 24h",
        "How long a replacement may stand ready without a pod of ours before it is given up.",
    ),
    key(
        "rebalance.prepare",
        "node-and-save",
        "`nothing`, `node` or `node-and-save`",
        "What a rebalance recommendation leads to: it is only recorded; the node is kept from new pods and from voluntary disruption; that, and work is saved in case.",
    ),
    key(
        "rebalance.replace",
        "false",
        "`true` or `false`",
        "Whether a rebalance recommendation asks for a replacement.",
    ),
    key(
        "rebalance.lapse",
        "1h",
        "a duration, 2m to 24h",
        "When all that is taken back, if no notice follows.",
    ),
    key(
        "background.enabled",
        "false",
        "`true` or `false`",
        "Whether work is also saved while nothing is wrong: folders, ports, and workloads of the SDK whose state lies in files. Below half of `agent.bandwidth`. Whoever passes memory through the ring is left alone unless there is `agent.spool`: it would stand still for as long as the upload takes.",
    ),
    key(
        "background.every",
        "10m",
        "a duration, 10m to 24h",
        "How long after the last save, at least. Never sooner than 50 times as long as the work stood still for that.",
    ),
    key(
        "lease.duration",
        "15s",
        "a duration, 3s to 5m",
        "How long the Lease holds without being renewed.",
    ),
    key(
        "lease.renew",
        "5s",
        "a duration, 1s to 1m",
        "How often the Lease is renewed. At most half of `lease.duration`.",
    ),
    absent(
        "lease.identity",
        "a word",
        "The name of this replica: the pod's, from the downward API. Without it, one is made up.",
    ),
    Key {
        name: "agent.nodeName",
        default: Preset::ForAgent,
        allowed: "the name of a node",
        what: "The node that the agent runs on, from the downward API.",
    },
    key("agent.hostRoot", "/", "an absolute path", "What all host paths begin with."),
    absent(
        "agent.bandwidth",
        "a bandwidth, 100Mbit to 6400Gbit",
        "What the node's network carries at its baseline, as EC2 lists it for the instance type. Before anything is measured, saves are reckoned by it. Without it, by 2.5Gbit: the least that a node with a GPU has.",
    ),
    key(
        "agent.ringBudget",
        "1GiB",
        "a size, 1MiB to 1TiB",
        "Memory lent to workloads for their hand-over, together.",
    ),
    key("agent.slot", "32MiB", "a size, 64KiB to 1GiB", "One slot of a workload's ring."),
    absent(
        "agent.spool",
        "an absolute path",
        "A folder on the node's own NVMe. With `background.enabled`, memory that passes through the ring is put there first, so that the work goes on while it is stored. Files in it have no name, and are gone with the agent.",
    ),
    key(
        "agent.spoolBudget",
        "100GiB",
        "a size, 1MiB to 64TiB",
        "What may lie in the spool, together. A state that finds no room is not saved in the background this time.",
    ),
    key("agent.imdsEndpoint", "http://169.254.169.254", "a URL", "The instance metadata service."),
    absent(
        "agent.nvmlLibrary",
        "a path",
        "The NVML library. Without it, the loader searches for `libnvidia-ml.so.1`.",
    ),
    key(
        "agent.grace",
        "120s",
        "a duration, 1s to 1h",
        "How long the agent goes on after SIGTERM with work in hand.",
    ),
    key(
        "admin.listen",
        "0.0.0.0:9808",
        "an address and a port",
        "Where `/metrics`, `/livez` and `/readyz` are served.",
    ),
    absent(
        "webhook.listen",
        "an address and a port",
        "Where the controller serves the API server, which asks it about every protected pod that is made. Without it there is no webhook, and pods carry volume, variables, job key and hold themselves.",
    ),
    key("log.format", "json", "`json` or `text`", "How log lines look."),
    key("log.filter", "info", "a filter as `RUST_LOG` takes it", "What is logged."),
];

/// The table of keys as Markdown: `docs/configuration.md`.
pub fn document() -> String {
    let mut text = String::from(HEAD);
    for row in KEYS {
        let default = match row.default {
            Preset::Is("") | Preset::Absent => "nothing".to_owned(),
            Preset::Is(default) => format!("`{default}`"),
            Preset::Needed => "must be set".to_owned(),
            Preset::ForController => "must be set for the controller".to_owned(),
            Preset::ForAgent => "must be set for the agent".to_owned(),
        };
        let (name, allowed, what) = (row.name, row.allowed, row.what);
        writeln!(text, "| `{name}` | {default} | {allowed} | {what} | `{}` |", variable(name))
            .expect("writing to a string does not fail");
    }
    text
}

const HEAD: &str = "\
# Configuration

One file in TOML (`--config`, or `LIFEBOAT_CONFIG`), then variables, then flags (`--set key=value`); what comes later wins. \
Durations and sizes carry their unit: `90s`, `512MiB`. A key that does not exist is refused. \
`lifeboat check-config` reads it all, shows every fault at once and ends with 78 if there is one.

AWS credentials are not configured here. They come from where the AWS SDKs look: the environment, a web identity (IRSA), EKS Pod Identity, or the instance's role.

This table is printed by the program (`lifeboat check-config --document`), and a test compares it.

| key | default | allowed | what it is | variable |
|---|---|---|---|---|
";

/// Reads every key, then looks at how the values go together.
pub(super) fn load(program: Program, sources: &Sources) -> Result<Config, Faults> {
    let mut reader = Reader::new(KEYS, sources);
    require(program, &mut reader);
    let config = config(&mut reader);
    reader.faults.extend(together(&config));
    if reader.faults.is_empty() {
        reader.faults.extend(rules_of_domain(&config));
    }
    reader.warnings.extend(crowded(&config));
    if reader.faults.is_empty() {
        Ok(Config { warnings: reader.warnings, ..config })
    } else {
        Err(Faults(reader.faults))
    }
}

fn require(program: Program, reader: &mut Reader) {
    for row in KEYS {
        let needed = match row.default {
            Preset::Is(_) | Preset::Absent => false,
            Preset::Needed => program != Program::Command,
            Preset::ForController => program == Program::Controller,
            Preset::ForAgent => program == Program::Agent,
        };
        if needed {
            reader.require(row.name);
        }
    }
}

fn config(reader: &mut Reader) -> Config {
    let region = reader.value("region", String::new(), label);
    Config {
        cluster: reader.value("cluster", String::new(), label),
        account: reader.optional("account", account),
        namespace: reader.value("namespace", String::new(), label),
        nodes: Nodes {
            selector: reader.value("nodes.selector", NodeSelector::GpuSpot, NodeSelector::parse),
        },
        kubernetes: Kubernetes { server: reader.optional("kubernetes.server", url) },
        queue: queue(reader),
        store: store(reader, &region),
        collect: collect(reader),
        lease: lease(reader),
        agent: agent(reader),
        admin: Admin {
            listen: reader.value("admin.listen", SocketAddr::from(([0, 0, 0, 0], 0)), parsed),
        },
        webhook: Webhook { listen: reader.optional("webhook.listen", parsed) },
        log: log(reader),
        policy: policy(reader),
        region,
        warnings: Vec::new(),
    }
}

fn queue(reader: &mut Reader) -> Queue {
    Queue {
        url: reader.value("queue.url", String::new(), url),
        endpoint: reader.optional("queue.endpoint", url),
        wait: reader.value("queue.wait", Duration::ZERO, within("1s", "20s")),
        visibility: reader.value("queue.visibility", NOTICE, within("9s", "12h")),
        pollers: reader.value("queue.pollers", 1, number(1, 32)),
    }
}

fn store(reader: &mut Reader, region: &str) -> Store {
    Store {
        bucket: reader.value("store.bucket", String::new(), label),
        prefix: reader.value("store.prefix", String::new(), prefix),
        endpoint: reader.optional("store.endpoint", url),
        region: reader.optional("store.region", label).unwrap_or_else(|| region.to_owned()),
        chunk: reader.value("store.chunk", MIB, bytes_within(MIB, 64 * MIB)),
        in_flight: reader.value("store.inFlight", 64 * GIB, bytes_within(MIB, 64 * GIB)),
        connections: reader.optional("store.connections", number(1, 256)),
    }
}

fn collect(reader: &mut Reader) -> Collect {
    Collect {
        mode: choice(reader, "collect.mode", &COLLECT),
        keep: reader.value("collect.keep", 1, number(1, 1000)),
        every: reader.value("collect.every", NOTICE, within("1m", "24h")),
    }
}

fn policy(reader: &mut Reader) -> Policy {
    Policy {
        mode: choice(reader, "mode", &MODES),
        karpenter: choice(reader, "karpenter.mode", &KARPENTER),
        hold: choice(reader, "hold.default", &HOLDS),
        drain: drain(reader),
        replacement: replacement(reader),
        rebalance: rebalance(reader),
        background: background(reader),
    }
}

fn background(reader: &mut Reader) -> BackgroundPolicy {
    let every = reader.value("background.every", NOTICE, within("10m", "24h"));
    match choice(reader, "background.enabled", &SWITCH) {
        Switch::Off => BackgroundPolicy::Never,
        Switch::On => BackgroundPolicy::Every { pause: every },
    }
}

fn drain(reader: &mut Reader) -> DrainPolicy {
    DrainPolicy {
        max_grace: reader.value("drain.maxGrace", Duration::ZERO, within("1s", "60s")),
        margin: reader.value("drain.margin", Duration::ZERO, within("1s", "30s")),
        sigterm_margin: reader.value("drain.sigtermMargin", Duration::ZERO, within("1s", "60s")),
        sharers_until: reader.value("drain.sharersUntil", NOTICE, within("2s", "120s")),
        others: choice(reader, "drain.others", &OTHERS),
    }
}

fn replacement(reader: &mut Reader) -> ReplacementPolicy {
    ReplacementPolicy {
        asked: choice(reader, "replacement.enabled", &ASKED),
        max_in_flight: reader.value("replacement.maxInFlight", 1, number(1, 1000)),
        max_per_hour: reader.value("replacement.maxPerHour", 1, number(1, 10_000)),
        on_demand_last: choice(reader, "replacement.onDemandLast", &ON_DEMAND),
        on_demand_max_nodes: reader.value("replacement.onDemandMaxNodes", 0, number(0, 1000)),
        max_attempts: reader.value("replacement.maxAttempts", 1, number(1, 20)),
        unused: reader.value("replacement.unused", NOTICE, within("1m", "24h")),
    }
}

fn rebalance(reader: &mut Reader) -> RebalancePolicy {
    RebalancePolicy {
        prepare: choice(reader, "rebalance.prepare", &PREPARE),
        replace: choice(reader, "rebalance.replace", &ASKED),
        lapse: reader.value("rebalance.lapse", NOTICE, within("2m", "24h")),
    }
}

fn lease(reader: &mut Reader) -> Lease {
    Lease {
        duration: reader.value("lease.duration", Duration::MAX, within("3s", "5m")),
        renew: reader.value("lease.renew", Duration::ZERO, within("1s", "1m")),
        identity: reader.optional("lease.identity", word),
    }
}

fn agent(reader: &mut Reader) -> Agent {
    Agent {
        node_name: reader.value("agent.nodeName", String::new(), word),
        host_root: reader.value("agent.hostRoot", PathBuf::new(), absolute),
        bandwidth: reader.optional("agent.bandwidth", bandwidth),
        ring_budget: reader.value("agent.ringBudget", u64::MAX, bytes_within(MIB, 1024 * GIB)),
        slot: reader.value("agent.slot", 0, bytes_within(64 << 10, GIB)),
        spool: reader.optional("agent.spool", absolute),
        spool_budget: reader.value("agent.spoolBudget", 0, bytes_within(MIB, 64 * 1024 * GIB)),
        imds_endpoint: reader.value("agent.imdsEndpoint", String::new(), url),
        nvml_library: reader.optional("agent.nvmlLibrary", |text| word(text).map(PathBuf::from)),
        grace: reader.value("agent.grace", NOTICE, within("1s", "1h")),
    }
}

fn log(reader: &mut Reader) -> Log {
    Log {
        format: reader.value("log.format", LogFormat::Text, |text| match text {
            "json" => Some(LogFormat::Json),
            "text" => Some(LogFormat::Text),
            _ => None,
        }),
        filter: reader.value("log.filter", String::new(), filter),
    }
}

/// Faults of values that are right alone and wrong together.
fn together(config: &Config) -> Vec<Fault> {
    let faults = [shares(config), visibility(config), renewal(config), in_flight(config)];
    faults.into_iter().chain([slot(config), others(config)]).flatten().collect()
}

/// What the domain says about its own knobs, should it know more than the rules here.
fn rules_of_domain(config: &Config) -> Vec<Fault> {
    let faults = config.policy.faults().into_iter();
    faults
        .map(|fault| Fault::Together {
            key: fault.key.to_owned(),
            value: fault.value,
            beside: "the rest of the policy".to_owned(),
            allowed: fault.allowed,
        })
        .collect()
}

fn shares(config: &Config) -> Option<Fault> {
    let drain = &config.policy.drain;
    let least = drain.max_grace + drain.margin;
    (drain.sharers_until < least).then(|| Fault::Together {
        key: "drain.sharersUntil".to_owned(),
        value: written(drain.sharers_until),
        beside: format!(
            "`drain.maxGrace` {} and `drain.margin` {}",
            written(drain.max_grace),
            written(drain.margin)
        ),
        allowed: format!("{} to {}, the whole notice", written(least), written(NOTICE)),
    })
}

fn visibility(config: &Config) -> Option<Fault> {
    (config.queue.visibility <= FIRST_AID).then(|| Fault::Together {
        key: "queue.visibility".to_owned(),
        value: written(config.queue.visibility),
        beside: "first aid".to_owned(),
        allowed: format!("more than {}", written(FIRST_AID)),
    })
}

fn renewal(config: &Config) -> Option<Fault> {
    let Lease { duration, renew, .. } = config.lease;
    (renew > duration / 2).then(|| Fault::Together {
        key: "lease.renew".to_owned(),
        value: written(renew),
        beside: format!("`lease.duration` {}", written(duration)),
        allowed: format!("1s to {}", written(duration / 2)),
    })
}

fn in_flight(config: &Config) -> Option<Fault> {
    let Store { chunk, in_flight, .. } = config.store;
    (in_flight < chunk).then(|| Fault::Together {
        key: "store.inFlight".to_owned(),
        value: format!("{}MiB", in_flight / MIB),
        beside: format!("`store.chunk` {}MiB", chunk / MIB),
        allowed: "at least one chunk".to_owned(),
    })
}

/// The requests that the node's network takes do not fit the bytes on their way.
fn crowded(config: &Config) -> Option<String> {
    let Store { chunk, in_flight, connections, .. } = config.store;
    let planned = budget::connections(config.agent.bandwidth?);
    let room = in_flight / chunk.max(1);
    (connections.is_none() && room < planned as u64).then(|| {
        format!(
            "`agent.bandwidth` takes {planned} requests to the bucket at a time; `store.inFlight` \
             {}MiB has room for {room}. Give it {}MiB, and the agent as much more memory.",
            in_flight / MIB,
            planned as u64 * chunk / MIB
        )
    })
}

fn slot(config: &Config) -> Option<Fault> {
    let Agent { slot, ring_budget, .. } = config.agent;
    (slot > ring_budget).then(|| Fault::Together {
        key: "agent.slot".to_owned(),
        value: format!("{}KiB", slot >> 10),
        beside: format!("`agent.ringBudget` {}KiB", ring_budget >> 10),
        allowed: "at most the budget".to_owned(),
    })
}

fn others(config: &Config) -> Option<Fault> {
    let beside = config.policy.karpenter == KarpenterMode::Beside;
    (beside && config.policy.drain.others == Others::Drain).then(|| Fault::Together {
        key: "drain.others".to_owned(),
        value: "true".to_owned(),
        beside: "`karpenter.mode` beside".to_owned(),
        allowed: "`false`: Karpenter drains the others itself".to_owned(),
    })
}

/// The value that stands beside the word; the first one in place of a faulty word.
fn choice<T: Copy>(reader: &mut Reader, key: &str, choices: &[(&str, T)]) -> T {
    let chosen =
        |text: &str| choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    reader.value(key, choices[0].1, chosen)
}

fn account(text: &str) -> Option<String> {
    let digits = text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.to_owned())
}

fn prefix(text: &str) -> Option<String> {
    let parts = text.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    (text.is_empty() || (parts && word(text).is_some())).then(|| text.to_owned())
}

fn absolute(text: &str) -> Option<PathBuf> {
    let path = PathBuf::from(text);
    path.is_absolute().then_some(path)
}

fn filter(text: &str) -> Option<String> {
    tracing_subscriber::EnvFilter::try_new(text).ok().map(|_| text.to_owned())
}

fn parsed<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn number<T: FromStr + PartialOrd>(least: T, most: T) -> impl FnOnce(&str) -> Option<T> {
    move |text| parsed(text).filter(|value| *value >= least && *value <= most)
}

const fn key(
    name: &'static str,
    default: &'static str,
    allowed: &'static str,
    what: &'static str,
) -> Key {
    Key { name, default: Preset::Is(default), allowed, what }
}

const fn needed(name: &'static str, allowed: &'static str, what: &'static str) -> Key {
    Key { name, default: Preset::Needed, allowed, what }
}

const fn absent(name: &'static str, allowed: &'static str, what: &'static str) -> Key {
    Key { name, default: Preset::Absent, allowed, what }
}
