//! What kwok does with nodes and pods: upstream's stages, and our own for how pods end.
//!
//! Upstream's end of a pod is at once, whatever its grace, and it completes each pod of a Job as
//! soon as it runs. Ours keep the grace, and end no pod that was not asked for it.

use std::path::Path;

use super::ControlPlaneError;
use super::layout;

/// Pod annotation: how long after it was asked to end a pod does so, as in `2s`. Without it, it
/// takes the whole of its grace.
pub const ENDS_AFTER: &str = "chaos.lifeboat.dev/ends-after";
/// Pod annotation, any value: the pod's end is told by whoever runs its processes, and not by kwok.
pub const ENDED_OUTSIDE: &str = "chaos.lifeboat.dev/ended-outside";
/// Pod annotation, any value: kwok leaves the pod alone, since somebody else runs all of it.
pub const RUN_OUTSIDE: &str = "chaos.lifeboat.dev/run-outside";
/// Pod annotation: how long after it was there a pod ends by itself, with success, as in `30s`.
pub const COMPLETES_AFTER: &str = "chaos.lifeboat.dev/completes-after";
/// Pod annotation that kwok writes: the grace in seconds with which a pod was asked to end, and when.
const ASKED: &str = "chaos.lifeboat.dev/asked";
/// The exit code of a container that ended by SIGTERM.
pub const TERMINATED: i32 = 143;

/// Upstream's stages that we take as they are.
const UPSTREAM: &[&str] =
    &["node-initialize.yaml", "node-heartbeat-with-lease.yaml", "pod-ready.yaml"];

/// The configuration of kwok, with upstream's stages as they lie beside the programs.
pub(super) fn configuration(binaries: &Path) -> Result<String, ControlPlaneError> {
    let folder = binaries.join("stages");
    let mut documents = Vec::new();
    for name in UPSTREAM {
        documents.push(layout::read(&folder.join(name))?);
    }
    documents.push(asking());
    documents.push(ending());
    documents.push(removal());
    documents.push(completion());
    let documents: Vec<String> = documents.iter().map(|stage| but_run_outside(stage)).collect();
    Ok(documents.join("\n---\n"))
}

/// The same stage, if it is about pods, for all but those that somebody else runs.
fn but_run_outside(stage: &str) -> String {
    const MATCHES: &str = "matchExpressions:\n";
    if !stage.contains("kind: Pod\n") {
        return stage.to_owned();
    }
    let annotation = format!(".metadata.annotations[\"{RUN_OUTSIDE}\"]");
    let condition = condition(&annotation, "DoesNotExist");
    stage.replacen(MATCHES, &format!("{MATCHES}{condition}"), 1)
}

/// A pod that is asked to end is marked with the grace it was given and when: asked again with a
/// shorter one, kubelet counts what the API server wrote from when it saw it.
fn asking() -> String {
    let template = format!(
        "    patches:\n    - type: merge\n      template: |\n        metadata:\n          \
         annotations:\n            {ASKED}: '{{{{ .metadata.deletionGracePeriodSeconds }}}} {{{{ Now }}}}'\n"
    );
    stage("pod-asked", &ends(&knows_grace("false")), "", &template)
}

/// A pod that was asked to end does so when its grace is over, or after the time that it names.
fn ending() -> String {
    let asked = format!(
        "(.metadata.annotations[\"{ASKED}\"] | split(\" \")) as $asked | ($asked[1] | \
         sub(\"\\\\.[0-9]+\"; \"\") | fromdate) + ($asked[0] | tonumber) + 1 | todate"
    );
    let delay = format!(
        "    durationFrom:\n      expressionFrom: '.metadata.annotations[\"{ENDS_AFTER}\"] // ({asked})'\n"
    );
    stage("pod-ends", &ends(&knows_grace("true")), &delay, &status("Failed", TERMINATED, "Error"))
}

/// The conditions of a pod that runs here, was asked to end, and meets `more`.
fn ends(more: &str) -> String {
    format!(
        "{}{}{}{more}",
        condition(".metadata.deletionTimestamp", "Exists"),
        condition(&format!(".metadata.annotations[\"{ENDED_OUTSIDE}\"]"), "DoesNotExist"),
        phases("NotIn"),
    )
}

/// Whether the grace that a pod is marked with is the one that it has.
fn knows_grace(answer: &str) -> String {
    format!(
        "    - key: '(.metadata.annotations[\"{ASKED}\"] // \"\" | split(\" \") | first // \"\") == \
         (.metadata.deletionGracePeriodSeconds | tostring) | tostring'\n      operator: 'In'\n      \
         values: ['{answer}']\n"
    )
}

/// A pod that has ended and was asked to is removed, as kubelet does once nothing of it runs.
fn removal() -> String {
    let matches = format!("{}{}", condition(".metadata.deletionTimestamp", "Exists"), phases("In"));
    stage("pod-removed", &matches, "", "    delete: true\n")
}

/// A pod that names when its work is done ends then.
fn completion() -> String {
    let annotation = format!(".metadata.annotations[\"{COMPLETES_AFTER}\"]");
    let matches = format!(
        "{}{}    - key: '.status.phase'\n      operator: 'In'\n      values: ['Running']\n",
        condition(".metadata.deletionTimestamp", "DoesNotExist"),
        condition(&annotation, "Exists"),
    );
    let delay = format!("    durationFrom:\n      expressionFrom: '{annotation}'\n");
    stage("pod-completes", &matches, &delay, &status("Succeeded", 0, "Completed"))
}

fn stage(name: &str, matches: &str, delay: &str, next: &str) -> String {
    let delay = if delay.is_empty() { String::new() } else { format!("  delay:\n{delay}") };
    format!(
        "apiVersion: kwok.x-k8s.io/v1alpha1\nkind: Stage\nmetadata:\n  name: {name}\nspec:\n  \
         resourceRef:\n    apiGroup: v1\n    kind: Pod\n  selector:\n    matchExpressions:\n\
         {matches}{delay}  next:\n{next}"
    )
}

fn condition(key: &str, operator: &str) -> String {
    format!("    - key: '{key}'\n      operator: '{operator}'\n")
}

fn phases(operator: &str) -> String {
    format!(
        "    - key: '.status.phase'\n      operator: '{operator}'\n      values: ['Failed', 'Succeeded']\n"
    )
}

/// The status of a pod all of whose containers ended.
fn status(phase: &str, code: i32, reason: &str) -> String {
    let lines = [
        "{{ $now := Now }}",
        "{{ $root := . }}",
        "conditions:",
        "- lastTransitionTime: {{ $now | Quote }}",
        "  status: \"False\"",
        "  type: Ready",
        "- lastTransitionTime: {{ $now | Quote }}",
        "  status: \"False\"",
        "  type: ContainersReady",
        "containerStatuses:",
        "{{ range .spec.containers }}",
        "- image: {{ .image | Quote }}",
        "  name: {{ .name | Quote }}",
        "  ready: false",
        "  restartCount: 0",
        "  started: false",
        "  state:",
        "    terminated:",
        &format!("      exitCode: {code}"),
        "      finishedAt: {{ $now | Quote }}",
        &format!("      reason: {reason}"),
        "      startedAt: {{ or $root.status.startTime $now | Quote }}",
        "{{ end }}",
        &format!("phase: {phase}"),
    ];
    format!("    statusTemplate: |\n      {}\n", lines.join("\n      "))
}
