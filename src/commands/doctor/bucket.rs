//! Whether the bucket keeps what is written, once, and is near enough.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::TryStreamExt;
use futures::stream;
use lifeboat_domain::signal::NOTICE;
use object_store::ObjectStore;
use object_store::ObjectStoreExt;
use object_store::PutMode;
use object_store::PutOptions;
use object_store::path::Path;
use tokio::time::Instant;

use super::Finding;
use super::reach;
use crate::adapters::signed::LifecycleRule;
use crate::adapters::signed::Signed;
use crate::adapters::signed::SignedError;
use crate::commands::table::bytes;
use crate::config::Config;
use crate::error::Chain;

/// What doctor writes into the bucket, and reads again.
const PROBE: &[u8] = b"lifeboat doctor was here\n";
/// How long a write of a few bytes may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer about settings may take.
const SETTINGS: Duration = Duration::from_secs(5);
/// Objects that are written to measure the rate.
const OBJECTS: u8 = 4;
/// The size of each.
const SIZE: usize = 8 << 20;
/// How long that may take: a slower way is slow enough to say so.
const MEASURE: Duration = Duration::from_secs(20);
/// From so many bytes of state on the way to the bucket matters.
const MATTERS: u64 = 1 << 30;

pub(super) async fn examine(
    config: &Config,
    (store, signed): (&dyn ObjectStore, &Signed),
    largest: Option<(String, u64)>,
) -> Vec<Finding> {
    let created = created_once(config, store).await;
    let reached = created.health == super::Health::Green;
    let mut findings = vec![created];
    findings.extend(region(config, &within(signed.region()).await));
    findings.extend(lifecycle(config, &within(signed.lifecycle()).await));
    if reached {
        let took = measure(config, store).await;
        findings.push(rate(took, largest));
    }
    findings
}

async fn within<T>(answer: impl Future<Output = Result<T, SignedError>>) -> Result<T, SignedError> {
    match tokio::time::timeout(SETTINGS, answer).await {
        Ok(answer) => answer,
        Err(elapsed) => Err(SignedError::Away(elapsed.into())),
    }
}

/// Writes, reads, and tries to create what is there: only a store that refuses that is safe.
async fn created_once(config: &Config, store: &dyn ObjectStore) -> Finding {
    let name = &config.store.bucket;
    let remedy = "check `store.bucket`, `store.region` and the role's s3:PutObject, s3:GetObject \
                  and s3:ListBucket";
    let path = probe_path(config);
    let written = tokio::time::timeout(PATIENCE, write_twice(store, &path)).await;
    match written {
        Err(_elapsed) => Finding::red(format!("bucket `{name}` was not reached in time"), remedy),
        Ok(Err(error)) => {
            Finding::red(format!("bucket `{name}` was not written: {}", Chain(&error)), remedy)
        }
        Ok(Ok(Create::Refused)) => match reach::bucket(store, name, &path).await {
            Ok(Some(content)) if content == PROBE => {
                Finding::green(format!("bucket `{name}` is written, read and created once"))
            }
            Ok(_) => Finding::red(format!("bucket `{name}` gives back something else"), remedy),
            Err(error) => Finding::red(Chain(&error).to_string(), remedy),
        },
        Ok(Ok(Create::Done)) => Finding::red(
            format!("bucket `{name}` creates an object that is there already"),
            "use a store with conditional writes (If-None-Match): without them two writers of one \
             checkpoint cannot be told apart",
        ),
    }
}

/// What became of creating an object that is there already.
enum Create {
    Done,
    Refused,
}

async fn write_twice(store: &dyn ObjectStore, path: &Path) -> object_store::Result<Create> {
    let content = Bytes::from_static(PROBE);
    store.put(path, content.clone().into()).await?;
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match store.put_opts(path, content.into(), options).await {
        Ok(_) => Ok(Create::Done),
        Err(object_store::Error::AlreadyExists { .. }) => Ok(Create::Refused),
        Err(error) => Err(error),
    }
}

/// Where doctor's own object lies, beside the namespaces.
pub(super) fn probe_path(config: &Config) -> Path {
    own(config, "probe")
}

fn own(config: &Config, name: &str) -> Path {
    Path::from(format!("{}/{}/_doctor/{name}", config.store.prefix, config.cluster))
}

fn region(config: &Config, said: &Result<Option<String>, SignedError>) -> Option<Finding> {
    let Ok(Some(theirs)) = said else { return None };
    let ours = &config.region;
    Some(if theirs == ours {
        Finding::green(format!("the bucket is in `{theirs}`, as the cluster is"))
    } else {
        Finding::red(
            format!("the bucket is in `{theirs}`, and the cluster in `{ours}`"),
            "use a bucket of the cluster's region: each byte goes further, costs more, and takes \
             no gateway endpoint",
        )
    })
}

fn lifecycle(config: &Config, said: &Result<Vec<LifecycleRule>, SignedError>) -> Vec<Finding> {
    let rules = match said {
        Ok(rules) => rules,
        Err(error) => {
            let remedy = if error.is_forbidden() {
                "give the role s3:GetLifecycleConfiguration on the bucket (deploy/iam)"
            } else {
                "check by hand that no rule expires objects by their age"
            };
            let found = format!("the bucket's lifecycle was not read: {}", Chain(error));
            return vec![Finding::yellow(found, remedy)];
        }
    };
    let ours = format!("{}/{}/", config.store.prefix, config.cluster);
    let ours = ours.trim_start_matches('/');
    let about =
        |rule: &&LifecycleRule| ours.starts_with(&rule.prefix) || rule.prefix.starts_with(ours);
    let mut findings = Vec::new();
    for rule in rules.iter().filter(about) {
        let LifecycleRule { id, expires, archives, .. } = rule;
        if let Some(when) = expires {
            findings.push(Finding::red(
                format!("rule `{id}` of the bucket deletes objects {when}"),
                "keep it from the checkpoints: what every state of a job names is as old as the \
                 job. The controller deletes what is superseded (`collect`)",
            ));
        }
        if let Some(class) = archives {
            findings.push(Finding::red(
                format!("rule `{id}` of the bucket moves objects to {class}"),
                "keep it from the checkpoints: a restore reads them at once",
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::green("no rule of the bucket takes checkpoints away"));
    }
    findings
}

/// Writes what is measured, several objects at a time as a save does; `None` if that takes too long.
async fn measure(config: &Config, store: &dyn ObjectStore) -> Option<Duration> {
    let paths: Vec<Path> =
        (0..OBJECTS).map(|number| own(config, &format!("rate-{number}"))).collect();
    let began = Instant::now();
    let writes = paths.iter().zip(1_u8..).map(|(path, mark)| {
        // Each another content: a store that keeps the same bytes once would be measured instead.
        let content = Bytes::from(vec![mark; SIZE]);
        store.put(path, content.into())
    });
    let written =
        stream::iter(writes).buffer_unordered(usize::from(OBJECTS)).try_collect::<Vec<_>>();
    let written = tokio::time::timeout(MEASURE, written).await;
    let took = began.elapsed();
    for path in &paths {
        // What cannot be deleted is written over by the next doctor.
        store.delete(path).await.ok();
    }
    matches!(written, Ok(Ok(_))).then_some(took)
}

/// How fast the way to the bucket is from here, and what that means for the largest state.
fn rate(took: Option<Duration>, largest: Option<(String, u64)>) -> Finding {
    let sent = u64::from(OBJECTS) * SIZE as u64;
    let Some(took) = took else {
        return Finding::yellow(
            format!("{} were not written within {} s", bytes(sent), MEASURE.as_secs()),
            "run doctor in the cluster (`helm test`), and give the VPC a gateway endpoint for S3",
        );
    };
    let milliseconds = took.as_millis().max(1);
    let rate = u64::try_from(u128::from(sent) * 1000 / milliseconds).unwrap_or(u64::MAX).max(1);
    let tenths = u128::from(rate) * 10 / 125_000_000;
    let found =
        format!("{} were written at {}.{} Gbit/s from here", bytes(sent), tenths / 10, tenths % 10);
    let Some((key, state)) = largest.filter(|(_, state)| *state > MATTERS) else {
        return Finding::green(found);
    };
    let needed = state / rate;
    if needed < NOTICE.as_secs() {
        return Finding::green(found);
    }
    Finding::red(
        format!(
            "{found}: {key} with {} would take {needed} s of {}",
            bytes(state),
            NOTICE.as_secs()
        ),
        "give the VPC a gateway endpoint for S3 (a NAT gateway in its place is slower, and bills \
         each byte), and run doctor in the cluster to measure its way",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::Health;
    use crate::commands::doctor::worst;
    use crate::config::Program;

    fn config() -> Config {
        let text = "cluster = \"east\"\nregion = \"eu-central-1\"\n[queue]\nurl = \
                    \"https://sqs.eu-central-1.amazonaws.com/123456789012/lifeboat-east\"\n[store]\n\
                    bucket = \"checkpoints\"\n";
        Config::parse(Program::Controller, text).unwrap()
    }

    #[test]
    fn a_rule_that_takes_checkpoints_away_is_named() {
        let rule = |prefix: &str, expires: Option<&str>, archives: Option<&str>| LifecycleRule {
            id: "old".to_owned(),
            prefix: prefix.to_owned(),
            expires: expires.map(str::to_owned),
            archives: archives.map(str::to_owned),
        };
        for (rules, expected) in [
            (vec![], Health::Green),
            (vec![rule("", None, None)], Health::Green),
            (vec![rule("", Some("after 30 days"), None)], Health::Red),
            (vec![rule("east/", None, Some("GLACIER"))], Health::Red),
            (vec![rule("east/team/", Some("after 1 days"), None)], Health::Red),
            (vec![rule("logs/", Some("after 30 days"), None)], Health::Green),
        ] {
            assert_eq!(worst(&lifecycle(&config(), &Ok(rules.clone()))), expected, "{rules:?}");
        }
    }

    #[test]
    fn a_bucket_elsewhere_is_named() {
        let said = |region: &str| Ok(Some(region.to_owned()));
        assert_eq!(region(&config(), &said("eu-central-1")).unwrap().health, Health::Green);
        assert_eq!(region(&config(), &said("us-east-1")).unwrap().health, Health::Red);
        assert_eq!(region(&config(), &Ok(None)), None);
    }

    #[test]
    fn a_slow_way_is_grave_only_for_who_has_much_to_send() {
        let slow = Some(Duration::from_secs(4));
        let state = |bytes: u64| Some(("`team/train`".to_owned(), bytes));
        assert_eq!(rate(slow, None).found, "32.0 MiB were written at 0.0 Gbit/s from here");
        assert_eq!(rate(slow, state(1 << 30)).health, Health::Green);
        assert_eq!(rate(slow, state(2 << 30)).health, Health::Red);
        assert_eq!(rate(Some(Duration::from_millis(20)), state(60 << 30)).health, Health::Green);
        assert_eq!(rate(None, None).health, Health::Yellow);
    }
}
