//! The commands people type, over the simulated world.

use std::sync::Arc;

use jiff::Timestamp;
use lifeboat::clock::Clock;
use lifeboat::commands::checkpoints;
use lifeboat::commands::cleanup;
use lifeboat::commands::pause;
use lifeboat::commands::status;
use lifeboat::config::Config;
use lifeboat::config::Program;
use lifeboat_chaos::serve::kube_client;
use lifeboat_chaos::serve::s3_store;
use lifeboat_chaos::wire::kube;
use lifeboat_chaos::wire::s3::s3;
use lifeboat_chaos::world::World;
use lifeboat_chaos::world::cluster::Target;
use lifeboat_chaos::world::cluster::resource;
use lifeboat_chaos::world::cluster::resource::Resource;
use object_store::ObjectStore;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde_json::Value;
use serde_json::json;

const CONFIG: &str = r#"
cluster = "east"
region = "us-east-2"
queue.url = "http://sqs.simulated/123456789012/ours"
store.bucket = "checkpoints"
"#;

struct Fixture {
    world: World,
    client: ::kube::Client,
    store: Arc<dyn ObjectStore>,
}

impl Fixture {
    fn new() -> Self {
        let world = World::new(Clock::starting_at(start(), 0), 7);
        let client = kube_client(&kube::wire(&world, "tester"), "default");
        world.update(|state| state.bucket.rename("checkpoints"));
        let store = Arc::new(s3_store(&s3(world.clone()), "checkpoints").unwrap());
        Self { world, client, store }
    }

    fn put(&self, resource: Resource, object: Value) {
        self.world.update(|state| state.cluster.put(resource, object));
    }

    fn object(&self, target: &Target) -> Value {
        self.world.read(|state| Value::clone(state.cluster.get(target).unwrap()))
    }

    fn node(&self) -> Value {
        self.object(&Target::in_cluster(resource::NODE, "gpu-1"))
    }

    fn pod(&self, name: &str) -> Value {
        self.object(&Target::in_namespace(resource::POD, "team", name))
    }
}

fn start() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

fn marked_node() -> Value {
    json!({
        "metadata": {
            "name": "gpu-1",
            "labels": {"karpenter.sh/capacity-type": "spot", "nvidia.com/gpu.present": "true"},
            "annotations": {
                "lifeboat.dev/cordoned": "false",
                "lifeboat.dev/paused": "true",
                "example.com/owner": "somebody",
            },
        },
        "spec": {
            "unschedulable": true,
            "taints": [
                {"key": "dedicated", "value": "gpu", "effect": "NoSchedule"},
                {"key": "lifeboat.dev/interrupted", "value": "x", "effect": "NoSchedule"},
            ],
        },
    })
}

fn pod(name: &str, annotations: &Value) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "team", "annotations": annotations},
        "spec": {"nodeName": "gpu-1", "containers": [{"name": "main", "image": "train"}]},
        "status": {"phase": "Running"},
    })
}

#[tokio::test(start_paused = true)]
async fn cleanup_takes_back_ours_and_nothing_else() {
    let fixture = Fixture::new();
    fixture.put(resource::NAMESPACE, json!({"metadata": {"name": "team"}}));
    fixture.put(resource::NODE, marked_node());
    let held = json!({"karpenter.sh/do-not-disrupt": "true", "lifeboat.dev/held": "i-1"});
    fixture.put(resource::POD, pod("ours", &held));
    let theirs = json!({"karpenter.sh/do-not-disrupt": "true"});
    fixture.put(resource::POD, pod("theirs", &theirs));

    let named = cleanup::run(&fixture.client, cleanup::Wish::Name).await.unwrap();
    assert_eq!(
        named.lines,
        [
            "would take back the marks on node `gpu-1`",
            "would take back the hold of pod `team/ours`"
        ]
    );
    assert_eq!(fixture.node()["spec"], marked_node()["spec"]);

    let taken = cleanup::run(&fixture.client, cleanup::Wish::TakeBack).await.unwrap();
    assert_eq!((taken.lines.len(), taken.failed), (2, 0), "{:?}", taken.lines);
    let node = fixture.node();
    assert_eq!(node["metadata"]["annotations"], json!({"example.com/owner": "somebody"}));
    assert_eq!(node["spec"]["unschedulable"], Value::Null);
    assert_eq!(node["spec"]["taints"].as_array().unwrap().len(), 1);
    assert_eq!(
        fixture.pod("ours")["metadata"]["annotations"].as_object().map_or(0, serde_json::Map::len),
        0
    );
    assert_eq!(fixture.pod("theirs")["metadata"]["annotations"], theirs);

    let again = cleanup::run(&fixture.client, cleanup::Wish::TakeBack).await.unwrap();
    assert_eq!(again, cleanup::Report::default());
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_an_annotation_and_goes_again() {
    let fixture = Fixture::new();
    fixture.put(resource::NODE, json!({"metadata": {"name": "gpu-1"}}));
    fixture.put(resource::NAMESPACE, json!({"metadata": {"name": "lifeboat-system"}}));
    let node = pause::Target::Node("gpu-1".to_owned());
    let all = pause::Target::All("lifeboat-system".to_owned());

    let said = pause::set(&fixture.client, &node, pause::Wish::Pause).await.unwrap();
    assert_eq!(said, "node `gpu-1` is paused: interruptions are recorded, and nothing is done\n");
    assert_eq!(fixture.node()["metadata"]["annotations"]["lifeboat.dev/paused"], "true");
    pause::set(&fixture.client, &node, pause::Wish::Resume).await.unwrap();
    assert_eq!(fixture.node()["metadata"]["annotations"]["lifeboat.dev/paused"], Value::Null);

    let said = pause::set(&fixture.client, &all, pause::Wish::Pause).await.unwrap();
    assert!(said.starts_with("everything is paused"), "{said}");
    let missing = pause::Target::Node("gone".to_owned());
    let error = pause::set(&fixture.client, &missing, pause::Wish::Pause).await.unwrap_err();
    assert_eq!(error.to_string(), "node `gone` does not exist");
}

#[tokio::test(start_paused = true)]
async fn status_shows_open_interruptions_first() {
    let fixture = Fixture::new();
    for (name, closed) in [("i-closed", json!("2026-11-22T11:00:00Z")), ("i-open", Value::Null)] {
        let mut record = json!({
            "metadata": {"name": name},
            "spec": {"node": "gpu-1", "zone": "us-east-2a", "signals": {}},
            "status": {"phase": "Draining"},
        });
        if !closed.is_null() {
            record["status"]["closedAt"] = closed;
        }
        fixture.put(resource::INTERRUPTION, record);
    }
    let status = status::read(&fixture.client).await.unwrap();
    let names: Vec<&str> = status
        .interruptions
        .iter()
        .map(|record| record.metadata.name.as_deref().unwrap())
        .collect();
    assert_eq!(names, ["i-open", "i-closed"]);
    assert!(status::table(&status, start()).starts_with("INSTANCE  NODE   PHASE"));
}

#[tokio::test(start_paused = true)]
async fn checkpoints_are_read_from_the_bucket() {
    let fixture = Fixture::new();
    let manifest = |epoch: u64, kind: &str| {
        json!({
            "format": 1, "kind": kind, "cluster": "east", "namespace": "team", "job_key": "train",
            "epoch": epoch, "step": 8412, "world": 1, "run": "r",
            "holder": {"pod": "train-0", "pod_uid": "u", "node": "gpu-1"},
            "created_at": "2026-11-22T12:00:38Z", "bytes": 0, "ranks": {},
        })
    };
    for (epoch, kind) in [(1_u64, "claim"), (2, "claim")] {
        let path = Path::from(format!("east/team/train/epochs/{epoch:010}/MANIFEST.json"));
        let bytes = manifest(epoch, kind).to_string();
        fixture.store.put(&path, bytes.into()).await.unwrap();
    }
    fixture.store.put(&Path::from("east/_doctor/probe"), "x".into()).await.unwrap();
    let config = Config::parse(Program::Bucket, CONFIG).unwrap();

    let rows = |namespace: Option<&str>| {
        let scope = checkpoints::Scope::new(&config, namespace.map(str::to_owned));
        let store = fixture.store.clone();
        async move { checkpoints::newest(&*store, &scope).await.unwrap() }
    };
    let all = rows(None).await;
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(
        (all[0].job_key.as_str(), all[0].epoch, all[0].kind.as_str()),
        ("train", 2, "claim")
    );
    assert_eq!(rows(Some("other")).await, []);
}
