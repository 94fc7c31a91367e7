//! The simulated Kubernetes API, one rule a test, seen through the real client in virtual time.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use futures::TryStreamExt;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::Client;
use kube::ResourceExt;
use kube::api::DeleteParams;
use kube::api::ListParams;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::api::PostParams;
use kube::api::Preconditions;
use kube::api::WatchEvent;
use kube::api::WatchParams;
use kube::core::DynamicObject;
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher;
use lifeboat::clock::Clock;
use lifeboat_chaos::serve::kube_client;
use lifeboat_chaos::wire::kube::wire;
use lifeboat_chaos::world::World;
use lifeboat_chaos::world::cluster::Caller;
use lifeboat_chaos::world::cluster::Target;
use lifeboat_chaos::world::cluster::delete::DeleteOptions;
use lifeboat_chaos::world::cluster::resource;
use lifeboat_chaos::world::cluster::resource::Resource;
use lifeboat_chaos::world::cluster::rules;
use lifeboat_chaos::world::cluster::schema::schema;
use serde_json::Value;
use serde_json::json;

struct Fixture {
    world: World,
    client: Client,
}

impl Fixture {
    fn new() -> Self {
        let start: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let world = World::new(Clock::starting_at(start, 0), 7);
        world.update(|_| ());
        let client = kube_client(&wire(&world, "tester"), "default");
        Self { world, client }
    }

    fn put(&self, resource: Resource, object: Value) {
        self.world.update(|state| state.cluster.put(resource, object));
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    fn any(&self, resource: Resource) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk(resource.group, resource.version, resource.kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, resource.plural);
        Api::all_with(self.client.clone(), &resource)
    }

    fn object(&self, target: &Target) -> Option<Value> {
        self.world.read(|state| state.cluster.get(target).map(|object| Value::clone(object)))
    }
}

fn pod(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "default", "labels": { "app": name } },
        "spec": {
            "nodeName": "gpu-1", "terminationGracePeriodSeconds": 40,
            "containers": [{ "name": "main", "image": "train" }],
        },
        "status": {
            "phase": "Running",
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

fn node(name: &str) -> Value {
    let taint = json!({ "key": "dedicated", "value": "gpu", "effect": "NoSchedule" });
    json!({ "metadata": { "name": name }, "spec": { "taints": [taint] } })
}

fn code<T: std::fmt::Debug>(answer: kube::Result<T>) -> u16 {
    let error = answer.unwrap_err();
    let kube::Error::Api(status) = error else { panic!("{error}") };
    status.code
}

fn target_pod(name: &str) -> Target {
    Target::in_namespace(resource::POD, "default", name)
}

#[tokio::test(start_paused = true)]
async fn a_generated_name_and_uid_are_the_same_in_every_run() {
    let mut seen = Vec::new();
    for _ in 0..2 {
        let fixture = Fixture::new();
        let maps: Api<ConfigMap> = Api::default_namespaced(fixture.client.clone());
        let map = json!({ "metadata": { "generateName": "m-" } });
        let made = maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await;
        let made = made.unwrap();
        assert!(made.name_any().starts_with("m-") && made.name_any().len() == 7);
        assert_eq!(made.creation_timestamp().unwrap().0.to_string(), "2026-11-22T12:00:00Z");
        seen.push((made.name_any(), made.uid().unwrap()));
    }
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test(start_paused = true)]
async fn a_name_is_taken_once() {
    let fixture = Fixture::new();
    let node: Node = serde_json::from_value(node("gpu-1")).unwrap();
    fixture.nodes().create(&PostParams::default(), &node).await.unwrap();
    assert_eq!(code(fixture.nodes().create(&PostParams::default(), &node).await), 409);
}

#[tokio::test(start_paused = true)]
async fn a_namespace_must_be_there() {
    let fixture = Fixture::new();
    let maps: Api<ConfigMap> = Api::namespaced(fixture.client.clone(), "nowhere");
    let map: ConfigMap = serde_json::from_value(json!({ "metadata": { "name": "m" } })).unwrap();
    assert_eq!(code(maps.create(&PostParams::default(), &map).await), 404);
}

#[tokio::test(start_paused = true)]
async fn a_stale_update_is_refused() {
    let fixture = Fixture::new();
    fixture.put(resource::NODE, node("gpu-1"));
    let mut old = fixture.nodes().get("gpu-1").await.unwrap();
    fixture.nodes().cordon("gpu-1").await.unwrap();
    old.labels_mut().insert("a".to_owned(), "b".to_owned());
    assert_eq!(code(fixture.nodes().replace("gpu-1", &PostParams::default(), &old).await), 409);
}

#[tokio::test(start_paused = true)]
async fn only_one_of_two_takes_a_lease() {
    let fixture = Fixture::new();
    let leases: Api<Lease> = Api::default_namespaced(fixture.client.clone());
    let lease = json!({ "metadata": { "name": "lb" }, "spec": { "holderIdentity": "a" } });
    let lease = serde_json::from_value(lease).unwrap();
    let made = leases.create(&PostParams::default(), &lease).await.unwrap();
    let take = |who: &str| {
        let mut mine = made.clone();
        mine.spec.as_mut().unwrap().holder_identity = Some(who.to_owned());
        mine
    };
    leases.replace("lb", &PostParams::default(), &take("b")).await.unwrap();
    let second = leases.replace("lb", &PostParams::default(), &take("c")).await;
    assert_eq!(code(second), 409);
    let unversioned = leases.replace("lb", &PostParams::default(), &lease).await;
    assert_eq!(code(unversioned), 422);
}

#[tokio::test(start_paused = true)]
async fn a_json_patch_whose_test_fails_is_refused_and_changes_nothing() {
    let fixture = Fixture::new();
    fixture.put(resource::NODE, node("gpu-1"));
    let before = fixture.nodes().get("gpu-1").await.unwrap();
    let patch = |test: Value| {
        json!([
            { "op": "test", "path": "/spec/taints", "value": test },
            { "op": "add", "path": "/spec/unschedulable", "value": true },
        ])
    };
    let fails = send_json_patch(&fixture, "gpu-1", patch(Value::Null)).await;
    assert_eq!(fails.0, 422);
    assert_eq!(
        before.resource_version(),
        fixture.nodes().get("gpu-1").await.unwrap().resource_version()
    );
    let taints = json!([{ "key": "dedicated", "value": "gpu", "effect": "NoSchedule" }]);
    let (status, body) = send_json_patch(&fixture, "gpu-1", patch(taints)).await;
    assert_eq!((status, &body["spec"]["unschedulable"]), (200, &json!(true)));
}

#[tokio::test(start_paused = true)]
async fn a_json_patch_may_test_that_there_are_no_taints() {
    let fixture = Fixture::new();
    fixture.put(resource::NODE, json!({ "metadata": { "name": "gpu-1" }, "spec": {} }));
    let patch = json!([
        { "op": "test", "path": "/spec/taints", "value": null },
        { "op": "add", "path": "/spec/taints", "value": [{ "key": "a", "effect": "NoSchedule" }] },
    ]);
    let (status, body) = send_json_patch(&fixture, "gpu-1", patch).await;
    assert_eq!((status, &body["spec"]["taints"][0]["key"]), (200, &json!("a")));
}

async fn send_json_patch(fixture: &Fixture, node: &str, patch: Value) -> (u16, Value) {
    let request = http::Request::patch(format!("/api/v1/nodes/{node}?fieldManager=tester"))
        .header("content-type", "application/json-patch+json")
        .body(patch.to_string().into_bytes().into());
    let answer = fixture.client.send(request.unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect_bytes().await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_merge_patch_removes_by_null() {
    let fixture = Fixture::new();
    fixture.put(resource::NODE, node("gpu-1"));
    let patch = Patch::Merge(json!({ "metadata": { "labels": { "a": "b" } } }));
    fixture.nodes().patch("gpu-1", &PatchParams::default(), &patch).await.unwrap();
    let patch = Patch::Merge(json!({ "metadata": { "labels": { "a": null } } }));
    let after = fixture.nodes().patch("gpu-1", &PatchParams::default(), &patch).await.unwrap();
    assert!(!after.labels().contains_key("a"));
}

#[tokio::test(start_paused = true)]
async fn a_strategic_patch_merges_conditions_and_replaces_taints() {
    let fixture = Fixture::new();
    fixture.put(resource::NODE, node("gpu-1"));
    let ready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
    let disk = json!({ "status": { "conditions": [{ "type": "Disk", "status": "False" }] } });
    for patch in [ready, disk] {
        let params = PatchParams::default();
        fixture.nodes().patch_status("gpu-1", &params, &Patch::Strategic(patch)).await.unwrap();
    }
    let patch = json!({ "spec": { "taints": [{ "key": "a", "effect": "NoExecute" }] } });
    let params = PatchParams::default();
    let after = fixture.nodes().patch("gpu-1", &params, &Patch::Strategic(patch)).await.unwrap();
    assert_eq!(after.status.unwrap().conditions.unwrap().len(), 2);
    assert_eq!(after.spec.unwrap().taints.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_definition_of_ours_has_no_strategic_merge() {
    let fixture = Fixture::new();
    fixture.put(resource::INTERRUPTION, interruption());
    let api = fixture.any(resource::INTERRUPTION);
    let patch = Patch::Strategic(json!({ "spec": { "instanceType": "g5.xlarge" } }));
    assert_eq!(code(api.patch("i-1", &PatchParams::default(), &patch).await), 415);
}

fn interruption() -> Value {
    json!({
        "metadata": { "name": "i-1" },
        "spec": { "node": "gpu-1", "zone": "us-east-2a", "signals": {} },
    })
}

#[tokio::test(start_paused = true)]
async fn a_signal_that_was_recorded_stands() {
    let fixture = Fixture::new();
    fixture.put(resource::INTERRUPTION, interruption());
    let api = fixture.any(resource::INTERRUPTION);
    let says = |key: &str, second: &str| {
        let time = format!("2026-11-22T12:00:0{second}Z");
        let signal = json!({
            "source": "queue", "kind": "interruption", "time": time, "heardAt": time,
            "heardBy": "me",
        });
        Patch::Merge(json!({ "spec": { "signals": { key: signal } } }))
    };
    let params = PatchParams::default();
    api.patch("i-1", &params, &says("queue-interruption", "1")).await.unwrap();
    api.patch("i-1", &params, &says("imds-interruption", "2")).await.unwrap();
    assert_eq!(code(api.patch("i-1", &params, &says("imds-interruption", "3")).await), 422);
    let gone = Patch::Merge(json!({ "spec": { "signals": null } }));
    assert_eq!(code(api.patch("i-1", &params, &gone).await), 422);
    let moved = Patch::Merge(json!({ "spec": { "node": "gpu-2" } }));
    assert_eq!(code(api.patch("i-1", &params, &moved).await), 422);
}

#[tokio::test(start_paused = true)]
async fn what_a_schema_does_not_know_is_dropped_and_what_breaks_it_refused() {
    let fixture = Fixture::new();
    fixture.put(resource::INTERRUPTION, interruption());
    let api = fixture.any(resource::INTERRUPTION);
    let patch = |status: Value| Patch::Merge(json!({ "status": status }));
    let params = PatchParams::default();
    let strange = patch(json!({ "phase": "Saving", "mood": "good" }));
    let after = api.patch_status("i-1", &params, &strange).await.unwrap();
    assert_eq!(after.data["status"], json!({ "phase": "Saving" }));
    for broken in [
        json!({ "phase": 3 }),
        json!({ "deadline": "soon" }),
        json!({ "phase": "x".repeat(64) }),
        json!({ "workloads": { "u1": { "pod": "train" } } }),
    ] {
        let refused = api.patch_status("i-1", &params, &patch(broken.clone())).await;
        assert_eq!(code(refused), 422, "{broken}");
    }
}

#[test]
fn the_rules_of_our_definitions_are_all_kept() {
    let mut told: Vec<&str> = [resource::INTERRUPTION, resource::CHECKPOINT]
        .into_iter()
        .flat_map(|kind| rules::immutable(kind).iter().map(|(_, why)| *why))
        .chain([rules::SIGNAL_KEPT])
        .collect();
    let mut written = Vec::new();
    for kind in [resource::INTERRUPTION, resource::CHECKPOINT] {
        validations(schema(kind).unwrap(), &mut written);
    }
    told.sort_unstable();
    written.sort_unstable();
    assert_eq!(told, written);
}

/// The messages of all CEL rules of a schema.
fn validations<'a>(schema: &'a Value, found: &mut Vec<&'a str>) {
    let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    found.extend(rules.filter_map(|rule| rule["message"].as_str()));
    let properties = schema["properties"].as_object().into_iter().flatten();
    let others = schema.get("additionalProperties").into_iter().chain(schema.get("items"));
    for inner in properties.map(|(_, inner)| inner).chain(others) {
        validations(inner, found);
    }
}

#[tokio::test(start_paused = true)]
async fn status_and_the_rest_are_written_through_doors_of_their_own() {
    let fixture = Fixture::new();
    fixture.put(resource::INTERRUPTION, interruption());
    let api = fixture.any(resource::INTERRUPTION);
    let both = Patch::Merge(json!({
        "metadata": { "labels": { "a": "b" } }, "status": { "phase": "Saving" },
    }));
    let params = PatchParams::default();
    let main = api.patch("i-1", &params, &both).await.unwrap();
    assert_eq!((main.labels().len(), main.data.get("status")), (1, None));
    let both = Patch::Merge(json!({
        "spec": { "zone": "us-east-2b" }, "status": { "phase": "Saving" },
    }));
    let status = api.patch_status("i-1", &params, &both).await.unwrap();
    assert_eq!(status.data["spec"]["zone"], "us-east-2a");
    assert_eq!(status.data["status"]["phase"], "Saving");
}

#[tokio::test(start_paused = true)]
async fn apply_takes_away_what_its_manager_no_longer_says() {
    let fixture = Fixture::new();
    fixture.put(resource::INTERRUPTION, interruption());
    let api = fixture.any(resource::INTERRUPTION);
    let say = |workloads: Value| {
        Patch::Apply(json!({
            "apiVersion": "lifeboat.dev/v1alpha1", "kind": "NodeInterruption",
            "status": { "workloads": workloads },
        }))
    };
    let (agent, controller) = (PatchParams::apply("agent"), PatchParams::apply("controller"));
    let workload =
        |part: &str, value: Value| json!({ "namespace": "default", "pod": "train", part: value });
    let save = |step: u32| workload("save", json!({ "state": "Saving", "step": step }));
    let saves = say(json!({ "u1": save(3), "u2": save(4) }));
    api.patch_status("i-1", &agent, &saves).await.unwrap();
    let drain = json!({
        "decided": "2026-11-22T12:00:00Z", "by": "Evict", "reason": "Durable", "grace": 15, "refusals": 0,
    });
    let drains = say(json!({ "u1": workload("drain", drain.clone()) }));
    api.patch_status("i-1", &controller, &drains).await.unwrap();
    let fewer = say(json!({ "u1": save(5) }));
    let after = api.patch_status("i-1", &agent, &fewer).await.unwrap();
    let mut both = save(5);
    both["drain"] = drain;
    assert_eq!(after.data["status"]["workloads"], json!({ "u1": both }));
    let version = after.resource_version();
    let again = api.patch_status("i-1", &agent, &fewer).await.unwrap();
    assert_eq!(again.resource_version(), version, "an apply that changes nothing writes nothing");
    let managers: Vec<_> =
        after.managed_fields().iter().filter_map(|entry| entry.manager.clone()).collect();
    assert_eq!(managers, ["before-first-apply", "agent", "controller"]);
}

#[tokio::test(start_paused = true)]
async fn apply_meets_a_conflict_unless_forced() {
    let fixture = Fixture::new();
    fixture.put(resource::NODE, json!({ "metadata": { "name": "gpu-1" } }));
    let say = |value: &str| {
        Patch::Apply(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "labels": { "team": value } },
        }))
    };
    let nodes = fixture.nodes();
    nodes.patch("gpu-1", &PatchParams::apply("a"), &say("red")).await.unwrap();
    nodes.patch("gpu-1", &PatchParams::apply("b"), &say("red")).await.unwrap();
    let refused = nodes.patch("gpu-1", &PatchParams::apply("b"), &say("blue")).await;
    assert_eq!(code(refused), 409);
    nodes.patch("gpu-1", &PatchParams::apply("b").force(), &say("blue")).await.unwrap();
    let nothing = json!({ "apiVersion": "v1", "kind": "Node", "metadata": {} });
    let params = PatchParams::apply("a");
    let after = nodes.patch("gpu-1", &params, &Patch::Apply(nothing)).await.unwrap();
    assert_eq!(after.labels()["team"], "blue", "what was taken by force is not taken away");
}

#[tokio::test(start_paused = true)]
async fn apply_takes_an_atomic_list_over_whole_and_merges_a_keyed_one() {
    let fixture = Fixture::new();
    fixture.put(resource::NODE, node("gpu-1"));
    let taints = Patch::Apply(json!({
        "apiVersion": "v1", "kind": "Node",
        "spec": { "taints": [{ "key": "ours", "effect": "NoSchedule" }] },
    }));
    let params = PatchParams::apply("a").force();
    let after = fixture.nodes().patch("gpu-1", &params, &taints).await.unwrap();
    assert_eq!(after.spec.unwrap().taints.unwrap().len(), 1);
    let condition = |kind: &str| {
        Patch::Apply(json!({
            "apiVersion": "v1", "kind": "Node",
            "status": { "conditions": [{ "type": kind, "status": "True" }] },
        }))
    };
    let nodes = fixture.nodes();
    nodes.patch_status("gpu-1", &PatchParams::apply("a"), &condition("A")).await.unwrap();
    let params = PatchParams::apply("b");
    let after = nodes.patch_status("gpu-1", &params, &condition("B")).await.unwrap();
    assert_eq!(after.status.unwrap().conditions.unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn apply_creates_what_is_not_there() {
    let fixture = Fixture::new();
    let api = fixture.any(resource::INTERRUPTION);
    let mut object = interruption();
    object["apiVersion"] = json!("lifeboat.dev/v1alpha1");
    object["kind"] = json!("NodeInterruption");
    let params = PatchParams::apply("agent");
    let made = api.patch("i-1", &params, &Patch::Apply(&object)).await.unwrap();
    let again = api.patch("i-1", &params, &Patch::Apply(&object)).await.unwrap();
    assert_eq!(made.resource_version(), again.resource_version());
}

#[tokio::test(start_paused = true)]
async fn a_list_is_selected_and_paged() {
    let fixture = Fixture::new();
    for name in ["a", "b", "c"] {
        fixture.put(resource::POD, pod(name));
    }
    let mut other = pod("d");
    other["spec"]["nodeName"] = json!("gpu-2");
    fixture.put(resource::POD, other);
    let on_node = ListParams::default().fields("spec.nodeName=gpu-1");
    assert_eq!(fixture.pods().list(&on_node).await.unwrap().items.len(), 3);
    let labels = ListParams::default().labels("app in (a, d),app!=a");
    assert_eq!(fixture.pods().list(&labels).await.unwrap().items.len(), 1);
    let first = fixture.pods().list(&ListParams::default().limit(3)).await.unwrap();
    let token = first.metadata.continue_.unwrap();
    assert_eq!(first.items.len(), 3);
    let params = ListParams::default().limit(3).continue_token(&token);
    let second = fixture.pods().list(&params).await.unwrap();
    assert_eq!(second.items.len(), 1);
    assert_eq!(second.metadata.resource_version, first.metadata.resource_version);
    let unknown = ListParams::default().fields("spec.priority=1");
    assert_eq!(code(fixture.pods().list(&unknown).await), 400);
}

#[tokio::test(start_paused = true)]
async fn a_watch_sees_objects_come_into_its_selector_and_leave_it() {
    let fixture = Fixture::new();
    fixture.put(resource::POD, pod("a"));
    let version = fixture.pods().list(&ListParams::default()).await.unwrap();
    let version = version.metadata.resource_version.unwrap();
    let params = WatchParams::default().labels("hot=yes");
    let mut stream = pin!(fixture.pods().watch(&params, &version).await.unwrap());
    let label = |value: Value| Patch::Merge(json!({ "metadata": { "labels": { "hot": value } } }));
    for value in [json!("yes"), json!("yes!"), json!("yes"), Value::Null] {
        fixture.pods().patch("a", &PatchParams::default(), &label(value)).await.unwrap();
    }
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(match stream.try_next().await.unwrap().unwrap() {
            WatchEvent::Added(_) => "added",
            WatchEvent::Modified(_) => "modified",
            WatchEvent::Deleted(_) => "deleted",
            WatchEvent::Bookmark(_) => "bookmark",
            WatchEvent::Error(_) => "error",
        });
    }
    assert_eq!(seen, ["added", "deleted", "added", "deleted"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_gets_bookmarks_and_ends_at_its_time() {
    let fixture = Fixture::new();
    let params = WatchParams::default().timeout(150);
    let stream = fixture.pods().watch(&params, "1").await.unwrap();
    let events: Vec<_> = stream.collect().await;
    assert_eq!(events.len(), 3, "one a minute, and one at the end");
    assert!(events.iter().all(|event| matches!(event, Ok(WatchEvent::Bookmark(_)))));
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_a_forgotten_version_is_gone() {
    let fixture = Fixture::new();
    fixture.put(resource::POD, pod("a"));
    fixture.world.update(|state| state.cluster.compact());
    let mut stream = pin!(fixture.pods().watch(&WatchParams::default(), "1").await.unwrap());
    let event = stream.try_next().await.unwrap().unwrap();
    assert!(matches!(event, WatchEvent::Error(status) if status.code == 410));
    assert!(stream.try_next().await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_watcher_lists_again_after_410_and_misses_nothing() {
    let fixture = Fixture::new();
    fixture.put(resource::POD, pod("a"));
    let config = watcher::Config::default().page_size(2);
    let stream = watcher::watcher(fixture.pods(), config).default_backoff().touched_objects();
    let mut stream = pin!(stream);
    assert_eq!(stream.try_next().await.unwrap().unwrap().name_any(), "a");
    fixture.world.update(|state| {
        state.cluster.put(resource::POD, pod("b"));
        state.cluster.compact();
        state.cluster.break_watches();
    });
    let mut names = Vec::new();
    while names.len() < 2 {
        match stream.next().await.unwrap() {
            Ok(pod) => names.push(pod.name_any()),
            Err(watcher::Error::WatchError(status)) => assert_eq!(status.code, 410),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(names, ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_streamed_list_ends_with_a_marked_bookmark() {
    let fixture = Fixture::new();
    fixture.put(resource::POD, pod("a"));
    let config = watcher::Config::default().streaming_lists();
    let mut stream = pin!(watcher::watcher(fixture.pods(), config));
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(match stream.try_next().await.unwrap().unwrap() {
            watcher::Event::Init => "init",
            watcher::Event::InitApply(_) => "object",
            watcher::Event::InitDone => "done",
            watcher::Event::Apply(_) | watcher::Event::Delete(_) => "change",
        });
    }
    assert_eq!(seen, ["init", "object", "done"]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_deleted_keeps_its_grace_which_is_only_ever_shortened() {
    let fixture = Fixture::new();
    fixture.put(resource::POD, pod("a"));
    let delete = async |grace: Option<u32>| {
        let params = DeleteParams { grace_period_seconds: grace, ..DeleteParams::default() };
        fixture.pods().delete("a", &params).await.unwrap();
        let pod = fixture.object(&target_pod("a")).unwrap();
        (
            pod["metadata"]["deletionTimestamp"].as_str().unwrap().to_owned(),
            pod["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap(),
        )
    };
    let time = |text: &str, grace| (text.to_owned(), grace);
    assert_eq!(delete(None).await, time("2026-11-22T12:00:40Z", 40));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(delete(Some(60)).await, time("2026-11-22T12:00:40Z", 40));
    assert_eq!(delete(Some(15)).await, time("2026-11-22T12:00:15Z", 15));
    assert_eq!(delete(Some(3)).await, time("2026-11-22T12:00:05Z", 1));
    let params = DeleteParams::default().grace_period(0);
    fixture.pods().delete("a", &params).await.unwrap();
    assert!(fixture.object(&target_pod("a")).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_another_uid_is_not_deleted() {
    let fixture = Fixture::new();
    fixture.put(resource::POD, pod("a"));
    let preconditions = Preconditions { uid: Some("other".to_owned()), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    assert_eq!(code(fixture.pods().delete("a", &params).await), 409);
    let options = json!({ "preconditions": { "uid": "other" } });
    assert_eq!(evict(&fixture, "a", options).await.0, 409);
    assert!(fixture.object(&target_pod("a")).unwrap()["metadata"]["deletionTimestamp"].is_null());
}

async fn evict(fixture: &Fixture, pod: &str, options: Value) -> (u16, Value) {
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": pod },
        "deleteOptions": options,
    });
    let path = format!("/api/v1/namespaces/default/pods/{pod}/eviction");
    let request = http::Request::post(path).header("content-type", "application/json");
    let request = request.body(eviction.to_string().into_bytes().into()).unwrap();
    let answer = fixture.client.send(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect_bytes().await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

fn budget(status: &Value) -> Value {
    json!({
        "metadata": { "name": "keep", "namespace": "default" },
        "spec": { "maxUnavailable": 0, "selector": { "matchLabels": { "app": "a" } } },
        "status": status,
    })
}

#[tokio::test(start_paused = true)]
async fn an_eviction_gives_its_own_grace_and_marks_the_pod() {
    let fixture = Fixture::new();
    fixture.put(resource::POD, pod("a"));
    assert_eq!(evict(&fixture, "a", json!({ "gracePeriodSeconds": 15 })).await.0, 201);
    let pod = fixture.object(&target_pod("a")).unwrap();
    assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 15);
    let condition = &pod["status"]["conditions"][1];
    assert_eq!(condition["type"], "DisruptionTarget");
    assert_eq!(condition["reason"], "EvictionByEvictionAPI");
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_allows_nothing_answers_429_with_its_cause() {
    let fixture = Fixture::new();
    fixture.put(resource::POD, pod("a"));
    let full = json!({
        "observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1,
        "expectedPods": 1,
    });
    fixture.put(resource::BUDGET, budget(&full));
    let (status, body) = evict(&fixture, "a", json!({})).await;
    assert_eq!((status, &body["reason"]), (429, &json!("TooManyRequests")));
    assert_eq!(body["details"]["causes"][0]["reason"], "DisruptionBudget");
    assert!(body["details"]["retryAfterSeconds"].is_null());
    let stale = json!({ "observedGeneration": 0, "disruptionsAllowed": 1 });
    fixture.put(resource::BUDGET, budget(&stale));
    let (status, body) = evict(&fixture, "a", json!({})).await;
    assert_eq!((status, &body["details"]["retryAfterSeconds"]), (429, &json!(10)));
}

#[tokio::test(start_paused = true)]
async fn a_budget_is_spent_by_an_eviction() {
    let fixture = Fixture::new();
    let mut second = pod("b");
    second["metadata"]["labels"]["app"] = json!("a");
    fixture.put(resource::POD, pod("a"));
    fixture.put(resource::POD, second);
    let one = json!({
        "observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1,
    });
    fixture.put(resource::BUDGET, budget(&one));
    assert_eq!(evict(&fixture, "a", json!({})).await.0, 201);
    assert_eq!(evict(&fixture, "b", json!({})).await.0, 429);
    assert_eq!(evict(&fixture, "a", json!({})).await.0, 201, "a pod on its way asks no budget");
}

#[tokio::test(start_paused = true)]
async fn a_finalizer_keeps_an_object_until_it_is_taken_away() {
    let fixture = Fixture::new();
    let claim = json!({
        "metadata": { "name": "c", "finalizers": ["karpenter.sh/termination"] }, "spec": {},
    });
    fixture.put(resource::NODE_CLAIM, claim);
    let claims = fixture.any(resource::NODE_CLAIM);
    claims.delete("c", &DeleteParams::default()).await.unwrap();
    assert!(claims.get("c").await.unwrap().metadata.deletion_timestamp.is_some());
    let target = Target::in_cluster(resource::NODE_CLAIM, "c");
    fixture
        .world
        .update(|state| {
            let door = lifeboat_chaos::world::cluster::write::Door::Back;
            let caller = Caller::named("karpenter");
            state.cluster.edit(&caller, (&target, door), |claim| {
                claim["metadata"]["finalizers"] = json!([]);
            })
        })
        .unwrap();
    assert!(fixture.object(&target).is_none());
}

#[tokio::test(start_paused = true)]
async fn what_an_object_owns_goes_with_it() {
    let fixture = Fixture::new();
    let job = json!({
        "metadata": { "name": "j", "namespace": "default" },
        "spec": { "template": { "spec": {
            "restartPolicy": "Never", "containers": [{ "name": "c" }],
        } } },
    });
    let jobs: Api<Job> = Api::default_namespaced(fixture.client.clone());
    let made = jobs.create(&PostParams::default(), &serde_json::from_value(job).unwrap()).await;
    let mut owned = pod("a");
    owned["metadata"]["ownerReferences"] =
        json!([{ "uid": made.unwrap().uid().unwrap(), "kind": "Job", "name": "j" }]);
    fixture.put(resource::POD, owned);
    jobs.delete("j", &DeleteParams::default()).await.unwrap();
    let pod = fixture.object(&target_pod("a")).unwrap();
    assert!(pod["metadata"]["deletionTimestamp"].is_string());
}

#[tokio::test(start_paused = true)]
async fn a_node_takes_no_two_taints_of_one_key_and_effect() {
    let fixture = Fixture::new();
    fixture.put(resource::NODE, node("gpu-1"));
    let taint = json!({ "key": "a", "effect": "NoSchedule" });
    let patch = Patch::Merge(json!({ "spec": { "taints": [taint, taint] } }));
    assert_eq!(code(fixture.nodes().patch("gpu-1", &PatchParams::default(), &patch).await), 422);
}

#[tokio::test(start_paused = true)]
async fn a_pods_spec_and_a_claims_spec_stand() {
    let fixture = Fixture::new();
    fixture.put(resource::POD, pod("a"));
    let moved = Patch::Merge(json!({ "spec": { "nodeName": "gpu-2" } }));
    assert_eq!(code(fixture.pods().patch("a", &PatchParams::default(), &moved).await), 422);
    let class = json!({ "group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu" });
    let claim = json!({
        "metadata": { "name": "c" }, "spec": { "nodeClassRef": class, "requirements": [] },
    });
    fixture.put(resource::NODE_CLAIM, claim);
    let claims = fixture.any(resource::NODE_CLAIM);
    let patch = Patch::Merge(json!({ "spec": { "expireAfter": "1h" } }));
    assert_eq!(code(claims.patch("c", &PatchParams::default(), &patch).await), 422);
}

#[tokio::test(start_paused = true)]
async fn events_are_recorded_and_selected() {
    let fixture = Fixture::new();
    let events: Api<Event> = Api::default_namespaced(fixture.client.clone());
    let event = json!({
        "metadata": { "generateName": "e-" }, "reason": "Interrupted",
        "involvedObject": { "kind": "Node", "name": "gpu-1" },
    });
    events.create(&PostParams::default(), &serde_json::from_value(event).unwrap()).await.unwrap();
    let params = ListParams::default().fields("involvedObject.name=gpu-1");
    assert_eq!(events.list(&params).await.unwrap().items.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_server_has_not_it_refuses_and_counts() {
    let fixture = Fixture::new();
    let request = http::Request::get("/api/v1/namespaces/default/secrets").body(Vec::new());
    let answer = fixture.client.send(request.unwrap().map(Into::into)).await.unwrap();
    assert_eq!(answer.status(), 501);
    fixture.world.audit(|audit| assert_eq!(audit.unsupported().len(), 1));
}

#[tokio::test(start_paused = true)]
async fn requests_are_counted_and_writes_are_listed_by_who_made_them() {
    let fixture = Fixture::new();
    fixture.put(resource::NODE, node("gpu-1"));
    fixture.nodes().cordon("gpu-1").await.unwrap();
    fixture.nodes().get("gpu-1").await.unwrap();
    let counted: BTreeMap<&str, u64> = BTreeMap::from([("get", 1), ("patch", 1)]);
    fixture.world.audit(|audit| {
        let found = audit.requests().iter().map(|(request, count)| (request.verb, *count));
        assert_eq!(found.collect::<BTreeMap<_, _>>(), counted);
        let writes: Vec<_> = audit.writes_by("tester", resource::NODE).collect();
        assert_eq!(writes.len(), 1);
        assert_eq!(writes[0].verb, "patch");
    });
}

#[tokio::test(start_paused = true)]
async fn the_server_tells_its_version_and_kinds() {
    let fixture = Fixture::new();
    assert_eq!(fixture.client.apiserver_version().await.unwrap().minor, "35");
    let groups = fixture.client.list_api_groups().await.unwrap();
    assert!(groups.groups.iter().any(|group| group.name == "lifeboat.dev"));
    let kinds = fixture.client.list_api_group_resources("karpenter.sh/v1").await.unwrap();
    assert!(kinds.resources.iter().any(|kind| kind.kind == "NodeClaim"));
}

#[tokio::test(start_paused = true)]
async fn the_parts_of_the_cluster_write_under_their_own_names() {
    let fixture = Fixture::new();
    fixture.put(resource::POD, pod("a"));
    let kubelet = Caller::named("kubelet");
    let options = DeleteOptions::default();
    let pod = target_pod("a");
    fixture.world.update(|state| state.cluster.delete(&kubelet, &pod, &options)).unwrap();
    fixture.world.audit(|audit| assert_eq!(audit.writes_by("kubelet", resource::POD).count(), 1));
}
