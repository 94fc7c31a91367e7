//! Who else ends nodes here: Karpenter, and aws-node-termination-handler.

use std::collections::BTreeSet;
use std::time::Duration;

use lifeboat_domain::policy::KarpenterMode;
use lifeboat_domain::policy::OperatingMode;
use lifeboat_domain::signal::NOTICE;
use serde_json::Value;

use super::Finding;
use super::few;
use crate::adapters::cluster::nodes::NodeRow;
use crate::adapters::cluster::objects::Kind;
use crate::adapters::cluster::objects::Object;
use crate::adapters::cluster::others::DaemonSets;
use crate::adapters::cluster::others::Deployments;
use crate::adapters::cluster::overlays::Overlays;
use crate::adapters::cluster::pods::PodRow;
use crate::adapters::cluster::pools::Pools;
use crate::config::Config;
use crate::crd::marks as our;

/// The label by which charts name what they install.
const NAME: &str = "app.kubernetes.io/name";
/// The label of a node whose GPUs are shared: replicas of each.
const REPLICAS: &str = "nvidia.com/gpu.replicas";
/// The first Karpenter whose API we speak.
const OLDEST: (u32, u32) = (1, 0);

/// Karpenter, as its Deployment shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Karpenter {
    /// Major and minor, where a label or the image says so.
    pub(super) version: Option<(u32, u32)>,
    /// The name of its interruption queue; `None` where it has none.
    pub(super) queue: Option<String>,
    /// What it says of its feature gate `NodeOverlay`.
    pub(super) overlays: Option<bool>,
}

/// Karpenter's Deployment among all.
pub(super) fn karpenter(deployments: &[Object<Deployments>]) -> Option<Karpenter> {
    let found = deployments.iter().find(|one| named(one) == Some("karpenter"))?;
    let labels = found.metadata.labels.as_ref();
    let label = labels.and_then(|labels| labels.get("app.kubernetes.io/version"));
    let image = containers(&found.spec).find_map(|one| one["image"].as_str());
    let tag = image.and_then(|image| image.split('@').next()?.rsplit_once(':'));
    let version = label.map(String::as_str).or(tag.map(|(_, tag)| tag));
    let gates = variable(&found.spec, "FEATURE_GATES");
    let gate = gates.and_then(|gates| {
        let mut gates = gates.split(',').filter_map(|gate| gate.split_once('='));
        gates.find(|(name, _)| name.trim() == "NodeOverlay").map(|(_, value)| value == "true")
    });
    Some(Karpenter {
        version: version.and_then(major_minor),
        queue: variable(&found.spec, "INTERRUPTION_QUEUE").filter(|name| !name.is_empty()),
        overlays: gate,
    })
}

/// Its version, and that its queue is not ours.
pub(super) fn itself(config: &Config, found: &Karpenter) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some((major, minor)) = found.version {
        let said = format!("Karpenter is {major}.{minor}");
        findings.push(if (major, minor) >= OLDEST {
            Finding::green(said)
        } else {
            Finding::red(said, "bring it to 1.x: Lifeboat speaks its API `karpenter.sh/v1`")
        });
    }
    if let Some(theirs) = &found.queue
        && last(theirs) == last(&config.queue.url)
    {
        findings.push(shared(format!("Karpenter reads our queue `{}`", last(theirs))));
    }
    findings
}

/// Whether Karpenter's mode is what is set, and whether each pool leaves the time that a hold needs.
pub(super) fn pools(
    config: &Config,
    pools: &[Object<Pools>],
    protected: &[PodRow],
) -> Vec<Finding> {
    match (config.policy().karpenter, pools.is_empty()) {
        (KarpenterMode::Beside, true) => vec![Finding::yellow(
            "`karpenter.mode` is `beside`, and there are no NodePools",
            "install Karpenter 1.x, or set `karpenter.mode` to `none`",
        )],
        (KarpenterMode::None, false) => vec![Finding::red(
            format!("`karpenter.mode` is `none`, and there are {} NodePools", pools.len()),
            "set it to `beside`: otherwise nothing holds the pods against Karpenter's drain",
        )],
        (KarpenterMode::None, true) => vec![Finding::green("`karpenter.mode` is `none`")],
        (KarpenterMode::Beside, false) => {
            let longest = protected.iter().map(|pod| pod.grace).max().unwrap_or_default();
            let mut findings: Vec<Finding> =
                pools.iter().filter_map(|pool| short(pool, NOTICE + longest)).collect();
            if findings.is_empty() {
                findings.push(Finding::green(format!("{} NodePools leave the time", pools.len())));
            }
            findings.extend(pools.iter().filter_map(auto_mode));
            if config.policy().mode == OperatingMode::Observe {
                findings.extend(pools.iter().filter_map(closed));
            }
            findings
        }
    }
}

/// A pool whose own limit ends a hold before the notice does.
fn short(pool: &Object<Pools>, least: Duration) -> Option<Finding> {
    let text = pool.spec.template["spec"]["terminationGracePeriod"].as_str()?;
    // Karpenter writes Go durations, `1h30m`; what is no number of units is no limit that we know.
    let limit = humantime::parse_duration(text).ok()?;
    (limit < least).then(|| {
        Finding::red(
            format!("NodePool `{}` has terminationGracePeriod {text}", pool.name()),
            format!(
                "make it {} or longer (the notice and the longest grace): Karpenter ends held pods \
                 that much before it",
                humantime::format_duration(least)
            ),
        )
    })
}

/// A pool whose nodes start closed, while nobody opens them.
fn closed(pool: &Object<Pools>) -> Option<Finding> {
    let taints = pool.spec.template["spec"]["startupTaints"].as_array()?;
    taints.iter().any(|taint| taint["key"] == our::AGENT_NOT_READY).then(|| {
        Finding::red(
            format!("NodePool `{}` starts its nodes tainted, and `mode` is `observe`", pool.name()),
            "leave the startup taint out until `mode` is `protect`: nothing takes it off before",
        )
    })
}

fn auto_mode(pool: &Object<Pools>) -> Option<Finding> {
    let group = &pool.spec.template["spec"]["nodeClassRef"]["group"];
    (group == "eks.amazonaws.com").then(|| {
        Finding::yellow(
            format!("NodePool `{}` is EKS Auto Mode's", pool.name()),
            "set `mode` to `observe` there: Lifeboat beside Auto Mode was not tested yet",
        )
    })
}

/// Whether Karpenter knows how many slices its nodes have.
pub(super) fn slices(
    config: &Config,
    (nodes, overlays): (&[NodeRow], &[Object<Overlays>]),
    karpenter: Option<&Karpenter>,
) -> Vec<Finding> {
    let cared_for =
        nodes.iter().filter(|row| config.nodes.selector.takes(&row.labels, &row.extended));
    let sliced: BTreeSet<&str> = cared_for.flat_map(slices_of).collect();
    if sliced.is_empty() || config.policy().karpenter == KarpenterMode::None {
        return Vec::new();
    }
    let stated = |name: &&&str| overlays.iter().any(|one| one.spec.capacity.contains_key(**name));
    let missing: Vec<String> =
        sliced.iter().filter(|name| !stated(name)).map(|name| format!("`{name}`")).collect();
    if !missing.is_empty() {
        return vec![Finding::red(
            format!("nodes have slices {}, and no NodeOverlay says so", few(&missing)),
            "make a NodeOverlay with the replicas (docs/gpu-slicing.md): without one Karpenter \
             buys a node for each pod, and Lifeboat asks for no replacement",
        )];
    }
    if karpenter.and_then(|found| found.overlays) == Some(false) {
        return vec![Finding::red(
            "Karpenter does not look at NodeOverlays",
            "set `settings.featureGates.nodeOverlay=true` in Karpenter's chart",
        )];
    }
    vec![Finding::green("nodes are sliced, and NodeOverlays say so")]
}

/// The resources of a node that are slices of a GPU.
fn slices_of(node: &NodeRow) -> Vec<&str> {
    let replicas = node.labels.get(REPLICAS).and_then(|count| count.parse::<u32>().ok());
    let shared = replicas.is_some_and(|count| count > 1);
    let names = node.extended.keys().map(String::as_str);
    let is_slice = |name: &&str| {
        let renamed = name.ends_with(".shared") || name.starts_with("nvidia.com/mig-");
        renamed || shared && *name == "nvidia.com/gpu"
    };
    names.filter(|name| name.starts_with("nvidia.com/")).filter(is_slice).collect()
}

/// aws-node-termination-handler drains what we care for, saved or not.
pub(super) fn termination_handlers(
    config: &Config,
    deployments: &[Object<Deployments>],
    daemons: &[Object<DaemonSets>],
) -> Vec<Finding> {
    let deployed = deployments.iter().filter_map(|one| handler(one, &one.spec));
    let on_nodes = daemons.iter().filter_map(|one| handler(one, &one.spec));
    let mut findings = Vec::new();
    for (place, queue) in deployed.chain(on_nodes) {
        findings.push(Finding::red(
            format!("aws-node-termination-handler runs beside us: {place}"),
            "remove it, or keep it from our nodes: it drains all pods at once, saved or not",
        ));
        if queue.is_some_and(|theirs| last(&theirs) == last(&config.queue.url)) {
            findings.push(shared(format!("{place} reads our queue")));
        }
    }
    findings
}

fn handler<K: Kind>(object: &Object<K>, spec: &Value) -> Option<(String, Option<String>)> {
    let ours = named(object) == Some("aws-node-termination-handler")
        || containers(spec).any(|one| {
            one["image"].as_str().is_some_and(|image| image.contains("node-termination-handler"))
        });
    ours.then(|| {
        (format!("`{}/{}`", object.namespace(), object.name()), variable(spec, "QUEUE_URL"))
    })
}

fn shared(found: String) -> Finding {
    Finding::red(
        found,
        "give it a queue of its own: whoever reads a message first deletes it, and the other \
         never hears of it",
    )
}

fn named<K: Kind>(object: &Object<K>) -> Option<&str> {
    object.metadata.labels.as_ref()?.get(NAME).map(String::as_str)
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    spec["template"]["spec"]["containers"].as_array().into_iter().flatten()
}

/// The value of a variable of any container.
fn variable(spec: &Value, name: &str) -> Option<String> {
    let all = containers(spec).flat_map(|one| one["env"].as_array().into_iter().flatten());
    let mut values = all.filter(|one| one["name"] == name).filter_map(|one| one["value"].as_str());
    values.next().map(str::to_owned)
}

fn major_minor(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim_start_matches('v').split('.').map(|part| part.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// The name in a queue's URL, or the name itself.
pub(super) fn last(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(version: Option<&str>, image: &str) -> Object<Deployments> {
        let mut labels = json!({NAME: "karpenter"});
        if let Some(version) = version {
            labels["app.kubernetes.io/version"] = json!(version);
        }
        serde_json::from_value(json!({
            "metadata": {"name": "karpenter", "namespace": "kube-system", "labels": labels},
            "spec": {"template": {"spec": {"containers": [{"image": image, "env": [
                {"name": "FEATURE_GATES", "value": "NodeRepair=false,NodeOverlay=true"},
                {"name": "INTERRUPTION_QUEUE", "value": "east"},
            ]}]}}},
        }))
        .unwrap()
    }

    #[test]
    fn karpenter_is_known_by_its_label_or_its_image() {
        let image = "public.ecr.aws/karpenter/controller:1.14.1@sha256:00";
        for (version, image, expected) in [
            (Some("0.37.6"), image, Some((0, 37))),
            (Some("1.14.1"), "controller", Some((1, 14))),
            (None, image, Some((1, 14))),
            (None, "registry:5000/karpenter/controller", None),
        ] {
            let found = karpenter(&[deployment(version, image)]).unwrap();
            assert_eq!(found.version, expected, "{version:?} {image}");
            assert_eq!(found.queue.as_deref(), Some("east"));
            assert_eq!(found.overlays, Some(true));
        }
    }
}
