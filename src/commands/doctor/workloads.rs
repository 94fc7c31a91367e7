//! What an interruption would make of the workloads that are protected.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::ResourceExt;
use lifeboat_domain::deadline::elapsed;
use lifeboat_domain::policy::BackgroundPolicy;
use lifeboat_domain::policy::KarpenterMode;
use lifeboat_domain::workload::Hold;
use lifeboat_domain::workload::Mode;
use lifeboat_domain::workload::Wishes;
use serde_json::Value;

use super::Finding;
use super::few;
use crate::adapters::cluster::objects::Object;
use crate::adapters::cluster::others::Jobs;
use crate::adapters::cluster::pods::PodRow;
use crate::commands::table::bytes;
use crate::commands::table::span;
use crate::config::Config;
use crate::crd::marks as our;
use crate::crd::workload_checkpoint::Outlook;
use crate::crd::workload_checkpoint::WorkloadCheckpoint;

/// Annotations that mean something on a pod.
const KNOWN: &[&str] = &[
    our::CHECKPOINT,
    our::CHECKPOINT_PATH,
    our::CHECKPOINT_HTTP,
    our::JOB_KEY,
    our::RESTORE,
    our::PRIORITY,
    our::HOLD,
    our::HELD,
    our::NOT_INJECTED,
];
/// Pods whose annotations are told of one by one.
const TOLD: usize = 10;
/// So many pauses between two saves in the background may have passed.
const LATE: u32 = 3;

/// A job key with its namespace.
pub(super) fn key(index: &WorkloadCheckpoint) -> String {
    format!("`{}/{}`", index.namespace().unwrap_or_default(), index.spec.job_key)
}

/// Whether Karpenter would leave the protected pods where they are while they are saved.
pub(super) fn holds(config: &Config, protected: &[PodRow]) -> Finding {
    if config.policy().karpenter == KarpenterMode::None {
        let count = protected.len();
        return Finding::green(format!("{count} protected pods; without Karpenter no hold exists"));
    }
    let always: Vec<&PodRow> =
        protected.iter().filter(|pod| wanted(config, pod) == Hold::Always).collect();
    let loose: Vec<String> =
        always.iter().filter(|pod| !pod.is_held()).map(|pod| name(pod)).collect();
    if loose.is_empty() {
        return Finding::green(format!("{} protected pods are held", always.len()));
    }
    Finding::yellow(
        format!("{} of {} protected pods are not held: {}", loose.len(), always.len(), few(&loose)),
        "put `karpenter.sh/do-not-disrupt: \"true\"` on them",
    )
}

/// Protected pods that are held on a signal only, and so need Karpenter to wait.
pub(super) fn on_signal(config: &Config, pods: &[PodRow]) -> Vec<String> {
    let waits = |pod: &&PodRow| {
        pod.is_protected()
            && wishes(pod).mode != Mode::Sigterm
            && wanted(config, pod) != Hold::Always
    };
    pods.iter().filter(waits).map(name).collect()
}

fn wanted(config: &Config, pod: &PodRow) -> Hold {
    wishes(pod).hold.unwrap_or(config.policy().hold)
}

/// Annotations of ours that say nothing, or what is not allowed.
pub(super) fn annotations(config: &Config, pods: &[PodRow]) -> Vec<Finding> {
    // Our own pods carry marks of the chart.
    let others = pods.iter().filter(|pod| pod.namespace != config.namespace);
    let mut findings: Vec<Finding> = others.flat_map(annotations_of).collect();
    let more = findings.len().saturating_sub(TOLD);
    findings.truncate(TOLD);
    if more > 0 {
        findings.push(Finding::yellow(
            format!("{more} more annotations of pods mean nothing"),
            "mend those above first",
        ));
    }
    findings
}

fn annotations_of(pod: &PodRow) -> Vec<Finding> {
    let all = pod.annotations.to_map();
    if all.is_empty() {
        return Vec::new();
    }
    let (wishes, faults) = Wishes::read(&all);
    let say =
        |what: &str, remedy: &str| Finding::yellow(format!("pod {} {what}", name(pod)), remedy);
    let mut findings: Vec<Finding> = faults
        .iter()
        .map(|fault| say(&format!("says what is not allowed: {fault}"), "mend it: it is not heard"))
        .collect();
    let unknown = all.keys().filter(|key| !KNOWN.contains(&key.as_str()));
    findings.extend(unknown.map(|key| {
        say(&format!("has the annotation `{key}`, which means nothing"), "check its spelling")
    }));
    if !pod.is_protected() {
        let asks = [our::CHECKPOINT_PATH, our::CHECKPOINT_HTTP, our::JOB_KEY, our::RESTORE];
        if asks.iter().any(|key| all.contains_key(*key)) {
            findings.push(say(
                "has annotations of ours, and is not protected",
                "say how it is saved by `lifeboat.dev/checkpoint`, or leave the others out",
            ));
        }
        return findings;
    }
    if wishes.mode == Mode::Http && wishes.http.is_none() {
        findings.push(say(
            "is to be called, and does not say where",
            "add `lifeboat.dev/checkpoint-http: \":<port>/<path>\"`",
        ));
    }
    for (key, mode) in [(our::CHECKPOINT_HTTP, Mode::Http), (our::CHECKPOINT_PATH, Mode::Directory)]
    {
        if all.contains_key(key) && wishes.mode != mode {
            findings.push(say(
                &format!("has `{key}`, which means nothing in its mode"),
                "set `lifeboat.dev/checkpoint` to the mode that you mean, or leave it out",
            ));
        }
    }
    let owner = pod.controller.as_ref().map(|(kind, _)| kind.as_str());
    if wishes.mode != Mode::Sigterm
        && wishes.job_key.is_none()
        && matches!(owner, None | Some("ReplicaSet"))
    {
        findings.push(say(
            "has no job key: it is saved, and nothing is restored",
            "name it by `lifeboat.dev/job-key`: neither a bare pod nor a Deployment has one",
        ));
    }
    findings
}

/// Jobs against which an interruption counts as a failure of the work.
pub(super) fn jobs(jobs: &[Object<Jobs>], protected: &[PodRow]) -> Vec<Finding> {
    let ours: Vec<&Object<Jobs>> = jobs.iter().filter(|job| concerns(job, protected)).collect();
    let counted: Vec<&&Object<Jobs>> = ours.iter().filter(|job| !forgives(&job.spec)).collect();
    let names = |all: &[&&Object<Jobs>]| {
        let names: Vec<String> =
            all.iter().map(|job| format!("`{}/{}`", job.namespace(), job.name())).collect();
        few(&names)
    };
    let remedy = "add a podFailurePolicy with `action: Ignore` on the condition `DisruptionTarget`, \
                  and `restartPolicy: Never` (docs/gpu-slicing.md)";
    let (at_once, later): (Vec<&&Object<Jobs>>, Vec<&&Object<Jobs>>) =
        counted.into_iter().partition(|job| job.spec["backoffLimit"] == 0);
    let mut findings = Vec::new();
    if !at_once.is_empty() {
        let found = format!("one interruption fails these Jobs: {}", names(&at_once));
        findings.push(Finding::red(found, remedy));
    }
    if !later.is_empty() {
        let found = format!("interruptions count against the backoffLimit of {}", names(&later));
        findings.push(Finding::yellow(found, remedy));
    }
    if findings.is_empty() && !ours.is_empty() {
        findings.push(Finding::green(format!(
            "interruptions do not count against {} Jobs",
            ours.len()
        )));
    }
    findings
}

fn concerns(job: &Object<Jobs>, protected: &[PodRow]) -> bool {
    let conditions = job.status["conditions"].as_array().into_iter().flatten();
    let is_over = conditions.into_iter().any(|one| {
        (one["type"] == "Complete" || one["type"] == "Failed") && one["status"] == "True"
    });
    let mode = &job.spec["template"]["metadata"]["annotations"][our::CHECKPOINT];
    let says_so = mode.as_str().is_some_and(|mode| mode != "none");
    let owns = |pod: &PodRow| pod.controller.as_ref().is_some_and(|(_, uid)| uid == job.uid());
    !is_over && (says_so || protected.iter().any(owns))
}

fn forgives(spec: &Value) -> bool {
    let rules = spec["podFailurePolicy"]["rules"].as_array().into_iter().flatten();
    let ignores = |rule: &Value| {
        let conditions = rule["onPodConditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        rule["action"] == "Ignore" && conditions.any(|one| one["type"] == "DisruptionTarget")
    };
    rules.into_iter().any(ignores)
}

/// Workloads whose state or step a notice would not leave time enough for.
pub(super) fn at_risk(checkpoints: &[WorkloadCheckpoint]) -> Vec<Finding> {
    let open = checkpoints.iter().filter(|index| !is_finished(index));
    let late = open.filter_map(|index| {
        let outlook = index.status.as_ref()?.outlook.as_ref()?;
        (!outlook.fits).then(|| too_late(&key(index), outlook))
    });
    late.collect()
}

fn too_late(key: &str, outlook: &Outlook) -> Finding {
    let Outlook { needed, window, node, by, .. } = outlook;
    Finding::red(
        format!(
            "{key} could not be saved at a notice: with {} on `{node}` it needs {needed} s, and \
             {window} s are left ({by} rate)",
            bytes(outlook.bytes)
        ),
        "shorten its step, save less, use a node with more network, or fewer sharers of it \
         (docs/runbooks/LifeboatAtRisk.md)",
    )
}

/// How old the newest checkpoints are.
pub(super) fn ages(
    config: &Config,
    checkpoints: &[WorkloadCheckpoint],
    now: Timestamp,
) -> Vec<Finding> {
    let saved: BTreeMap<Timestamp, String> = checkpoints
        .iter()
        .filter(|index| !is_finished(index))
        .filter_map(|index| Some((index.status.as_ref()?.newest.as_ref()?.durable_at, key(index))))
        .collect();
    let Some((oldest, whose)) = saved.first_key_value() else { return Vec::new() };
    let found = format!("the newest checkpoint of {whose} is {} old", span(elapsed(*oldest, now)));
    let BackgroundPolicy::Every { pause } = config.policy().background else {
        // Without background saves a workload is saved when there is a reason to.
        return vec![Finding::green(found)];
    };
    if elapsed(*oldest, now) <= pause * LATE {
        return vec![Finding::green(found)];
    }
    vec![Finding::yellow(
        found,
        "saves in the background are on: if it still runs, look for its save in its agent's log, \
         and let go of what is over by `lifeboat checkpoints rm`",
    )]
}

fn is_finished(index: &WorkloadCheckpoint) -> bool {
    index.status.as_ref().is_some_and(|status| status.finished == Some(true))
}

fn wishes(pod: &PodRow) -> Wishes {
    Wishes::read(&pod.annotations.to_map()).0
}

fn name(pod: &PodRow) -> String {
    format!("`{}/{}`", pod.namespace, pod.name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::commands::doctor::Health;

    fn policy(rule: &Value) -> Value {
        json!({"podFailurePolicy": {"rules": [rule]}})
    }

    #[test]
    fn a_job_forgives_only_what_it_ignores() {
        let target = json!([{"type": "DisruptionTarget"}]);
        for (spec, expected) in [
            (json!({}), false),
            (policy(&json!({"action": "Ignore", "onPodConditions": target})), true),
            (policy(&json!({"action": "Count", "onPodConditions": target})), false),
            (policy(&json!({"action": "Ignore", "onPodConditions": [{"type": "Other"}]})), false),
            (policy(&json!({"action": "Ignore", "onExitCodes": {"values": [143]}})), false),
        ] {
            assert_eq!(forgives(&spec), expected, "{spec}");
        }
    }

    #[test]
    fn a_job_that_is_over_or_not_ours_is_left_alone() {
        let job = |annotations: Value, status: Value| -> Object<Jobs> {
            serde_json::from_value(json!({
                "metadata": {"name": "train", "namespace": "team", "uid": "u"},
                "spec": {"backoffLimit": 6, "template": {"metadata": {"annotations": annotations}}},
                "status": status,
            }))
            .unwrap()
        };
        let ours = json!({"lifeboat.dev/checkpoint": "sdk"});
        let over = json!({"conditions": [{"type": "Complete", "status": "True"}]});
        assert_eq!(jobs(&[job(ours.clone(), over)], &[]), []);
        assert_eq!(jobs(&[job(json!({}), json!({}))], &[]), []);
        assert_eq!(jobs(&[job(ours, json!({}))], &[])[0].health, Health::Yellow);
    }
}
