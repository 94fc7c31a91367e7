//! The webhook as the chart registers it, asked by the real API server: what pods come back with,
//! that they come whatever is wrong with it, and that nobody notices a new certificate.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use lifeboat::clock::Clock;
use lifeboat::controller::webhook::certificate;
use lifeboat::controller::webhook::certificate::Certificate;
use lifeboat::controller::webhook::keep;
use lifeboat_chaos::company::Company;
use lifeboat_chaos::company::LABEL;
use lifeboat_chaos::company::objects::JOB;
use lifeboat_chaos::company::objects::Kind;
use lifeboat_chaos::company::objects::NODE;
use lifeboat_chaos::company::objects::Objects;
use lifeboat_chaos::company::objects::POD;
use lifeboat_chaos::world::cluster::object::annotation;
use lifeboat_chaos::world::cluster::object::text;
use lifeboat_chaos::world::cluster::object::uid;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;

use crate::line;
use crate::theater::Turn;
use crate::theater::eventually;
use crate::theater::on_stage;

const MANIFEST: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/lifeboat/files/webhook.yaml");
const SECRET: Kind = Kind("v1", "Secret");
const EVENT: Kind = Kind("v1", "Event");
const CONFIGURATION: Kind = Kind("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration");
const NAME: &str = "lifeboat-webhook";
const JOB_KEY: &str = "lifeboat.dev/job-key";

#[test]
fn a_protected_pod_is_given_what_it_needs_and_whatever_is_wrong_it_is_made() {
    on_stage(async |turn: Turn| {
        let port = free_port();
        let settings = turn.settings("webhook").with("webhook.listen", &at(port));
        let mut company = turn.company(settings).await;
        // Long over: the first controller makes another.
        let old = certificate::make(&keep::name("webhook"), None, ago(100)).unwrap();
        register(&company, port, &old).await;

        let before = make(&company, &pod("before", "sdk")).await;
        assert!(!has_volume(&before), "nobody serves, and the pod is changed");

        company.start_controller(0).unwrap();
        let given = until_given(&company).await;
        let container = &given["spec"]["containers"][0];
        assert_eq!(container["env"][0]["name"], "LIFEBOAT_SOCKET");
        let mounts = container["volumeMounts"].as_array().unwrap();
        assert!(mounts.iter().any(|mount| mount["mountPath"] == "/run/lifeboat"));
        assert_eq!(annotation(&given, "karpenter.sh/do-not-disrupt"), "true");
        assert_eq!(annotation(&given, "lifeboat.dev/held"), "admission");
        let plain = make(&company, &pod("plain", "none")).await;
        assert!(!has_volume(&plain) && annotation(&plain, "lifeboat.dev/held").is_empty());

        the_key_is_that_of_what_stands_above(&company).await;
        what_was_not_done_is_told(&company, &given, &before).await;
        nobody_notices_a_new_certificate(&company, port).await;

        company.kill_controller(0).await;
        let after = make(&company, &pod("after", "sdk")).await;
        assert!(!has_volume(&after), "nobody serves, and the pod is changed");
        company.objects.delete(CONFIGURATION, ("", "lifeboat")).await.unwrap();
        company.end().await;
    });
}

/// A node that comes with the startup taint takes no pods until its agent is ready; the taints of
/// others stay.
#[test]
fn a_new_node_is_opened_by_its_agent() {
    on_stage(async |turn: Turn| {
        let mut company = turn.company(turn.settings("opening")).await;
        company.add_managed_node("opening-1", "i-0aaaaaaaaaaaaaab1").await.unwrap();
        let taints = json!([
            {"key": "lifeboat.dev/agent-not-ready", "effect": "NoSchedule"},
            {"key": "nvidia.com/gpu", "effect": "NoSchedule"},
        ]);
        let tainted = json!({"spec": {"taints": taints}});
        company.objects.merge(NODE, ("", "opening-1"), tainted).await.unwrap();
        company.start_controller(0).unwrap();
        eventually("the node without the startup taint", async || {
            let node = company.objects.find(NODE, ("", "opening-1")).await?;
            let taints = node["spec"]["taints"].as_array()?;
            let keys: Vec<&str> = taints.iter().filter_map(|one| one["key"].as_str()).collect();
            (keys == ["nvidia.com/gpu"]).then_some(())
        })
        .await;
        let pods = company.objects.list(POD, "").await;
        let ready = json!({"type": "Ready", "status": "True"});
        let is_ready = |pod: &Value| {
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions
                .iter()
                .any(|one| one["type"] == ready["type"] && one["status"] == ready["status"])
        };
        let agent = pods.iter().find(|pod| text(pod, "/spec/nodeName") == "opening-1");
        assert!(agent.is_some_and(is_ready), "opened without an agent");
        company.end().await;
    });
}

async fn the_key_is_that_of_what_stands_above(company: &Company) {
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "keyed", "namespace": "default", "labels": {LABEL: company.name()}},
        "spec": {
            "completionMode": "Indexed", "completions": 2, "parallelism": 2,
            "template": template(company, "sdk"),
        },
    });
    let job = company.objects.create(job).await.unwrap();
    let pods = eventually("both pods of the Job", async || {
        let pods = company.objects.list(POD, "job-name=keyed").await;
        (pods.len() == 2).then_some(pods)
    })
    .await;
    let mut keys: Vec<&str> = pods.iter().map(|pod| annotation(pod, JOB_KEY)).collect();
    keys.sort_unstable();
    assert_eq!(keys, [format!("{}.0", uid(&job)), format!("{}.1", uid(&job))]);
    company.objects.delete(JOB, ("default", "keyed")).await.unwrap();

    define_ray(&company.objects).await;
    let owner = |api: &str, kind: &str, uid: &str| {
        json!([{"apiVersion": api, "kind": kind, "name": kind.to_lowercase(), "uid": uid,
                "controller": true}])
    };
    let above = "00000000-0000-4000-8000-0000000000aa";
    let cluster = json!({
        "apiVersion": "ray.io/v1", "kind": "RayCluster",
        "metadata": {
            "name": "raycluster", "namespace": "default",
            "ownerReferences": owner("ray.io/v1", "RayJob", above),
        },
    });
    let cluster =
        eventually("a RayCluster", async || company.objects.create(cluster.clone()).await.ok())
            .await;
    let mut head = pod("head", "sdk");
    head["metadata"]["ownerReferences"] = owner("ray.io/v1", "RayCluster", uid(&cluster));
    head["metadata"]["labels"]["ray.io/node-type"] = json!("head");
    let head = make(company, &head).await;
    assert_eq!(annotation(&head, JOB_KEY), format!("{above}.head"));
}

/// Of a pod without a job key, and of one that the webhook never saw.
async fn what_was_not_done_is_told(company: &Company, bare: &Value, unseen: &Value) {
    for (pod, said) in [(bare, "nothing is restored"), (unseen, "the webhook did not see it")] {
        eventually(said, async || {
            let events = company.objects.list(EVENT, "").await;
            let about = events.into_iter().find(|event| {
                event["reason"] == "NotInjected" && event["involvedObject"]["uid"] == uid(pod)
            })?;
            about["message"].as_str()?.contains(said).then_some(())
        })
        .await;
    }
}

/// Another replica puts the next certificate into the Secret. From then until the new one is shown,
/// no pod is made without what it needs.
async fn nobody_notices_a_new_certificate(company: &Company, port: u16) {
    let name = keep::name(company.name());
    let secret = company.objects.find(SECRET, (company.name(), NAME)).await.unwrap();
    let last = read(&secret);
    assert!(last.is_good(&name, Clock::system().now()), "what was long over is still there");
    let next = certificate::make(&name, Some(&last), Clock::system().now()).unwrap();
    let data = json!({"data": encoded(&next)});
    company.objects.merge(SECRET, (company.name(), NAME), data).await.unwrap();
    let authority = newest(&next);
    for number in 0..200 {
        let made = make(company, &pod(&format!("turn-{number}"), "sdk")).await;
        assert!(has_volume(&made), "pod {number} was made without");
        if line::is_trusted(port, &name, &authority) {
            let made = make(company, &pod("turned", "sdk")).await;
            assert!(has_volume(&made));
            return;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    panic!("the new certificate was not shown");
}

/// Registers the webhook as the chart does, but for where it is: no Service leads to loopback, other
/// than one that is only a name.
async fn register(company: &Company, port: u16, certificate: &Certificate) {
    let text = std::fs::read_to_string(MANIFEST).unwrap();
    let text = text.replace("lifeboat-system", company.name());
    company.objects.delete(CONFIGURATION, ("", "lifeboat")).await.ok();
    for document in serde_yaml_ng::Deserializer::from_str(&text) {
        let mut object = Value::deserialize(document).unwrap();
        match object["kind"].as_str().unwrap() {
            "Service" => {
                object["spec"] = json!({"type": "ExternalName", "externalName": "localhost"});
            }
            "Secret" => object["data"] = encoded(certificate),
            _ => object["webhooks"][0]["clientConfig"]["service"]["port"] = json!(port),
        }
        company.objects.create(object).await.unwrap();
    }
}

/// Makes pods until one comes back with our volume: the API server has heard of everything then.
async fn until_given(company: &Company) -> Value {
    let mut number = 0;
    eventually("a pod with the volume", async || {
        number += 1;
        let made = make(company, &pod(&format!("given-{number}"), "sdk")).await;
        has_volume(&made).then_some(made)
    })
    .await
}

async fn make(company: &Company, pod: &Value) -> Value {
    let mut pod = pod.clone();
    pod["metadata"]["labels"][LABEL] = json!(company.name());
    company.objects.create(pod).await.unwrap()
}

/// A pod that no node takes.
fn pod(name: &str, mode: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "default",
            "annotations": {"lifeboat.dev/checkpoint": mode},
        },
        "spec": {
            "nodeSelector": {"nowhere": "true"},
            "containers": [{"name": "train", "image": "train"}],
        },
    })
}

fn template(company: &Company, mode: &str) -> Value {
    let pod = pod("", mode);
    let mut spec = pod["spec"].clone();
    spec["restartPolicy"] = json!("Never");
    let labels = json!({LABEL: company.name()});
    let annotations = &pod["metadata"]["annotations"];
    json!({"metadata": {"labels": labels, "annotations": annotations}, "spec": spec})
}

/// `KubeRay`'s definition, as far as a name is concerned.
async fn define_ray(objects: &Objects) {
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "rayclusters.ray.io"},
        "spec": {
            "group": "ray.io", "scope": "Namespaced",
            "names": {"plural": "rayclusters", "singular": "raycluster", "kind": "RayCluster"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": schema},
            }],
        },
    });
    // A run before this one may have made it.
    objects.create(definition).await.ok();
}

fn has_volume(pod: &Value) -> bool {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    volumes.into_iter().any(|volume| volume["csi"]["driver"] == "lifeboat.dev")
}

fn read(secret: &Value) -> Certificate {
    let data = secret["data"].as_object().unwrap().iter();
    let decoded = |value: &Value| STANDARD.decode(value.as_str().unwrap()).unwrap();
    let data = data.map(|(key, value)| (key.clone(), decoded(value)));
    certificate::read(&data.collect()).unwrap()
}

fn encoded(certificate: &Certificate) -> Value {
    let parts = certificate.parts().into_iter();
    parts.map(|(name, part)| (name.to_owned(), json!(STANDARD.encode(part)))).collect()
}

/// The authority that signed a certificate, without the last one's.
fn newest(certificate: &Certificate) -> Vec<u8> {
    const END: &str = "-----END CERTIFICATE-----\n";
    let all = String::from_utf8(certificate.authorities().to_vec()).unwrap();
    let (first, rest) = all.split_once(END).unwrap();
    assert!(rest.contains(END), "the last authority is trusted meanwhile");
    format!("{first}{END}").into_bytes()
}

fn ago(days: u64) -> Timestamp {
    let now = Clock::system().now();
    lifeboat_domain::deadline::earlier(now, Duration::from_hours(24 * days))
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn at(port: u16) -> String {
    format!("127.0.0.1:{port}")
}
