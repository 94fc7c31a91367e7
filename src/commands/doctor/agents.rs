//! What the agents say of themselves: their own counts, read through the API server.

use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use http::Request;
use kube::Client;

use super::Finding;
use super::few;
use crate::adapters::cluster::pods::PodRow;
use crate::config::Config;

/// Agents that are asked: what is wrong with one is mostly wrong with many.
const ASKED: usize = 50;
/// Of them at a time.
const AT_A_TIME: usize = 8;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What an agent cannot do without, by the adapter that counts its errors.
const SENSES: [(&str, &str, &str); 3] = [
    (
        "nvml",
        "NVIDIA's library does not answer on",
        "see the table of docs/install.md: saves go on, and that a GPU is free is proven later",
    ),
    (
        "kubelet",
        "kubelet's pod-resources do not answer on",
        "check `/var/lib/kubelet/pod-resources`: without it nobody knows who shares a GPU, and \
         each is taken for alone",
    ),
    (
        "imds",
        "the metadata service does not answer on",
        "check the hop limit and `httpEndpoint`: there the agent hears of the notice when the \
         queue is late",
    ),
];

pub(super) async fn examine(config: &Config, client: &Client, agents: &[&PodRow]) -> Vec<Finding> {
    if agents.is_empty() {
        return Vec::new();
    }
    let port = config.admin.listen.port();
    let asked = agents.iter().take(ASKED).map(|pod| ask(client, pod, port));
    let answers: Vec<(String, Option<String>)> =
        stream::iter(asked).buffer_unordered(AT_A_TIME).collect().await;
    judge(&answers)
}

async fn ask(client: &Client, pod: &PodRow, port: u16) -> (String, Option<String>) {
    let node = pod.node.clone().unwrap_or_default();
    let (namespace, name) = (&pod.namespace, &pod.name);
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/metrics");
    let Ok(request) = Request::get(path).body(Vec::new()) else { return (node, None) };
    let answer = tokio::time::timeout(PATIENCE, client.request_text(request)).await;
    (node, answer.ok().and_then(Result::ok))
}

fn judge(answers: &[(String, Option<String>)]) -> Vec<Finding> {
    let silent: Vec<String> =
        answers.iter().filter(|(_, text)| text.is_none()).map(|(node, _)| ticked(node)).collect();
    let mut findings = Vec::new();
    for (adapter, found, remedy) in SENSES {
        let count = |text: &Option<String>| text.as_ref().is_some_and(|text| errs(text, adapter));
        let mut failing: Vec<String> =
            answers.iter().filter(|(_, text)| count(text)).map(|(node, _)| ticked(node)).collect();
        failing.sort();
        if !failing.is_empty() {
            let found =
                format!("{found} {} of {} nodes: {}", failing.len(), answers.len(), few(&failing));
            findings.push(Finding::yellow(found, remedy));
        }
    }
    if !silent.is_empty() {
        findings.push(Finding::yellow(
            format!(
                "{} of {} agents were not asked: {}",
                silent.len(),
                answers.len(),
                few(&silent)
            ),
            "check the role's get on pods/proxy, and the agents' logs",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::green(format!("{} agents see what they need", answers.len())));
    }
    findings
}

/// Whether an agent counted an error of this adapter since it began.
fn errs(metrics: &str, adapter: &str) -> bool {
    let label = format!("adapter=\"{adapter}\"");
    let counts = metrics.lines().filter(|line| line.starts_with("lifeboat_errors_total{"));
    let mut counts = counts.filter(|line| line.contains(&label));
    counts.any(|line| {
        let count = line.rsplit_once('}').and_then(|(_, rest)| rest.split_whitespace().next());
        count.and_then(|count| count.parse::<f64>().ok()).is_some_and(|count| count > 0.0)
    })
}

fn ticked(node: &str) -> String {
    format!("`{node}`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::Health;

    #[test]
    fn an_agent_that_does_not_see_its_gpus_is_named() {
        let healthy = "# TYPE lifeboat_errors counter\n\
                       lifeboat_errors_total{adapter=\"nvml\",label=\"late\"} 0\n\
                       lifeboat_errors_total{adapter=\"store\",label=\"late\"} 9\n# EOF\n";
        let blind = "lifeboat_errors_total{adapter=\"nvml\",label=\"library\"} 12\n";
        let deaf = "lifeboat_errors_total{adapter=\"kubelet\",label=\"away\"} 1 1700000000\n";
        let of = |text: &str| vec![("gpu-1".to_owned(), Some(text.to_owned()))];
        assert_eq!(judge(&of(healthy))[0].health, Health::Green);
        assert!(
            judge(&of(blind))[0].found.starts_with("NVIDIA's library does not answer on 1 of 1")
        );
        assert!(judge(&of(deaf))[0].found.starts_with("kubelet's pod-resources do not answer"));
        let silent = judge(&[("gpu-1".to_owned(), None)]);
        assert_eq!(silent[0].found, "1 of 1 agents were not asked: `gpu-1`");
    }
}
