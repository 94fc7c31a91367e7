//! What the API server refuses: rules of Kubernetes, of Karpenter and of our own definitions.

use jiff::Timestamp;
use serde_json::Value;

use crate::world::cluster::object::is_deleting;
use crate::world::cluster::object::items;
use crate::world::cluster::object::name;
use crate::world::cluster::object::namespace;
use crate::world::cluster::object::text;
use crate::world::cluster::refusal::Refusal;
use crate::world::cluster::resource::CHECKPOINT;
use crate::world::cluster::resource::EVENT;
use crate::world::cluster::resource::EVENTS_EVENT;
use crate::world::cluster::resource::INTERRUPTION;
use crate::world::cluster::resource::JOB;
use crate::world::cluster::resource::LEASE;
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
        POD if old.is_none() => check_containers(new)?,
        NODE_CLAIM => check_claim(new)?,
        LEASE => check_lease(new)?,
        EVENT => check_event(new)?,
        EVENTS_EVENT if old.is_none() => check_new_event(new)?,
        JOB if old.is_none() => check_job(new)?,
        _ => (),
    }
    let Some(old) = old else { return Ok(()) };
    check_finalizers(resource, (old, new))?;
    for (field, why) in immutable(resource) {
        let path = format!("/{}", field.replace('.', "/"));
        let (before, after) = (old.pointer(&path), new.pointer(&path));
        if before.is_some_and(|value| !value.is_null()) && before != after {
            let told = match after {
                Some(Value::String(_)) => {
                    format!("Invalid value: {}: {why}", after.unwrap_or(&Value::Null))
                }
                _ => format!("Invalid value: {why}"),
            };
            let told = if why.starts_with("Forbidden") { (*why).to_owned() } else { told };
            return Err(Refusal::invalid(resource, name(new), field, &told));
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
            let why = format!("Invalid value: {SIGNAL_KEPT}");
            return Err(Refusal::invalid(resource, name(new), &field, &why));
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
    Err(Refusal::invalid(resource, name, "metadata.name", &why))
}

fn check_taints(node: &Value) -> Result<(), Refusal> {
    let taints = items(node, "/spec/taints");
    for (index, taint) in taints.iter().enumerate() {
        let (key, effect) = (text(taint, "/key"), text(taint, "/effect"));
        let field = |part: &str| format!("metadata.taints[{index}]{part}");
        let refused =
            |part: &str, why: &str| Err(Refusal::invalid(NODE, name(node), &field(part), why));
        if key.is_empty() {
            return refused(".key", "Invalid value: \"\": name part must be non-empty");
        }
        if effect.is_empty() {
            return refused(".effect", "Required value");
        }
        if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
            return refused(".effect", &format!("Unsupported value: \"{effect}\""));
        }
        let same = |other: &Value| text(other, "/key") == key && text(other, "/effect") == effect;
        if taints[..index].iter().any(same) {
            let why = "Duplicate value: taints must be unique by key and effect pair";
            return refused("", why);
        }
        if !is_label_value(text(taint, "/value")) {
            return refused(".value", "Invalid value: a valid label must be an empty string or …");
        }
    }
    Ok(())
}

fn check_containers(pod: &Value) -> Result<(), Refusal> {
    if items(pod, "/spec/containers").is_empty() {
        return Err(Refusal::invalid(POD, name(pod), "spec.containers", "Required value"));
    }
    Ok(())
}

fn is_label_value(value: &str) -> bool {
    let inside = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    let ends = |letter: Option<char>| letter.is_none_or(|letter| letter.is_ascii_alphanumeric());
    let whole = ends(value.chars().next()) && ends(value.chars().last());
    value.len() <= 63 && whole && value.chars().all(inside)
}

/// What is being deleted is kept by nobody new.
fn check_finalizers(resource: Resource, (old, new): (&Value, &Value)) -> Result<(), Refusal> {
    let known = items(old, "/metadata/finalizers");
    let more = items(new, "/metadata/finalizers").iter().any(|one| !known.contains(one));
    if is_deleting(old) && more {
        let why = "Forbidden: no new finalizers can be added if the object is being deleted";
        return Err(Refusal::invalid(resource, name(new), "metadata.finalizers", why));
    }
    Ok(())
}

/// Times of a Lease have six digits of a second, and its numbers a least value.
fn check_lease(lease: &Value) -> Result<(), Refusal> {
    let refused = |field: &str, why: String| Err(Refusal::invalid(LEASE, name(lease), field, &why));
    for field in ["acquireTime", "renewTime"] {
        let given = lease.pointer(&format!("/spec/{field}")).filter(|given| !given.is_null());
        let Some(given) = given else { continue };
        let text = given.as_str().unwrap_or_default();
        let digits = text.rsplit_once('.').map_or(0, |(_, rest)| rest.trim_end_matches('Z').len());
        if digits != 6 || text.parse::<Timestamp>().is_err() {
            return refused(
                &format!("spec.{field}"),
                format!("Invalid value: {given}: not a time"),
            );
        }
    }
    for (field, least) in [("leaseDurationSeconds", 1), ("leaseTransitions", 0)] {
        let given = lease.pointer(&format!("/spec/{field}")).filter(|given| !given.is_null());
        if let Some(given) = given
            && given.as_i64().is_none_or(|given| given < least)
        {
            let why = format!("Invalid value: {given}: must be greater than {}", least - 1);
            return refused(&format!("spec.{field}"), why);
        }
    }
    Ok(())
}

/// An event lies where its subject does; one about what lives in the cluster, in `default`.
fn check_event(event: &Value) -> Result<(), Refusal> {
    let (own, about) = (namespace(event), text(event, "/involvedObject/namespace"));
    if about == own || (about.is_empty() && own == "default") || event.get("eventTime").is_some() {
        return Ok(());
    }
    let why = format!("Invalid value: \"{about}\": does not match event.namespace");
    Err(Refusal::invalid(EVENT, name(event), "involvedObject.namespace", &why))
}

fn check_new_event(event: &Value) -> Result<(), Refusal> {
    const REQUIRED: [&str; 6] =
        ["eventTime", "reportingController", "reportingInstance", "action", "reason", "type"];
    for field in REQUIRED {
        if text(event, &format!("/{field}")).is_empty() {
            return Err(Refusal::invalid(EVENTS_EVENT, name(event), field, "Required value"));
        }
    }
    Ok(())
}

fn check_job(job: &Value) -> Result<(), Refusal> {
    let field = "spec.template.spec.restartPolicy";
    if ["OnFailure", "Never"].contains(&text(job, "/spec/template/spec/restartPolicy")) {
        return Ok(());
    }
    let why = "Required value: valid values: \"OnFailure\", \"Never\"";
    Err(Refusal::invalid(JOB, name(job), field, why))
}

/// Source: Karpenter's NodeClaim v1 CRD: `nodeClassRef` is required, operators are a closed list.
fn check_claim(claim: &Value) -> Result<(), Refusal> {
    const OPERATORS: [&str; 8] =
        ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt", "Gte", "Lte"];
    let invalid =
        |field: &str, why: &str| Err(Refusal::invalid(NODE_CLAIM, name(claim), field, why));
    for part in ["group", "kind", "name"] {
        if text(claim, &format!("/spec/nodeClassRef/{part}")).is_empty() {
            return invalid(&format!("spec.nodeClassRef.{part}"), "Required value");
        }
    }
    let requirements = items(claim, "/spec/requirements");
    let given = claim.pointer("/spec/requirements").is_some_and(Value::is_array);
    if !given || requirements.len() > 100 {
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
    const MAY_CHANGE: [&str; 3] = ["activeDeadlineSeconds", "tolerations", "schedulingGates"];
    let rest = |pod: &Value| {
        let mut spec = pod.pointer("/spec").cloned().unwrap_or_default();
        if let Some(spec) = spec.as_object_mut() {
            spec.retain(|key, _| !MAY_CHANGE.contains(&key.as_str()));
        }
        for containers in ["containers", "initContainers"] {
            let list = spec.get_mut(containers).and_then(Value::as_array_mut);
            for container in list.into_iter().flatten().filter_map(Value::as_object_mut) {
                container.remove("image");
            }
        }
        spec
    };
    if rest(old) == rest(new) {
        return Ok(());
    }
    let why = "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations)";
    Err(Refusal::invalid(POD, name(new), "spec", why))
}
