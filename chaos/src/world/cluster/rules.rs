//! What the API server refuses: rules of Kubernetes, of Karpenter and of our own definitions.

use serde_json::Value;

use crate::world::cluster::object::items;
use crate::world::cluster::object::name;
use crate::world::cluster::object::text;
use crate::world::cluster::refusal::Refusal;
use crate::world::cluster::resource::CHECKPOINT;
use crate::world::cluster::resource::INTERRUPTION;
use crate::world::cluster::resource::JOB;
use crate::world::cluster::resource::NODE;
use crate::world::cluster::resource::NODE_CLAIM;
use crate::world::cluster::resource::POD;
use crate::world::cluster::resource::Resource;
use crate::world::cluster::schema;

/// Checks an object that is about to be stored against what it was, and against itself.
///
/// # Errors
/// 422, naming the field.
pub fn check(resource: Resource, old: Option<&Value>, new: &Value) -> Result<(), Refusal> {
    check_name(resource, new)?;
    schema::check(resource, new)?;
    match resource {
        NODE => check_taints(new)?,
        POD => check_containers(new)?,
        NODE_CLAIM => check_claim(new)?,
        _ => (),
    }
    let Some(old) = old else { return Ok(()) };
    for (field, why) in immutable(resource) {
        let path = format!("/{}", field.replace('.', "/"));
        let (before, after) = (old.pointer(&path), new.pointer(&path));
        if before.is_some_and(|value| !value.is_null()) && before != after {
            return Err(Refusal::invalid(resource.kind, name(new), field, why));
        }
    }
    match resource {
        INTERRUPTION => check_kept(resource, (old, new), "/spec/signals"),
        POD => check_pod(old, new),
        _ => Ok(()),
    }
}

/// Fields that never change once they are set, and what the server says then.
///
/// Those of `lifeboat.dev` repeat the CEL rules of our definitions, which a simulator cannot run;
/// a test compares the two.
pub fn immutable(resource: Resource) -> &'static [(&'static str, &'static str)] {
    match resource {
        INTERRUPTION => &[
            ("spec.node", "the node of an interruption never changes"),
            ("spec.zone", "the zone of an interruption never changes"),
        ],
        CHECKPOINT => &[("spec.jobKey", "the job key of a checkpoint never changes")],
        NODE_CLAIM => &[("spec", "spec is immutable")],
        NODE => &[("spec.providerID", "Forbidden: node updates may not change providerID")],
        JOB => &[
            ("spec.template", "field is immutable"),
            ("spec.selector", "field is immutable"),
            ("spec.completions", "field is immutable"),
        ],
        _ => &[],
    }
}

/// What a rule says about an entry of `spec.signals` that changes or goes.
pub const SIGNAL_KEPT: &str = "a signal that was recorded never changes";

fn check_kept(resource: Resource, (old, new): (&Value, &Value), path: &str) -> Result<(), Refusal> {
    let entries = old.pointer(path).and_then(Value::as_object);
    for (key, value) in entries.into_iter().flatten() {
        if new.pointer(path).and_then(|map| map.get(key)) != Some(value) {
            let field = path.trim_start_matches('/').replace('/', ".");
            return Err(Refusal::invalid(resource.kind, name(new), &field, SIGNAL_KEPT));
        }
    }
    Ok(())
}

fn check_name(resource: Resource, object: &Value) -> Result<(), Refusal> {
    let name = name(object);
    let letters = |letter: char| {
        letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-.".contains(letter)
    };
    let ends = |letter: Option<char>| letter.is_some_and(|letter| letter.is_ascii_alphanumeric());
    let whole = ends(name.chars().next()) && ends(name.chars().last());
    if name.len() <= 253 && whole && name.chars().all(letters) {
        return Ok(());
    }
    let why = format!(
        "Invalid value: \"{name}\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'"
    );
    Err(Refusal::invalid(resource.kind, name, "metadata.name", &why))
}

fn check_taints(node: &Value) -> Result<(), Refusal> {
    let taints = items(node, "/spec/taints");
    for (index, taint) in taints.iter().enumerate() {
        let (key, effect) = (text(taint, "/key"), text(taint, "/effect"));
        let field = format!("metadata.taints[{index}]");
        if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
            let why = format!("Unsupported value: \"{effect}\"");
            return Err(Refusal::invalid("Node", name(node), &field, &why));
        }
        let same = |other: &Value| text(other, "/key") == key && text(other, "/effect") == effect;
        if taints[..index].iter().any(same) {
            let why = "Duplicate value: taints must be unique by key and effect pair";
            return Err(Refusal::invalid("Node", name(node), &field, why));
        }
        if text(taint, "/value").len() > 63 || key.is_empty() {
            return Err(Refusal::invalid("Node", name(node), &field, "Invalid value"));
        }
    }
    Ok(())
}

fn check_containers(pod: &Value) -> Result<(), Refusal> {
    if items(pod, "/spec/containers").is_empty() {
        return Err(Refusal::invalid("Pod", name(pod), "spec.containers", "Required value"));
    }
    Ok(())
}

/// Source: Karpenter's NodeClaim v1 CRD: `nodeClassRef` is required, operators are a closed list.
fn check_claim(claim: &Value) -> Result<(), Refusal> {
    const OPERATORS: [&str; 8] =
        ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt", "Gte", "Lte"];
    let invalid =
        |field: &str, why: &str| Err(Refusal::invalid("NodeClaim", name(claim), field, why));
    for part in ["group", "kind", "name"] {
        if text(claim, &format!("/spec/nodeClassRef/{part}")).is_empty() {
            return invalid(&format!("spec.nodeClassRef.{part}"), "Required value");
        }
    }
    let requirements = items(claim, "/spec/requirements");
    if claim.pointer("/spec/requirements").is_none() || requirements.len() > 100 {
        return invalid("spec.requirements", "Required value: at most 100");
    }
    for requirement in requirements {
        let operator = text(requirement, "/operator");
        if !OPERATORS.contains(&operator) {
            return invalid("spec.requirements", &format!("Unsupported value: \"{operator}\""));
        }
        if operator == "In" && items(requirement, "/values").is_empty() {
            let why = "requirements with operator 'In' must have a value defined";
            return invalid("spec.requirements", why);
        }
    }
    Ok(())
}

/// A pod's spec stands, but for a few fields.
fn check_pod(old: &Value, new: &Value) -> Result<(), Refusal> {
    const MAY_CHANGE: [&str; 4] = [
        "activeDeadlineSeconds",
        "tolerations",
        "terminationGracePeriodSeconds",
        "schedulingGates",
    ];
    let rest = |pod: &Value| {
        let mut spec = pod.pointer("/spec").cloned().unwrap_or_default();
        if let Some(spec) = spec.as_object_mut() {
            spec.retain(|key, _| !MAY_CHANGE.contains(&key.as_str()));
        }
        spec
    };
    if rest(old) == rest(new) {
        return Ok(());
    }
    let why = "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations)";
    Err(Refusal::invalid("Pod", name(new), "spec", why))
}
