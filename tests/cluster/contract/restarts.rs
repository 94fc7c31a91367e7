//! What a restart of the server breaks, and what it does not.

use lifeboat::adapters::cluster::rows::Selector;
use serde_json::json;

use super::product::Followed;
use super::product::until;
use crate::rules::rules;
use crate::rules::witness::Witness;
use crate::rules::witness::pod;

rules![
    a_watch_ends_with_the_server_and_goes_on_from_its_version,
    what_was_written_is_there_after_a_restart,
    rows_go_on_after_a_restart,
];

async fn a_watch_ends_with_the_server_and_goes_on_from_its_version(witness: &mut Witness) {
    let from = witness.read(&witness.here("pods")).await.version().to_owned();
    let path = witness.here(&format!("pods?watch=true&resourceVersion={from}"));
    let mut watch = witness.watch(&path).await;
    witness.create(&witness.here("pods"), &pod("a")).await;
    let event = watch.next().await.unwrap_or_default();
    witness.note("told", &event["type"]);
    let last = event["object"]["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    witness.restart().await;
    witness.note("ends", watch.ends().await);
    witness.create(&witness.here("pods"), &pod("b")).await;
    let path = witness.here(&format!("pods?watch=true&resourceVersion={last}"));
    let mut watch = witness.watch(&path).await;
    witness.note("goes on", watch.told().await);
    witness.note("quiet", watch.is_quiet().await);
}

async fn what_was_written_is_there_after_a_restart(witness: &mut Witness) {
    let made = witness.with_interruption().await;
    let lease = witness.here_of("coordination.k8s.io/v1", "leases");
    let held = witness.create(&lease, &json!({ "metadata": { "name": "lb" } })).await;
    witness.restart().await;
    let read = witness.read(&witness.interruption()).await;
    witness.note("same version", read.version() == made.version());
    let taken = witness.replace(&format!("{lease}/lb"), &held.body).await;
    witness.note("lease renewed over its old version", taken.short());
}

async fn rows_go_on_after_a_restart(witness: &mut Witness) {
    witness.running("a").await;
    let seen = Followed::begin(witness, Selector::All).await;
    witness.restart().await;
    witness.running("b").await;
    witness.delete(&witness.pod("a"), json!({ "gracePeriodSeconds": 0 })).await;
    until(|| seen.names() == r#"["b"]"#).await;
    seen.tell(witness);
}
