//! Deletion: grace, finalizers, preconditions, and what is answered.

use serde_json::json;

use crate::rules::rules;
use crate::rules::witness::Answer;
use crate::rules::witness::CLAIMS;
use crate::rules::witness::Witness;
use crate::rules::witness::claim;
use crate::rules::witness::pod;

rules![
    a_pod_on_a_node_keeps_its_grace,
    grace_is_shortened_and_never_lengthened,
    grace_of_nothing_removes_at_once,
    grace_may_stand_in_the_query,
    grace_that_is_negative_is_one_second,
    the_deletion_time_is_when_grace_is_over,
    a_pod_on_no_node_goes_at_once,
    a_pod_that_has_ended_goes_at_once,
    a_pod_that_is_pending_on_a_node_keeps_its_grace,
    a_pod_of_another_uid_is_not_deleted,
    a_precondition_may_name_the_version,
    a_second_deletion_changes_nothing,
    deletion_counts_as_a_generation,
    a_pod_that_is_going_may_still_be_written,
    what_is_not_there_cannot_be_deleted,
    what_is_deleted_is_answered,
    a_finalizer_keeps_an_object_until_it_is_taken_away,
    a_finalizer_keeps_a_pod_past_its_grace,
    nothing_new_keeps_what_is_going,
    a_claim_of_another_uid_is_not_deleted,
    a_name_is_free_again_with_another_uid,
];

fn note_deletion(witness: &mut Witness, what: &str, answer: &Answer) {
    let metadata = &answer.body["metadata"];
    let going = metadata["deletionTimestamp"].is_string();
    let grace = &metadata["deletionGracePeriodSeconds"];
    witness.note(what, format!("{} going {going}, grace {grace}", answer.short()));
}

async fn a_pod_on_a_node_keeps_its_grace(witness: &mut Witness) {
    witness.running("a").await;
    let told = witness.delete(&witness.pod("a"), json!({})).await;
    note_deletion(witness, "its own", &told);
    witness.note("kind", &told.body["kind"]);
    witness.running("b").await;
    let told = witness.delete(&witness.pod("b"), json!({ "gracePeriodSeconds": 600 })).await;
    note_deletion(witness, "longer", &told);
    witness.running("c").await;
    let told = witness.delete(&witness.pod("c"), json!({ "gracePeriodSeconds": 5 })).await;
    note_deletion(witness, "shorter", &told);
    let read = witness.read(&witness.pod("c")).await;
    note_deletion(witness, "read", &read);
    witness.note("grace of the pod stays", &read.body["spec"]["terminationGracePeriodSeconds"]);
}

async fn grace_is_shortened_and_never_lengthened(witness: &mut Witness) {
    witness.running("a").await;
    for grace in [40, 60, 15, 30, 14] {
        let options = json!({ "gracePeriodSeconds": grace });
        let told = witness.delete(&witness.pod("a"), options).await;
        note_deletion(witness, "asked again", &told);
        let read = witness.read(&witness.pod("a")).await;
        note_deletion(witness, "stored", &read);
    }
}

async fn grace_of_nothing_removes_at_once(witness: &mut Witness) {
    witness.running("a").await;
    let told = witness.delete(&witness.pod("a"), json!({ "gracePeriodSeconds": 0 })).await;
    note_deletion(witness, "running", &told);
    let read = witness.read(&witness.pod("a")).await;
    witness.note("then", read);
    witness.running("b").await;
    witness.delete(&witness.pod("b"), json!({})).await;
    let told = witness.delete(&witness.pod("b"), json!({ "gracePeriodSeconds": 0 })).await;
    note_deletion(witness, "going", &told);
    let read = witness.read(&witness.pod("b")).await;
    witness.note("then", read.short());
}

async fn grace_may_stand_in_the_query(witness: &mut Witness) {
    witness.running("a").await;
    let path = format!("{}?gracePeriodSeconds=7", witness.pod("a"));
    let told = witness.send(http::Method::DELETE, &path, None).await;
    note_deletion(witness, "query alone", &told);
    witness.running("b").await;
    let path = format!("{}?gracePeriodSeconds=7", witness.pod("b"));
    let told = witness.delete(&path, json!({ "gracePeriodSeconds": 9 })).await;
    note_deletion(witness, "both", &told);
}

async fn grace_that_is_negative_is_one_second(witness: &mut Witness) {
    witness.running("a").await;
    let told = witness.delete(&witness.pod("a"), json!({ "gracePeriodSeconds": -5 })).await;
    note_deletion(witness, "asked", &told);
}

async fn the_deletion_time_is_when_grace_is_over(witness: &mut Witness) {
    witness.running("a").await;
    let at = |answer: &Answer| {
        let text = answer.body["metadata"]["deletionTimestamp"].as_str().unwrap_or_default();
        text.parse::<jiff::Timestamp>().unwrap_or_default()
    };
    let long = witness.delete(&witness.pod("a"), json!({ "gracePeriodSeconds": 600 })).await;
    let short = witness.delete(&witness.pod("a"), json!({ "gracePeriodSeconds": 60 })).await;
    let moved = at(&long).duration_since(at(&short)).as_secs();
    witness.note("moved by what was taken off", (538..=540).contains(&moved));
    let text = short.body["metadata"]["deletionTimestamp"].as_str().unwrap_or_default().to_owned();
    witness.note("letters", text.len());
}

async fn a_pod_on_no_node_goes_at_once(witness: &mut Witness) {
    let mut unbound = pod("a");
    unbound["spec"].as_object_mut().unwrap().remove("nodeName");
    witness.create(&witness.here("pods"), &unbound).await;
    let told = witness.delete(&witness.pod("a"), json!({})).await;
    note_deletion(witness, "told", &told);
    let read = witness.read(&witness.pod("a")).await;
    witness.note("then", read.short());
}

async fn a_pod_that_has_ended_goes_at_once(witness: &mut Witness) {
    for phase in ["Succeeded", "Failed"] {
        let name = phase.to_lowercase();
        witness.running(&name).await;
        let status = json!({ "status": { "phase": phase } });
        witness.merge_patch(&witness.here(&format!("pods/{name}/status")), &status).await;
        let told = witness.delete(&witness.pod(&name), json!({})).await;
        note_deletion(witness, phase, &told);
        let read = witness.read(&witness.pod(&name)).await;
        witness.note("then", read.short());
    }
}

async fn a_pod_that_is_pending_on_a_node_keeps_its_grace(witness: &mut Witness) {
    witness.create(&witness.here("pods"), &pod("a")).await;
    let told = witness.delete(&witness.pod("a"), json!({})).await;
    note_deletion(witness, "told", &told);
}

const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

async fn a_pod_of_another_uid_is_not_deleted(witness: &mut Witness) {
    let made = witness.running("a").await;
    let options = |uid: &str| json!({ "preconditions": { "uid": uid } });
    let told = witness.delete(&witness.pod("a"), options(NOBODY)).await;
    witness.note("another", told);
    let read = witness.read(&witness.pod("a")).await;
    note_deletion(witness, "then", &read);
    let told = witness.delete(&witness.pod("a"), options(made.uid())).await;
    note_deletion(witness, "its own", &told);
    let told = witness.delete(&witness.pod("a"), options(NOBODY)).await;
    witness.note("another, while going", told.short());
}

async fn a_precondition_may_name_the_version(witness: &mut Witness) {
    let made = witness.running("a").await;
    let label = json!({ "metadata": { "labels": { "x": "y" } } });
    let newer = witness.merge_patch(&witness.pod("a"), &label).await;
    let options = |version: &str| json!({ "preconditions": { "resourceVersion": version } });
    let told = witness.delete(&witness.pod("a"), options(made.version())).await;
    witness.note("an old one", told.short());
    let told = witness.delete(&witness.pod("a"), options(newer.version())).await;
    note_deletion(witness, "the newest", &told);
}

async fn a_second_deletion_changes_nothing(witness: &mut Witness) {
    witness.running("a").await;
    let first = witness.delete(&witness.pod("a"), json!({})).await;
    let second = witness.delete(&witness.pod("a"), json!({})).await;
    note_deletion(witness, "second", &second);
    witness.note("same version", first.version() == second.version());
}

async fn deletion_counts_as_a_generation(witness: &mut Witness) {
    let made = witness.running("a").await;
    let told = witness.delete(&witness.pod("a"), json!({})).await;
    let generation = |answer: &Answer| answer.body["metadata"]["generation"].clone();
    witness.note("before", generation(&made));
    witness.note("after", generation(&told));
    let told = witness.delete(&witness.pod("a"), json!({ "gracePeriodSeconds": 5 })).await;
    witness.note("shortened", generation(&told));
}

async fn a_pod_that_is_going_may_still_be_written(witness: &mut Witness) {
    witness.running("a").await;
    witness.delete(&witness.pod("a"), json!({})).await;
    let hold = json!({ "metadata": { "annotations": { "karpenter.sh/do-not-disrupt": "true" } } });
    let told = witness.merge_patch(&witness.pod("a"), &hold).await;
    note_deletion(witness, "annotated", &told);
    let status = json!({ "status": { "phase": "Failed" } });
    let told = witness.merge_patch(&witness.here("pods/a/status"), &status).await;
    note_deletion(witness, "ended", &told);
    witness.note("phase", &told.body["status"]["phase"]);
    let cleared = json!({ "metadata": { "deletionTimestamp": null } });
    let told = witness.merge_patch(&witness.pod("a"), &cleared).await;
    note_deletion(witness, "called back", &told);
}

async fn what_is_not_there_cannot_be_deleted(witness: &mut Witness) {
    let told = witness.delete(&witness.pod("a"), json!({})).await;
    witness.note("pod", told);
    let options = json!({ "preconditions": { "uid": NOBODY } });
    let told = witness.delete(&witness.claim(), options).await;
    witness.note("claim", told);
}

async fn what_is_deleted_is_answered(witness: &mut Witness) {
    let note = |witness: &mut Witness, what: &str, told: &Answer| {
        let mut body = told.body.clone();
        if body["kind"] == "Status" {
            body["details"].as_object_mut().map(|details| details.remove("uid"));
            witness.note(what, body);
        } else {
            witness.note(what, &body["kind"]);
        }
    };
    witness.with_interruption().await;
    let told = witness.delete(&witness.interruption(), json!({})).await;
    note(witness, "record", &told);
    witness.with_claim().await;
    let told = witness.delete(&witness.claim(), json!({})).await;
    note(witness, "claim", &told);
    witness.with_node(json!({})).await;
    let told = witness.delete(&witness.node(), json!({})).await;
    note(witness, "node", &told);
    let leases = witness.here_of("coordination.k8s.io/v1", "leases");
    witness.create(&leases, &json!({ "metadata": { "name": "lb" } })).await;
    let told = witness.delete(&format!("{leases}/lb"), json!({})).await;
    note(witness, "lease", &told);
    witness.running("a").await;
    let told = witness.delete(&witness.pod("a"), json!({ "gracePeriodSeconds": 0 })).await;
    note(witness, "pod", &told);
}

async fn with_finalizer(witness: &Witness) -> Answer {
    let mut body = claim(&witness.own("c-1"));
    body["metadata"]["finalizers"] = json!(["karpenter.sh/termination"]);
    witness.create(CLAIMS, &body).await
}

async fn a_finalizer_keeps_an_object_until_it_is_taken_away(witness: &mut Witness) {
    with_finalizer(witness).await;
    let told = witness.delete(&witness.claim(), json!({})).await;
    note_deletion(witness, "deleted", &told);
    witness.note("kind", &told.body["kind"]);
    witness.note("generation", &told.body["metadata"]["generation"]);
    let again = witness.delete(&witness.claim(), json!({})).await;
    note_deletion(witness, "again", &again);
    witness.note("same version", told.version() == again.version());
    let label = json!({ "metadata": { "labels": { "x": "y" } } });
    let told = witness.merge_patch(&witness.claim(), &label).await;
    note_deletion(witness, "written", &told);
    let freed = json!({ "metadata": { "finalizers": null } });
    let told = witness.merge_patch(&witness.claim(), &freed).await;
    note_deletion(witness, "freed", &told);
    let read = witness.read(&witness.claim()).await;
    witness.note("then", read.short());
}

async fn a_finalizer_keeps_a_pod_past_its_grace(witness: &mut Witness) {
    let mut body = pod("a");
    body["metadata"]["finalizers"] = json!(["batch.kubernetes.io/job-tracking"]);
    witness.create(&witness.here("pods"), &body).await;
    let told = witness.delete(&witness.pod("a"), json!({})).await;
    note_deletion(witness, "deleted", &told);
    let told = witness.delete(&witness.pod("a"), json!({ "gracePeriodSeconds": 0 })).await;
    note_deletion(witness, "grace over", &told);
    let read = witness.read(&witness.pod("a")).await;
    note_deletion(witness, "then", &read);
    let freed = json!({ "metadata": { "finalizers": null } });
    let told = witness.merge_patch(&witness.pod("a"), &freed).await;
    note_deletion(witness, "freed", &told);
    let read = witness.read(&witness.pod("a")).await;
    witness.note("then", read.short());
    let mut body = pod("b");
    body["metadata"]["finalizers"] = json!(["batch.kubernetes.io/job-tracking"]);
    witness.create(&witness.here("pods"), &body).await;
    witness.delete(&witness.pod("b"), json!({})).await;
    let told = witness.merge_patch(&witness.pod("b"), &freed).await;
    note_deletion(witness, "freed within its grace", &told);
    let read = witness.read(&witness.pod("b")).await;
    note_deletion(witness, "then", &read);
}

async fn nothing_new_keeps_what_is_going(witness: &mut Witness) {
    with_finalizer(witness).await;
    witness.delete(&witness.claim(), json!({})).await;
    let more = json!({ "metadata": { "finalizers": ["karpenter.sh/termination", "a.dev/b"] } });
    let told = witness.merge_patch(&witness.claim(), &more).await;
    witness.note("another finalizer", told.short());
    let told = witness.create(CLAIMS, &claim(&witness.own("c-1"))).await;
    witness.note("its name is still taken", told.short());
    witness.merge_patch(&witness.claim(), &json!({ "metadata": { "finalizers": null } })).await;
}

async fn a_claim_of_another_uid_is_not_deleted(witness: &mut Witness) {
    let made = witness.with_claim().await;
    let options = |uid: &str| json!({ "preconditions": { "uid": uid } });
    let told = witness.delete(&witness.claim(), options(NOBODY)).await;
    witness.note("another", told);
    let told = witness.delete(&witness.claim(), options(made.uid())).await;
    witness.note("its own", told.short());
}

async fn a_name_is_free_again_with_another_uid(witness: &mut Witness) {
    let first = witness.with_claim().await;
    witness.delete(&witness.claim(), json!({})).await;
    let second = witness.with_claim().await;
    witness.note("made", second.short());
    witness.note("same uid", first.uid() == second.uid());
}
