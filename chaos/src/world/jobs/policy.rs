//! A Job's failure policy: what a failed pod counts for.

use serde_json::Value;

use crate::world::cluster::object::items;
use crate::world::cluster::object::text;

/// What a failed pod does to its Job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is one failure more.
    Count,
    /// It is replaced as if it had never been.
    Ignore,
    /// The Job has failed.
    FailJob,
}

/// The first rule that fits decides; without one a failure counts.
pub(super) fn verdict(job: &Value, pod: &Value) -> Verdict {
    let mut rules = items(job, "/spec/podFailurePolicy/rules").iter();
    let rule = rules.find(|rule| fits_conditions(rule, pod) || fits_exit(rule, pod));
    match rule.map_or("Count", |rule| text(rule, "/action")) {
        "Ignore" => Verdict::Ignore,
        "FailJob" | "FailIndex" => Verdict::FailJob,
        _ => Verdict::Count,
    }
}

fn fits_conditions(rule: &Value, pod: &Value) -> bool {
    items(rule, "/onPodConditions").iter().any(|wanted| {
        let status = Some(text(wanted, "/status")).filter(|status| !status.is_empty());
        let mut conditions = items(pod, "/status/conditions").iter();
        conditions.any(|condition| {
            text(condition, "/type") == text(wanted, "/type")
                && text(condition, "/status") == status.unwrap_or("True")
        })
    })
}

fn fits_exit(rule: &Value, pod: &Value) -> bool {
    let Some(wanted) = rule.get("onExitCodes") else { return false };
    let named = text(wanted, "/containerName");
    let statuses = items(pod, "/status/containerStatuses").iter();
    let statuses = statuses.filter(|status| named.is_empty() || text(status, "/name") == named);
    let codes = statuses.filter_map(|status| status.pointer("/state/terminated/exitCode"));
    let listed = |code: &Value| items(wanted, "/values").contains(code);
    let mut failed = codes.filter(|code| **code != 0);
    match text(wanted, "/operator") {
        "In" => failed.any(listed),
        _ => failed.any(|code| !listed(code)),
    }
}
