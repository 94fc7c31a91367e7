//! The tier itself: it starts, it serves nodes and pods, Karpenter buys, and nothing is left running.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::DeleteParams;
use kube::api::DynamicObject;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::api::PostParams;
use kube::discovery::ApiResource;
use lifeboat_chaos::control_plane;
use lifeboat_chaos::control_plane::ControlPlane;
use lifeboat_chaos::control_plane::FAKE_NODE;
use lifeboat_chaos::control_plane::Part;
use lifeboat_chaos::control_plane::Settings;
use lifeboat_chaos::control_plane::cloud::Behavior;
use lifeboat_chaos::control_plane::cloud::Pool;
use lifeboat_chaos::control_plane::identity::Identity;
use lifeboat_chaos::control_plane::stages;
use serde_json::Value;
use serde_json::json;

/// How long anything here may take that happens at all, on a machine that does much else too.
const SOON: Duration = Duration::from_mins(4);

/// The folder of the programs; `None`, said aloud, where they were not built.
pub(crate) fn binaries() -> Option<PathBuf> {
    let found = control_plane::binaries();
    if found.is_none() {
        eprintln!("skipped: the control plane is not built (`make cluster-test` does it)");
    }
    found
}

#[tokio::test]
async fn pods_keep_their_grace_and_end_with_143() {
    let Some(binaries) = binaries() else { return };
    let folder = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start(Settings::new(&binaries, folder.path())).await.unwrap();
    make_node(&plane, "gpu-1").await;
    let pods: Api<Pod> = Api::default_namespaced(plane.client());
    for (name, annotation) in [("whole", ""), ("early", stages::ENDS_AFTER)] {
        let annotations = if annotation.is_empty() { json!({}) } else { json!({annotation: "1s"}) };
        make_pod(&pods, name, &json!({"annotations": annotations, "finalizers": ["test/keep"]}))
            .await;
        eventually(name, async || phase(&pods, name).await == "Running").await;
    }
    let asked = Timestamp::from_second(now().as_second()).unwrap();
    for name in ["whole", "early"] {
        pods.delete(name, &DeleteParams::default().grace_period(4)).await.unwrap();
        eventually(name, async || phase(&pods, name).await == "Failed").await;
    }
    let ends = async |name: &str| {
        let pod = serde_json::to_value(pods.get(name).await.unwrap()).unwrap();
        let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(ended["exitCode"], stages::TERMINATED);
        let at: Timestamp = ended["finishedAt"].as_str().unwrap().parse().unwrap();
        at.duration_since(asked)
    };
    let whole = ends("whole").await;
    assert!(whole >= SignedDuration::from_secs(4), "{whole:?}");
    let early = ends("early").await - whole;
    assert!(early < SignedDuration::from_secs(3), "{early:?}");

    // The API server counts a shorter grace from the first request, but lets a second pass at least.
    make_pod(&pods, "twice", &json!({"finalizers": ["test/keep"]})).await;
    eventually("twice", async || phase(&pods, "twice").await == "Running").await;
    pods.delete("twice", &DeleteParams::default().grace_period(600)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    pods.delete("twice", &DeleteParams::default().grace_period(3)).await.unwrap();
    let left = pods.get("twice").await.unwrap().metadata.deletion_grace_period_seconds;
    assert_eq!(left, Some(1));
    eventually("twice", async || phase(&pods, "twice").await == "Failed").await;
}

#[tokio::test]
async fn a_part_that_is_killed_comes_back_and_identities_are_kept_apart() {
    let Some(binaries) = binaries() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut plane = ControlPlane::start(Settings::new(&binaries, folder.path())).await.unwrap();
    make_node(&plane, "gpu-1").await;
    for part in [Part::ApiServer, Part::Etcd, Part::Kwok] {
        let before = plane.pid(part);
        plane.restart(part).await.unwrap();
        assert_ne!(plane.pid(part), before);
    }
    let nodes: Api<Node> = Api::all(plane.client());
    eventually("the node is served", async || nodes.get("gpu-1").await.is_ok()).await;

    let pods: Api<Pod> = Api::default_namespaced(plane.client());
    make_pod(&pods, "agent", &json!({})).await;
    eventually("the pod runs", async || phase(&pods, "agent").await == "Running").await;
    let agent = plane.client_of(&Identity::pod("default", "agent")).await.unwrap();
    let review = Api::<SelfSubjectReview>::all(agent)
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .unwrap();
    let about = review.status.and_then(|status| status.user_info?.extra).unwrap_or_default();
    assert_eq!(about["authentication.kubernetes.io/node-name"], ["gpu-1"]);

    let somebody = plane.client_of(&Identity::account("team", "somebody")).await.unwrap();
    let refused = Api::<Node>::all(somebody).get("gpu-1").await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 403), "{refused:?}");
    let entries = plane.audit().unwrap();
    let entry = entries.iter().rfind(|entry| entry.user == "system:serviceaccount:team:somebody");
    let entry = entry.expect("the audit log holds the request that was refused");
    assert_eq!((entry.verb.as_str(), entry.name.as_str(), entry.code), ("get", "gpu-1", 403));
}

#[tokio::test]
async fn karpenter_buys_what_is_left_and_ends_what_is_drained() {
    let Some(binaries) = binaries() else { return };
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::new(&binaries, folder.path()).with_karpenter();
    let plane = ControlPlane::start(settings).await.unwrap();
    let cloud = plane.cloud();
    let zone = |zone: &str| Pool { zone: Some(zone.to_owned()), ..Pool::default() };
    let refused = vec![zone("us-east-1a"), zone("us-east-1b")];
    cloud.behave(&Behavior { refused, ..Behavior::default() }).unwrap();
    make_pool(&plane).await;
    let pods: Api<Pod> = Api::default_namespaced(plane.client());
    make_pod(&pods, "train", &json!({"annotations": {stages::ENDS_AFTER: "1s"}})).await;
    eventually("the pod runs", async || phase(&pods, "train").await == "Running").await;
    let bought = cloud.asked().unwrap().into_iter().find(|asked| asked.what == "launch").unwrap();
    assert_eq!((bought.instance_type.as_str(), bought.zone.as_str()), ("g5.xlarge", "us-east-1c"));
    let nodes: Api<Node> = Api::all(plane.client());
    let node = nodes.get(&bought.node).await.unwrap();
    let provider = node.spec.unwrap().provider_id.unwrap();
    assert_eq!(provider, format!("aws:///us-east-1c/{}", bought.instance));
    assert_eq!(bought.instance.len(), "i-0123456789abcdef0".len());

    claims(&plane).delete(&bought.claim, &DeleteParams::default()).await.unwrap();
    let asked = async || {
        let asked = cloud.asked().unwrap();
        asked.iter().any(|one| one.what == "terminate" && one.instance == bought.instance)
    };
    eventually("the end of the instance is asked for", asked).await;
    eventually("the node is gone", async || nodes.get(&bought.node).await.is_err()).await;
}

#[test]
fn nothing_outlives_the_process_that_started_it() {
    let Some(binaries) = binaries() else { return };
    let folder = tempfile::tempdir().unwrap();
    let keeper = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(["cluster", "keep", "--karpenter", "--state"])
        .arg(folder.path())
        .env("LIFEBOAT_CLUSTER_BIN", binaries)
        .stdout(Stdio::null())
        .spawn();
    let keeper = Ended(keeper.unwrap());
    let ready = folder.path().join("ready");
    wait("the control plane is ready", || ready.exists());
    let pids = pids(folder.path());
    assert_eq!(pids.len(), Part::ALL.len());
    drop(keeper);
    wait("all of them are gone", || pids.iter().all(|pid| !lives(*pid)));
}

/// A process that is killed when it is dropped, by a test that fails too.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn make_node(plane: &ControlPlane, name: &str) {
    let nodes: Api<Node> = Api::all(plane.client());
    let (annotation, value) = FAKE_NODE;
    let node = json!({"metadata": {"name": name, "annotations": {annotation: value}}});
    nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
    let ready = async || {
        let node = serde_json::to_value(nodes.get(name).await.unwrap()).unwrap();
        let taints = node["spec"]["taints"].as_array().map_or(0, Vec::len);
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let is_ready = |one: &Value| one["type"] == "Ready" && one["status"] == "True";
        taints == 0 && conditions.iter().any(is_ready)
    };
    eventually("the node is ready", ready).await;
}

async fn make_pod(pods: &Api<Pod>, name: &str, metadata: &Value) {
    let mut pod = json!({
        "metadata": metadata,
        "spec": {
            "terminationGracePeriodSeconds": 30,
            "containers": [{"name": "main", "image": "train"}],
        },
    });
    pod["metadata"]["name"] = json!(name);
    if name == "train" {
        pod["spec"]["containers"][0]["resources"] = json!({"limits": {"nvidia.com/gpu": "1"}});
    }
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
}

async fn make_pool(plane: &ControlPlane) {
    let class = json!({"group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "default"});
    let requirements = json!([
        {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["spot"]},
        {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["g5.xlarge"]},
    ]);
    let pool = json!({
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": "spot"},
        "spec": {"template": {"spec": {"nodeClassRef": class, "requirements": requirements}}},
    });
    let class = json!({
        "apiVersion": "karpenter.kwok.sh/v1alpha1",
        "kind": "KWOKNodeClass",
        "metadata": {"name": "default"},
    });
    for object in [class, pool] {
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let types = object.types.clone().unwrap();
        let (group, version) = types.api_version.split_once('/').unwrap();
        let kind = kube::core::GroupVersionKind::gvk(group, version, &types.kind);
        let plural = format!(
            "{}{}",
            types.kind.to_lowercase(),
            if types.kind.ends_with('s') { "es" } else { "s" }
        );
        let api: Api<DynamicObject> =
            Api::all_with(plane.client(), &ApiResource::from_gvk_with_plural(&kind, &plural));
        let name = object.metadata.name.clone().unwrap();
        let apply = PatchParams::apply("test").force();
        api.patch(&name, &apply, &Patch::Apply(&object)).await.unwrap();
    }
}

fn claims(plane: &ControlPlane) -> Api<DynamicObject> {
    let kind = kube::core::GroupVersionKind::gvk("karpenter.sh", "v1", "NodeClaim");
    Api::all_with(plane.client(), &ApiResource::from_gvk_with_plural(&kind, "nodeclaims"))
}

async fn phase(pods: &Api<Pod>, name: &str) -> String {
    let pod = pods.get_opt(name).await.unwrap();
    pod.and_then(|pod| pod.status?.phase).unwrap_or_default()
}

async fn eventually(what: &str, is: impl AsyncFn() -> bool) {
    let waiting = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

#[track_caller]
fn wait(what: &str, is: impl Fn() -> bool) {
    for _ in 0..SOON.as_millis() / 50 {
        if is() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("not in time: {what}");
}

fn pids(state: &Path) -> Vec<u32> {
    let files = fs::read_dir(state.join("pids")).unwrap();
    files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap().parse().unwrap()).collect()
}

/// Whether a process is there; one that nobody waited for is not.
fn lives(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    !after_name.starts_with('Z')
}

fn now() -> Timestamp {
    lifeboat::clock::Clock::system().now()
}
