//! Whether the nodes that matter are cared for, and whether their agents can hear.

use super::Finding;
use super::few;
use crate::adapters::cluster::nodes::NodeRow;
use crate::adapters::cluster::objects::Object;
use crate::adapters::cluster::others::DaemonSets;
use crate::adapters::cluster::others::NodeClasses;
use crate::adapters::cluster::pods::PodRow;
use crate::config::Config;

/// How many nodes are ours.
pub(super) fn scope(config: &Config, nodes: &[NodeRow]) -> Finding {
    let taken = nodes.iter().filter(|row| is_ours(config, row)).count();
    let found = format!("{taken} of {} nodes are cared for", nodes.len());
    match taken {
        0 => Finding::yellow(found, "check `nodes.selector`, if there are GPU Spot nodes now"),
        _ => Finding::green(found),
    }
}

/// The UID of the DaemonSet of our agents.
pub(super) fn agents_of(config: &Config, daemons: &[Object<DaemonSets>]) -> Option<String> {
    let ours = |one: &&Object<DaemonSets>| {
        let labels = &one.spec["selector"]["matchLabels"];
        one.namespace() == config.namespace
            && labels["app.kubernetes.io/name"] == "lifeboat"
            && labels["app.kubernetes.io/component"] == "agent"
    };
    daemons.iter().find(ours).map(|one| one.uid().to_owned())
}

/// Whether a pod is one of them, and runs.
pub(super) fn is_agent(pod: &PodRow, set: Option<&str>) -> bool {
    let owner = pod.controller.as_ref().map(|(_, uid)| uid.as_str());
    owner.is_some() && owner == set && pod.phase == "Running" && pod.deletion.is_none()
}

/// Nodes of ours, and others with GPUs that work is restored on, without an agent.
pub(super) fn agents(
    config: &Config,
    nodes: &[NodeRow],
    (pods, daemons): (&[PodRow], &[Object<DaemonSets>]),
) -> Vec<Finding> {
    let matter = |row: &&NodeRow| {
        let has_gpu =
            row.extended.iter().any(|(name, count)| name.starts_with("nvidia.com/") && *count > 0);
        let is_ready = row.ready.is_none_or(|(ready, _)| ready);
        is_ready && row.deleted_at.is_none() && (has_gpu || is_ours(config, row))
    };
    let matter: Vec<&NodeRow> = nodes.iter().filter(matter).collect();
    let set = agents_of(config, daemons);
    if set.is_none() {
        return vec![Finding::red(
            format!("there is no DaemonSet of agents in namespace `{}`", config.namespace),
            "install the chart there, or set `namespace` to where it is",
        )];
    }
    let cared: Vec<&str> = pods
        .iter()
        .filter(|pod| is_agent(pod, set.as_deref()))
        .filter_map(|pod| pod.node.as_deref())
        .collect();
    let missing: Vec<String> = matter
        .iter()
        .filter(|row| !cared.contains(&row.name.as_str()))
        .map(|row| format!("`{}`", row.name))
        .collect();
    if missing.is_empty() {
        return vec![Finding::green(format!("each of {} GPU nodes has its agent", matter.len()))];
    }
    vec![Finding::red(
        format!("{} of {} GPU nodes have no agent: {}", missing.len(), matter.len(), few(&missing)),
        "check `agent.nodeSelectorTerms` and `agent.tolerations` of the chart, and the pods of its \
         DaemonSet",
    )]
}

/// How the metadata service of new nodes answers.
pub(super) fn metadata_service(classes: &[Object<NodeClasses>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for class in classes {
        let options = &class.spec["metadataOptions"];
        let named = |what: &str| format!("EC2NodeClass `{}` {what}", class.name());
        if options["httpEndpoint"] == "disabled" {
            findings.push(Finding::red(
                named("has no metadata service"),
                "set `metadataOptions.httpEndpoint` to `enabled`: the agent hears of the notice \
                 there when the queue or the controller is away",
            ));
        }
        // Karpenter's own default is 1.
        let hops = options["httpPutResponseHopLimit"].as_u64().unwrap_or(1);
        if hops > 1 {
            findings.push(Finding::yellow(
                named(&format!("answers {hops} hops away")),
                "set `metadataOptions.httpPutResponseHopLimit` to 1: the agent is on the host's \
                 network and needs no more, and with more every pod may speak as the node",
            ));
        }
        if options["httpTokens"] == "optional" {
            findings.push(Finding::yellow(
                named("answers without a token"),
                "set `metadataOptions.httpTokens` to `required`",
            ));
        }
    }
    if findings.is_empty() && !classes.is_empty() {
        let count = classes.len();
        findings.push(Finding::green(format!("{count} node classes keep their metadata near")));
    }
    findings
}

fn is_ours(config: &Config, row: &NodeRow) -> bool {
    config.nodes.selector.takes(&row.labels, &row.extended)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use super::*;
    use crate::commands::doctor::Health;
    use crate::commands::doctor::worst;

    fn class(options: &Value) -> Vec<Object<NodeClasses>> {
        let class = json!({"metadata": {"name": "gpu"}, "spec": {"metadataOptions": options}});
        vec![serde_json::from_value(class).unwrap()]
    }

    #[test]
    fn a_metadata_service_that_harms_is_named() {
        for (options, expected) in [
            (Value::Null, Health::Green),
            (json!({"httpPutResponseHopLimit": 1, "httpTokens": "required"}), Health::Green),
            (json!({"httpPutResponseHopLimit": 2}), Health::Yellow),
            (json!({"httpTokens": "optional"}), Health::Yellow),
            (json!({"httpEndpoint": "disabled"}), Health::Red),
        ] {
            let found = metadata_service(&class(&options));
            assert_eq!(worst(&found), expected, "{options}");
        }
        assert_eq!(metadata_service(&[]), []);
    }
}
