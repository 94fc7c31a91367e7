//! Watches: from where they start, what they tell, and how they end.

use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use crate::rules::rules;
use crate::rules::witness::INTERRUPTIONS;
use crate::rules::witness::Watch;
use crate::rules::witness::Witness;
use crate::rules::witness::pod;

rules![
    a_watch_tells_what_happens_after_its_version,
    a_watch_from_anywhere_begins_with_what_there_is,
    a_watch_sees_objects_come_into_its_selector_and_leave_it,
    a_watch_is_selected_by_fields,
    a_deletion_is_told_with_its_own_version,
    what_changes_nothing_is_not_told,
    a_watch_ends_at_its_time,
    a_watch_is_told_how_far_it_is_before_its_time_is_over,
    a_watch_from_a_forgotten_version_is_gone,
    a_watch_from_the_future_waits_for_it,
    a_streamed_list_ends_with_a_marked_bookmark,
    a_streamed_list_has_conditions,
    a_watch_may_be_of_metadata_alone,
    a_watch_may_be_of_one_object,
    a_watch_of_our_records_tells_status_too,
];

async fn watch_from(witness: &Witness, path: &str, query: &str) -> Watch {
    let joint = if path.contains('?') { '&' } else { '?' };
    witness.watch(&format!("{path}{joint}watch=true{query}")).await
}

async fn version(witness: &Witness) -> String {
    witness.read(&witness.here("pods")).await.version().to_owned()
}

async fn a_watch_tells_what_happens_after_its_version(witness: &mut Witness) {
    witness.running("a").await;
    let from = version(witness).await;
    witness.create(&witness.here("pods"), &pod("b")).await;
    let query = format!("&resourceVersion={from}");
    let mut watch = watch_from(witness, &witness.here("pods"), &query).await;
    let label = json!({ "metadata": { "labels": { "x": "y" } } });
    witness.merge_patch(&witness.pod("a"), &label).await;
    witness.delete(&witness.pod("b"), json!({ "gracePeriodSeconds": 0 })).await;
    for _ in 0..3 {
        witness.note("told", watch.told().await);
    }
    witness.note("quiet", watch.is_quiet().await);
}

async fn a_watch_from_anywhere_begins_with_what_there_is(witness: &mut Witness) {
    for name in ["b", "a"] {
        witness.running(name).await;
    }
    for query in ["", "&resourceVersion=0"] {
        let mut watch = watch_from(witness, &witness.here("pods"), query).await;
        let mut told = [watch.told().await, watch.told().await];
        told.sort();
        witness.note("told", told.join(", "));
        let label = json!({ "metadata": { "labels": { "x": format!("y{}", query.len()) } } });
        witness.merge_patch(&witness.pod("a"), &label).await;
        witness.note("then", watch.told().await);
    }
}

async fn a_watch_sees_objects_come_into_its_selector_and_leave_it(witness: &mut Witness) {
    witness.running("a").await;
    let from = version(witness).await;
    let query = format!("&resourceVersion={from}&labelSelector=hot%3Dyes");
    let mut watch = watch_from(witness, &witness.here("pods"), &query).await;
    let label = |value: Value| json!({ "metadata": { "labels": { "hot": value, "n": value } } });
    for value in [json!("no"), json!("yes"), json!("no"), json!("yes"), Value::Null] {
        witness.merge_patch(&witness.pod("a"), &label(value)).await;
    }
    for _ in 0..4 {
        let Some(event) = watch.next().await else { break };
        let object = &event["object"]["metadata"];
        let kind = event["type"].as_str().unwrap_or_default().to_owned();
        witness.note("told", format!("{kind} with {}", object["labels"]["hot"]));
    }
    witness.note("quiet", watch.is_quiet().await);
}

async fn a_watch_is_selected_by_fields(witness: &mut Witness) {
    let from = version(witness).await;
    let query = format!("&resourceVersion={from}&fieldSelector=spec.nodeName%3Dgpu-1");
    let mut watch = watch_from(witness, &witness.here("pods"), &query).await;
    let mut other = pod("a");
    other["spec"]["nodeName"] = json!("gpu-2");
    witness.create(&witness.here("pods"), &other).await;
    witness.create(&witness.here("pods"), &pod("b")).await;
    witness.note("told", watch.told().await);
    witness.note("quiet", watch.is_quiet().await);
}

async fn a_deletion_is_told_with_its_own_version(witness: &mut Witness) {
    witness.running("a").await;
    let from = version(witness).await;
    let query = format!("&resourceVersion={from}");
    let mut watch = watch_from(witness, &witness.here("pods"), &query).await;
    witness.delete(&witness.pod("a"), json!({ "gracePeriodSeconds": 0 })).await;
    let event = watch.next().await.unwrap_or_default();
    witness.note("told", &event["type"]);
    let told = event["object"]["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let newer = told.parse::<u64>().unwrap_or_default() > from.parse().unwrap_or_default();
    witness.note("newer than the list", newer);
    witness.note("phase as it was last", &event["object"]["status"]["phase"]);
    let grace = &event["object"]["metadata"]["deletionGracePeriodSeconds"];
    witness.note("grace", grace);
}

async fn what_changes_nothing_is_not_told(witness: &mut Witness) {
    witness.running("a").await;
    let from = version(witness).await;
    let query = format!("&resourceVersion={from}");
    let mut watch = watch_from(witness, &witness.here("pods"), &query).await;
    witness.merge_patch(&witness.pod("a"), &json!({})).await;
    witness.note("quiet", watch.is_quiet().await);
}

async fn a_watch_ends_at_its_time(witness: &mut Witness) {
    let from = version(witness).await;
    let query = format!("&resourceVersion={from}&timeoutSeconds=1");
    let mut watch = watch_from(witness, &witness.here("pods"), &query).await;
    witness.note("ends without a word", watch.ends().await);
}

async fn a_watch_is_told_how_far_it_is_before_its_time_is_over(witness: &mut Witness) {
    witness.running("a").await;
    let from = version(witness).await;
    let query = format!("&resourceVersion={from}&timeoutSeconds=4&allowWatchBookmarks=true");
    let mut watch = watch_from(witness, &witness.here("pods"), &query).await;
    witness.create(&witness.here("pods"), &pod("b")).await;
    witness.note("told", watch.told().await);
    let event = watch.within(Duration::from_secs(10)).await.unwrap_or_default();
    witness.note("then", &event["type"]);
    witness.note("kind", &event["object"]["kind"]);
    let told = event["object"]["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let newer = told.parse::<u64>().unwrap_or_default() > from.parse().unwrap_or_default();
    witness.note("further than it began", newer);
    witness.note("name", &event["object"]["metadata"]["name"]);
    while let Some(event) = watch.next().await {
        assert_eq!(event["type"], "BOOKMARK");
    }
    witness.note("ends", watch.ends().await);
}

async fn a_watch_from_a_forgotten_version_is_gone(witness: &mut Witness) {
    witness.with_interruption().await;
    witness.forget().await;
    let mut watch = watch_from(witness, INTERRUPTIONS, "&resourceVersion=1").await;
    let event = watch.next().await.unwrap_or_default();
    witness.note("told", &event["type"]);
    for part in ["kind", "apiVersion", "status", "reason", "code"] {
        witness.note(part, &event["object"][part]);
    }
    let message = event["object"]["message"].as_str().unwrap_or_default().to_owned();
    witness.note("message", message.split(':').next().unwrap_or_default());
    witness.note("ends", watch.ends().await);
}

async fn a_watch_from_the_future_waits_for_it(witness: &mut Witness) {
    let path = witness.here("pods?watch=true&resourceVersion=999999999&timeoutSeconds=1");
    let mut watch = witness.watch(&path).await;
    witness.running("a").await;
    witness.note("ends without a word", watch.ends().await);
}

async fn a_streamed_list_ends_with_a_marked_bookmark(witness: &mut Witness) {
    witness.running("a").await;
    let query =
        "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = watch_from(witness, &witness.here("pods"), query).await;
    witness.note("told", watch.told().await);
    let event = watch.next().await.unwrap_or_default();
    witness.note("then", &event["type"]);
    witness.note("marked", &event["object"]["metadata"]["annotations"]);
    witness.create(&witness.here("pods"), &pod("b")).await;
    witness.note("then", watch.told().await);
}

async fn a_streamed_list_has_conditions(witness: &mut Witness) {
    for query in [
        "&sendInitialEvents=true",
        "&sendInitialEvents=true&resourceVersionMatch=Exact",
        "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
    ] {
        let path = witness.here(&format!("pods?watch=true&timeoutSeconds=1{query}"));
        let told = witness.read(&path).await;
        witness.note(query, told.code);
    }
}

async fn a_watch_may_be_of_metadata_alone(witness: &mut Witness) {
    witness.running("a").await;
    let accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let path = witness.here("pods?watch=true&timeoutSeconds=1&resourceVersion=0");
    let request = http::Request::get(path).header("accept", accept).body(Vec::new()).unwrap();
    let told = witness.ask(request).await;
    // One line alone was read as JSON already.
    let event = match told.body.as_str() {
        Some(text) => serde_json::from_str(text.lines().next().unwrap_or_default()).unwrap(),
        None => told.body,
    };
    witness.note("kind", &event["object"]["kind"]);
    witness.note("name", &event["object"]["metadata"]["name"]);
    witness.note("spec", &event["object"]["spec"]);
}

async fn a_watch_may_be_of_one_object(witness: &mut Witness) {
    witness.running("a").await;
    let from = version(witness).await;
    let query = format!("&resourceVersion={from}&fieldSelector=metadata.name%3Db");
    let mut watch = watch_from(witness, &witness.here("pods"), &query).await;
    let label = json!({ "metadata": { "labels": { "x": "y" } } });
    witness.merge_patch(&witness.pod("a"), &label).await;
    witness.create(&witness.here("pods"), &pod("b")).await;
    witness.note("told", watch.told().await);
}

async fn a_watch_of_our_records_tells_status_too(witness: &mut Witness) {
    let made = witness.with_interruption().await;
    let name = witness.own("i-1");
    let query = format!("&resourceVersion={}", made.version());
    let path = format!("{INTERRUPTIONS}?fieldSelector=spec.node%3Dgpu-1");
    let mut watch = watch_from(witness, &path, &query).await;
    let status = json!({ "status": { "phase": "Saving" } });
    witness.merge_patch(&format!("{}/status", witness.interruption()), &status).await;
    let event = watch.next().await.unwrap_or_default();
    witness.note("told", &event["type"]);
    witness.note("phase", &event["object"]["status"]["phase"]);
    witness.delete(&format!("{INTERRUPTIONS}/{name}"), json!({})).await;
    witness.note("then", watch.told().await);
}
