//! What a script sets up: pools, nodes, the agent, jobs and their budgets.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use crate::programs::AGENT;
use crate::script::Line;
use crate::script::ScriptError;
use crate::world::World;
use crate::world::build;
use crate::world::build::NodeSpec;
use crate::world::cluster::object::keyed;
use crate::world::cluster::object::set;
use crate::world::cluster::resource::BUDGET;
use crate::world::cluster::resource::DAEMON_SET;
use crate::world::cluster::resource::JOB;
use crate::world::cluster::resource::NODE_OVERLAY;
use crate::world::cluster::resource::NODE_POOL;
use crate::world::cluster::resource::PRIORITY_CLASS;
use crate::world::instances::Purchase;
use crate::world::machines::Gpu;
use crate::world::offerings::Offering;
use crate::world::workloads::BEHAVIOR;
use crate::world::workloads::Behavior;
use crate::world::workloads::Dies;
use crate::world::workloads::HandOver;
use crate::world::workloads::Kind;
use crate::world::workloads::Speaks;
use crate::world::workloads::directory::FOLDER;

/// The pool that the nodes of a script are of.
pub const POOL: &str = "gpu-spot";
/// Label by which a Job's pods are found.
pub const JOB_LABEL: &str = "chaos.lifeboat.dev/job";

/// Sets up what every scenario has.
pub fn usual(world: &World, slices: u32) {
    pool(world, slices);
    agents(world, slices);
}

/// Karpenter's pool, and what it can buy.
pub fn pool(world: &World, slices: u32) {
    build::add_offerings(world, slices);
    let within =
        |key: &str, values: &[&str]| json!({ "key": key, "operator": "In", "values": values });
    let requirements = [
        within("node.kubernetes.io/instance-type", &["g5.xlarge", "g6.xlarge"]),
        within("topology.kubernetes.io/zone", &["us-east-2a", "us-east-2b", "us-east-2c"]),
        within("karpenter.sh/capacity-type", &["spot", "on-demand"]),
    ];
    build::add_pool(world, POOL, &requirements);
}

/// The agent on every GPU node, and what states the slices of the pool's GPUs.
pub fn agents(world: &World, slices: u32) {
    if slices > 1 {
        let slices = json!({ "nvidia.com/gpu": slices.to_string() });
        let overlay = json!({ "metadata": { "name": POOL }, "spec": { "capacity": slices } });
        world.update(|state| state.cluster.put(NODE_OVERLAY, overlay));
    }
    world.update(|state| {
        let critical =
            json!({ "metadata": { "name": "system-node-critical" }, "value": 2_000_001_000 });
        state.cluster.put(PRIORITY_CLASS, critical);
        state.cluster.put(DAEMON_SET, agent());
    });
}

/// The agent's DaemonSet: last to leave, and not tolerant of Karpenter's taint.
pub fn agent() -> Value {
    let tolerations = json!([
        { "key": "nvidia.com/gpu", "operator": "Exists" },
        { "key": "lifeboat.dev/interrupted", "operator": "Exists", "effect": "NoSchedule" },
        { "key": "lifeboat.dev/agent-not-ready", "operator": "Exists", "effect": "NoSchedule" },
        { "key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule" },
        { "key": "node.kubernetes.io/not-ready", "operator": "Exists" },
        { "key": "node.kubernetes.io/unreachable", "operator": "Exists" },
    ]);
    json!({
        "metadata": { "name": "lifeboat-agent", "namespace": "lifeboat-system" },
        "spec": {
            "selector": { "matchLabels": { "app": "lifeboat-agent" } },
            "template": {
                "metadata": { "labels": { "app": "lifeboat-agent" } },
                "spec": {
                    "hostPID": true,
                    "hostNetwork": true,
                    "priorityClassName": "system-node-critical",
                    "terminationGracePeriodSeconds": 120,
                    "tolerations": tolerations,
                    "containers": [{ "name": AGENT, "image": "lifeboat" }],
                },
            },
        },
    })
}

/// Puts one line of the stage into the world; machines have their folders below `folder`.
pub fn put(world: &World, folder: &Path, line: &Line) -> Result<(), ScriptError> {
    match line.word(0)? {
        "node" => node(world, folder, line),
        "job" => job(world, line),
        "sold-out" => sold_out(world, line),
        "limit" => limit(world, line),
        _ => Err(line.fault("nothing like this stands on a stage")),
    }
}

/// `node gpu-1 [type T] [zone Z] [gpus N] [slices N] [resource R] [on-demand] [managed]`
fn node(world: &World, folder: &Path, line: &Line) -> Result<(), ScriptError> {
    let name = line.word(1)?;
    let instance_type = line.option("type").unwrap_or("g5.xlarge");
    let zone = line.option("zone").unwrap_or("us-east-2a");
    let purchase = if line.says("on-demand") { Purchase::OnDemand } else { Purchase::Spot };
    let gpus = u32::try_from(line.number("gpus")?.unwrap_or(1)).unwrap_or(1);
    let slices = u32::try_from(line.number("slices")?.unwrap_or(1)).unwrap_or(1);
    let resource = line.option("resource").unwrap_or("nvidia.com/gpu").to_owned();
    let offering = Offering::whole(instance_type, zone, purchase, 4_000).sliced(gpus, slices);
    let offering = Offering { resource, ..offering };
    let number = world.read(|state| state.machines.iter().count()) + 1;
    let instance = format!("i-{number:017x}");
    let mut spec = NodeSpec::new(name, &instance, &offering).below(folder);
    spec.labels.insert("nvidia.com/gpu.present".to_owned(), "true".to_owned());
    if line.says("managed") {
        let capacity = ("eks.amazonaws.com/capacityType".to_owned(), "SPOT".to_owned());
        spec.labels.extend([capacity]);
    } else {
        spec = spec.of_pool(POOL);
    }
    spec.gpus = Some((1..=gpus).map(|gpu| named_gpu(name, gpu, &offering)).collect());
    spec.add(world);
    Ok(())
}

/// A GPU whose uuid can be read: the node's name stands in it as bytes.
fn named_gpu(node: &str, number: u32, offering: &Offering) -> Gpu {
    let sum = node.bytes().fold(0_u64, |sum, byte| (sum << 5) ^ u64::from(byte)) & 0xffff_ffff;
    let uuid = format!("GPU-{sum:08x}-0000-4000-8000-{number:012x}");
    Gpu { uuid, resource: offering.resource.clone(), replicas: offering.replicas }
}

/// Options of a job: see [`behavior`] for what its program does, and
/// `[on NODE] [grace D] [restart P] [backoff N] [no-failure-policy] [pdb N] [key K] [hold H]
/// [mode M] [priority N] [volume ZONE] [unprotected] [namespace NS] [gpu RESOURCE] [no-gpu]`.
fn job(world: &World, line: &Line) -> Result<(), ScriptError> {
    let (job, budget) = job_objects(line)?;
    world.update(|state| {
        state.cluster.put(JOB, job);
        if let Some(budget) = budget {
            state.cluster.put(BUDGET, budget);
        }
    });
    Ok(())
}

/// The Job of such a line, and its budget where it has one.
pub fn job_objects(line: &Line) -> Result<(Value, Option<Value>), ScriptError> {
    let name = line.word(1)?;
    let namespace = line.option("namespace").unwrap_or("default");
    let mut spec = json!({
        "completions": 1,
        "parallelism": 1,
        "backoffLimit": line.number("backoff")?.unwrap_or(6),
        "podReplacementPolicy": "TerminatingOrFailed",
        "template": template(line, name)?,
    });
    if !line.says("no-failure-policy") {
        spec["podFailurePolicy"] = json!({ "rules": [
            { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
        ] });
        spec["podReplacementPolicy"] = json!("Failed");
    }
    let meta = json!({ "name": name, "namespace": namespace });
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec,
    });
    let budget = line.number("pdb")?.map(|most| {
        json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": meta,
            "spec": {
                // Of a Job's pods the real controller knows no portion: it has no scale.
                "minAvailable": 1_u64.saturating_sub(most),
                "selector": { "matchLabels": { JOB_LABEL: name } },
            },
        })
    });
    Ok((job, budget))
}

fn template(line: &Line, name: &str) -> Result<Value, ScriptError> {
    let behavior =
        serde_json::to_string(&behavior(line)?).map_err(|_| line.fault("no behavior"))?;
    let grace = line.duration("grace")?.unwrap_or(Duration::from_secs(30)).as_secs();
    let mut annotations = json!({ BEHAVIOR: behavior });
    let mut attributes = json!({});
    if !line.says("unprotected") {
        let mode = line.option("mode").unwrap_or("sdk");
        let mut marks = vec![
            ("lifeboat.dev/checkpoint", mode),
            ("lifeboat.dev/job-key", line.option("key").unwrap_or(name)),
        ];
        let optional = [
            ("lifeboat.dev/hold", "hold"),
            ("lifeboat.dev/priority", "priority"),
            ("lifeboat.dev/restore", "restore"),
        ];
        marks.extend(optional.iter().filter_map(|(mark, word)| Some((*mark, line.option(word)?))));
        for (mark, value) in marks {
            annotations[mark] = json!(value);
            attributes[mark] = json!(value);
        }
        attributes["lifeboat.dev/grace"] = json!(grace.to_string());
        // What the webhook of the deploy tier will do at admission.
        if line.option("hold").unwrap_or("always") == "always" && mode != "sigterm" {
            annotations["karpenter.sh/do-not-disrupt"] = json!("true");
            annotations["lifeboat.dev/held"] = json!("admission");
        }
    }
    let resource = line.option("gpu").unwrap_or("nvidia.com/gpu");
    let limits = if line.says("no-gpu") { json!({}) } else { json!({ resource: "1" }) };
    let mut spec = json!({
        "restartPolicy": line.option("restart").unwrap_or("Never"),
        "terminationGracePeriodSeconds": grace,
        "tolerations": [{ "key": "nvidia.com/gpu", "operator": "Exists" }],
        "containers": [{
            "name": "trainer",
            "image": "trainer",
            "resources": { "limits": limits },
            "env": [{ "name": "LIFEBOAT_SOCKET", "value": "/run/lifeboat/agent.sock" }],
        }],
    });
    if !line.says("unprotected") {
        let is_folder = attributes["lifeboat.dev/checkpoint"] == "directory";
        let path = if is_folder { FOLDER } else { "/run/lifeboat" };
        let csi = json!({ "driver": "lifeboat.dev", "volumeAttributes": attributes });
        spec["volumes"] = json!([{ "name": "boat", "csi": csi }]);
        spec["containers"][0]["volumeMounts"] = json!([{ "name": "boat", "mountPath": path }]);
    }
    if let Some(zone) = line.option("volume") {
        spec["nodeSelector"] = json!({ "topology.kubernetes.io/zone": zone });
    }
    let labels = json!({ JOB_LABEL: name });
    Ok(json!({ "metadata": { "labels": labels, "annotations": annotations }, "spec": spec }))
}

/// `[state B] [step D] [steps N] [ranks N] [kind sdk|directory|sigterm|deaf|refuses] [safe-point] [files]
/// [dies given|taken] [ends-in D] [speaks newer|older]`
fn behavior(line: &Line) -> Result<Behavior, ScriptError> {
    let usual = Behavior::default();
    let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let kind = match line.option("kind").or(line.option("mode")) {
        Some("sigterm") => Kind::Sigterm,
        Some("directory") => Kind::Directory,
        Some("deaf") => Kind::Deaf,
        Some("refuses") => Kind::Refuses,
        _ => Kind::Sdk,
    };
    let dies = match line.option("dies") {
        Some("given") => Dies::Given,
        Some("taken") => Dies::Taken,
        Some(_) => return Err(line.fault("a workload dies `given` or `taken`")),
        None => Dies::Never,
    };
    Ok(Behavior {
        kind,
        dies,
        steps: line.number("steps")?.unwrap_or(usual.steps),
        step_ms: line.duration("step")?.map_or(usual.step_ms, milliseconds),
        state_bytes: line.bytes("state")?.unwrap_or(usual.state_bytes),
        ranks: u32::try_from(line.number("ranks")?.unwrap_or(1)).unwrap_or(1),
        safe_point: line.says("safe-point"),
        hand_over: if line.says("files") { HandOver::Files } else { HandOver::Ring },
        sigterm_ms: line.duration("ends-in")?.map_or(usual.sigterm_ms, milliseconds),
        speaks: match line.option("speaks") {
            Some("newer") => Speaks::Newer,
            Some("older") => Speaks::Older,
            Some(_) => return Err(line.fault("a workload speaks `newer` or `older`")),
            None => Speaks::This,
        },
    })
}

/// `limit RESOURCE N`: of the pool.
fn limit(world: &World, line: &Line) -> Result<(), ScriptError> {
    let (resource, most) = (line.word(1)?.to_owned(), line.word(2)?.to_owned());
    world.update(|state| {
        let mut pool =
            state.cluster.find(NODE_POOL, POOL).map(|pool| Value::clone(pool)).unwrap_or_default();
        set(&mut pool, &keyed("/spec/limits", &resource), json!(most));
        state.cluster.put(NODE_POOL, pool);
    });
    Ok(())
}

/// `sold-out g5.xlarge us-east-2b [spot]`: neither Spot nor on demand; with `spot`, that alone.
fn sold_out(world: &World, line: &Line) -> Result<(), ScriptError> {
    let (instance_type, zone) = (line.word(1)?.to_owned(), line.word(2)?.to_owned());
    let both = [Purchase::Spot, Purchase::OnDemand];
    let purchases = if line.says("spot") { &both[..1] } else { &both[..] };
    world.update(|state| {
        for purchase in purchases {
            state.offerings.sell_out(&instance_type, &zone, *purchase);
        }
    });
    Ok(())
}
