//! What the configuration takes and refuses.

use std::collections::BTreeMap;
use std::time::Duration;

use lifeboat_domain::policy::Policy;

use super::Config;
use super::Faults;
use super::Program;
use super::Sources;

const LEAST: &str = r#"
cluster = "east"
region = "eu-central-1"
[queue]
url = "https://sqs.eu-central-1.amazonaws.com/123456789012/lifeboat"
[store]
bucket = "checkpoints"
[agent]
nodeName = "gpu-1"
"#;

fn load(
    file: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Config, Faults> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    Config::load(
        Program::Controller,
        &Sources {
            file: Some(file.to_owned()),
            environment: environment.iter().map(owned).collect::<BTreeMap<_, _>>(),
            flags: flags.iter().map(owned).collect(),
        },
    )
}

#[track_caller]
fn refused(file: &str, expected: &[&str]) {
    let faults = load(file, &[], &[]).unwrap_err();
    let found: Vec<String> = faults.0.iter().map(ToString::to_string).collect();
    assert_eq!(found, expected);
}

#[test]
fn the_least_is_enough_and_the_rest_has_defaults() {
    for program in [Program::Controller, Program::Agent, Program::Command] {
        let config = Config::parse(program, LEAST).unwrap();
        assert_eq!(config.policy(), &Policy::standard());
        assert_eq!(config.store.chunk, 32 << 20);
        assert_eq!(config.store.region, "eu-central-1");
        assert_eq!(config.warnings, Vec::<String>::new());
    }
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let file = format!("{LEAST}\n[drain]\nmaxGrace = \"10s\"\nmargin = \"4s\"");
    let environment = [("LIFEBOAT_DRAIN_MAX_GRACE", "11s"), ("LIFEBOAT_DRAIN_MARGIN", "3s")];
    let config = load(&file, &environment, &[("drain.maxGrace", "12s")]).unwrap();
    assert_eq!(config.policy().drain.max_grace, Duration::from_secs(12));
    assert_eq!(config.policy().drain.margin, Duration::from_secs(3));
}

#[test]
fn every_fault_is_named_at_once() {
    refused(
        "cluster = \"east/west\"\ndrian.margin = 5\ndrain.maxGrace = 15\nmode = \"safe\"\n\
         lease.duration = \"6s\"",
        &[
            "`drian.margin` is not a key (file); allowed: `cluster`, `region`, `account`, `mode`, \
             `namespace`, `nodes`, `kubernetes`, `queue`, `store`, `collect`, `karpenter`, `hold`, `drain`, \
             `replacement`, `rebalance`, `background`, `lease`, `agent`, `admin`, `webhook`, `log`",
            "`region` is not set; allowed: an AWS region, like `eu-central-1`. Set it in the file \
             or as LIFEBOAT_REGION",
            "`queue.url` is not set; allowed: the URL of an SQS queue. Set it in the file or as \
             LIFEBOAT_QUEUE_URL",
            "`store.bucket` is not set; allowed: the name of a bucket. Set it in the file or as \
             LIFEBOAT_STORE_BUCKET",
            "`cluster` is `east/west` (file); allowed: a name of up to 63 letters, digits, `-`, \
             `.` and `_`",
            "`mode` is `safe` (file); allowed: `protect` or `observe`",
            "`drain.maxGrace` is `15` (file); allowed: a duration, 1s to 60s",
            "`lease.renew` is `5s`; allowed beside `lease.duration` 6s: 1s to 3s",
        ],
    );
}

#[test]
fn values_must_go_together() {
    let together = |lines: &str| format!("{LEAST}\n{lines}");
    refused(
        &together("[drain]\nsharersUntil = \"15s\""),
        &["`drain.sharersUntil` is `15s`; allowed beside `drain.maxGrace` 15s and `drain.margin` \
           5s: 20s to 2m, the whole notice"],
    );
    refused(
        &together("[drain]\nothers = true"),
        &["`drain.others` is `true`; allowed beside `karpenter.mode` beside: `false`: Karpenter \
           drains the others itself"],
    );
    refused(
        &LEAST.replace("[store]", "visibility = \"5s\"\n[store]"),
        &["`queue.visibility` is `5s` (file); allowed: a duration, 9s to 12h"],
    );
    refused(
        &LEAST.replace("[agent]", "inFlight = \"16MiB\"\n[agent]\nringBudget = \"16MiB\""),
        &[
            "`store.inFlight` is `16MiB`; allowed beside `store.chunk` 32MiB: at least one chunk",
            "`agent.slot` is `32768KiB`; allowed beside `agent.ringBudget` 16384KiB: at most the \
             budget",
        ],
    );
}

#[test]
fn an_address_with_a_password_is_refused_and_not_shown() {
    let file = LEAST.replace("https://sqs", "https://me:secret@sqs");
    refused(&file, &["`queue.url` is `…` (file); allowed: the URL of an SQS queue"]);
}

#[test]
fn a_file_that_is_no_toml_is_one_fault_among_the_others() {
    let faults = load("cluster = ", &[], &[]).unwrap_err();
    assert!(faults.to_string().starts_with("the configuration has 5 faults\n"), "{faults}");
}

#[test]
fn a_variable_that_sets_no_key_is_a_warning() {
    let config = load(LEAST, &[("LIFEBOAT_PORT", "tcp://10.0.0.1:80")], &[]).unwrap();
    assert_eq!(config.warnings, ["variable LIFEBOAT_PORT sets no key"]);
}

#[test]
fn a_bandwidth_is_written_with_its_unit() {
    let with = |text: &str| {
        let file = LEAST.replace("[agent]", &format!("[agent]\nbandwidth = \"{text}\""));
        load(&file, &[], &[]).map(|config| config.agent.bandwidth)
    };
    assert_eq!(with("2.5Gbit").unwrap(), Some(312_500_000));
    assert_eq!(with("800Mbit").unwrap(), Some(100_000_000));
    for refused in ["10", "10Gb", "0Gbit", "-1Gbit", "9999999Gbit", ".5Gbit", "1.Gbit", "1e3Mbit"] {
        assert!(with(refused).is_err(), "{refused}");
    }
    assert_eq!(load(LEAST, &[], &[]).unwrap().agent.bandwidth, None);
}

#[test]
fn a_network_that_takes_more_requests_than_there_is_room_for_is_warned_of() {
    let warnings = |more: &str| {
        let file = LEAST.replace("[agent]", &format!("{more}\n[agent]\nbandwidth = \"25Gbit\""));
        load(&file, &[], &[]).unwrap().warnings
    };
    let expected = "`agent.bandwidth` takes 63 requests to the bucket at a time; `store.inFlight` \
                    256MiB has room for 8. Give it 2016MiB, and the agent as much more memory.";
    assert_eq!(warnings(""), [expected]);
    assert_eq!(warnings("inFlight = \"2GiB\""), [""; 0]);
    assert_eq!(warnings("connections = 8"), [""; 0]);
}
