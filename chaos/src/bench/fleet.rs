//! Nodes with EC2's provider ids and protected pods on slices of their GPUs, made and taken away.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use futures::StreamExt;
use http::Method;
use http::Request;
use http::header::CONTENT_TYPE;
use lifeboat::crd::marks;
use serde_json::Value;
use serde_json::json;

use crate::bench::screen::Screen;

/// The namespace of the pods.
pub(super) const NAMESPACE: &str = "storm";
/// The label on everything that a bench makes.
pub(super) const LABEL: &str = "lifeboat.dev/bench";
/// Requests at a time while things are made.
const HANDS: usize = 32;
/// GPUs of each node.
const GPUS: usize = 4;

/// Nodes in a row, and as many pods on each.
#[derive(Clone, Debug)]
pub(super) struct Fleet {
    name: &'static str,
    /// How many nodes.
    pub(super) nodes: usize,
    /// How many pods each has.
    pub(super) pods: usize,
    /// How long each pod may take to end.
    grace: u64,
    /// When the pods are held.
    hold: Hold,
}

/// When pods are held against disruption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Hold {
    /// From their admission on, as is the default.
    Always,
    /// On the notice: a request for each pod.
    OnSignal,
}

impl Fleet {
    /// Nodes that are named after the fleet.
    pub(super) fn new(name: &'static str, nodes: usize, pods: usize) -> Self {
        Self { name, nodes, pods, grace: 115, hold: Hold::OnSignal }
    }

    /// The same with pods that end as soon as they are asked to, with no kubelet to say so.
    pub(super) fn without_grace(self) -> Self {
        Self { grace: 0, ..self }
    }

    /// The same with pods that are held as it says.
    pub(super) fn held(self, hold: Hold) -> Self {
        Self { hold, ..self }
    }

    /// The name of a node.
    pub(super) fn node(&self, number: usize) -> String {
        format!("{}-{number:05}", self.name)
    }

    /// The number of the node with this name.
    pub(super) fn number(&self, node: &str) -> Option<usize> {
        let number = node.strip_prefix(self.name)?.strip_prefix('-')?.parse().ok()?;
        (number < self.nodes).then_some(number)
    }

    /// The instance of a node: its name in hexadecimal digits, and its number.
    pub(super) fn instance(&self, number: usize) -> String {
        let letters = self.name.bytes().take(4).fold(0, |all, one| (all << 8) | u64::from(one));
        format!("i-{letters:08x}{number:09x}")
    }

    /// The number of the node of this instance.
    pub(super) fn number_of(&self, instance: &str) -> Option<usize> {
        let number = usize::from_str_radix(instance.get(10..)?, 16).ok()?;
        (number < self.nodes && self.instance(number) == instance).then_some(number)
    }

    /// Makes the nodes and the pods.
    pub(super) async fn make(&self, client: &kube::Client, screen: Screen) -> anyhow::Result<()> {
        let all = 0..self.nodes;
        let bar = screen.bar(&format!("{} nodes", self.name), self.nodes);
        let nodes = all.clone().map(|number| {
            let bar = &bar;
            async move {
                post(client, "/api/v1/nodes", &self.node_object(number)).await?;
                bar.inc(1);
                anyhow::Ok(())
            }
        });
        each(nodes).await?;
        bar.finish_and_clear();
        let bar = screen.bar(&format!("{} pods", self.name), self.nodes * self.pods);
        let pods = all.flat_map(|number| (0..self.pods).map(move |pod| (number, pod)));
        let pods = pods.map(|(number, pod)| {
            let bar = &bar;
            async move {
                self.make_pod(client, number, pod).await?;
                bar.inc(1);
                anyhow::Ok(())
            }
        });
        each(pods).await?;
        bar.finish_and_clear();
        Ok(())
    }

    async fn make_pod(
        &self,
        client: &kube::Client,
        number: usize,
        pod: usize,
    ) -> anyhow::Result<()> {
        let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
        let name = format!("{}-{pod}", self.node(number));
        post(client, &pods, &self.pod_object(number, &name)).await?;
        let status = json!({ "status": {
            "phase": "Running",
            "conditions": [{ "type": "Ready", "status": "True" }],
            "containerStatuses": [{
                "name": "train", "image": "train", "imageID": "", "ready": true, "restartCount": 0,
                "containerID": format!("containerd://{name}"), "state": { "running": {} },
            }],
        }});
        let request = Request::patch(format!("{pods}/{name}/status"))
            .header(CONTENT_TYPE, "application/merge-patch+json")
            .body(status.to_string().into_bytes())?;
        client.request_text(request).await?;
        Ok(())
    }

    /// A node as it is made.
    pub(super) fn node_object(&self, number: usize) -> Value {
        let name = self.node(number);
        let slices = self.pods.max(GPUS).to_string();
        let room = json!({
            "cpu": "48", "memory": "192Gi", "pods": "110", "nvidia.com/gpu": slices,
        });
        let labels = BTreeMap::from([
            (LABEL, self.name),
            ("kubernetes.io/hostname", &name),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", "amd64"),
            ("karpenter.sh/capacity-type", "spot"),
            ("node.kubernetes.io/instance-type", "g5.12xlarge"),
            ("topology.kubernetes.io/zone", "us-east-2a"),
            ("nvidia.com/gpu.present", "true"),
        ]);
        let ready = json!({
            "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
        });
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name, "labels": labels, "annotations": { "bench": self.name } },
            "spec": { "providerID": format!("aws:///us-east-2a/{}", self.instance(number)) },
            "status": { "capacity": room, "allocatable": room, "conditions": [ready] },
        })
    }

    /// A pod as it is made.
    pub(super) fn pod_object(&self, number: usize, name: &str) -> Value {
        let mut annotations = BTreeMap::from([
            (marks::CHECKPOINT, "sdk"),
            (marks::JOB_KEY, name),
            (marks::HOLD, "on-signal"),
        ]);
        if self.hold == Hold::Always {
            let admitted = [
                (marks::HOLD, "always"),
                (marks::DO_NOT_DISRUPT, "true"),
                (marks::HELD, "admission"),
            ];
            annotations.extend(admitted);
        }
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": NAMESPACE, "labels": { LABEL: self.name },
                "annotations": annotations,
            },
            "spec": {
                "nodeName": self.node(number),
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": self.grace,
                "containers": [{
                    "name": "train", "image": "train",
                    "resources": { "limits": { "nvidia.com/gpu": "1" } },
                }],
            },
        })
    }
}

/// Makes the namespaces, our definitions, and Karpenter's names where it is not installed.
pub(super) async fn prepare(client: &kube::Client) -> anyhow::Result<()> {
    for name in [NAMESPACE, "lifeboat-system"] {
        let namespace =
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        post(client, "/api/v1/namespaces", &namespace).await?;
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" },
        });
        post(client, &format!("/api/v1/namespaces/{name}/serviceaccounts"), &account).await?;
    }
    for (_, definition) in lifeboat::commands::crds::definitions() {
        let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        post(client, definitions, &json!(definition)).await?;
    }
    let records = "/apis/lifeboat.dev/v1alpha1/nodeinterruptions?limit=1";
    tokio::time::timeout(Duration::from_secs(20), async {
        while client.request_text(Request::get(records).body(Vec::new())?).await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        anyhow::Ok(())
    })
    .await
    .context("our definitions are not served")?
}

/// Takes everything away that a bench made.
pub(super) async fn clear(client: &kube::Client) -> anyhow::Result<()> {
    let at_once = json!({
        "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
    });
    let collections = [
        format!("/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={LABEL}"),
        format!("/api/v1/nodes?labelSelector={LABEL}"),
        "/apis/lifeboat.dev/v1alpha1/nodeinterruptions".to_owned(),
        format!("/apis/lifeboat.dev/v1alpha1/namespaces/{NAMESPACE}/workloadcheckpoints"),
    ];
    for path in collections {
        let request = Request::delete(&path).header(CONTENT_TYPE, "application/json");
        let request = request.body(at_once.to_string().into_bytes())?;
        match client.request_text(request).await {
            Ok(_) => (),
            Err(kube::Error::Api(status)) if status.code == 404 => (),
            Err(error) => return Err(error).context(path),
        }
    }
    Ok(())
}

/// Creates an object; one that is there already is as good.
pub(super) async fn post(client: &kube::Client, path: &str, object: &Value) -> anyhow::Result<()> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(CONTENT_TYPE, "application/json")
        .body(object.to_string().into_bytes())?;
    match client.request_text(request).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{path} refused an object")),
    }
}

/// Does all of it, some at a time.
pub(super) async fn each(
    work: impl Iterator<Item = impl Future<Output = anyhow::Result<()>>>,
) -> anyhow::Result<()> {
    let mut work = std::pin::pin!(futures::stream::iter(work).buffer_unordered(HANDS));
    while let Some(done) = work.next().await {
        done?;
    }
    Ok(())
}
