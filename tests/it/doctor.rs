//! `lifeboat doctor` over the simulated world: all is green where all is well, and each fault that is
//! planted is found, and no other.

use std::sync::Arc;

use http::StatusCode;
use jiff::Timestamp;
use lifeboat::adapters::signed::Signed;
use lifeboat::clock::Clock;
use lifeboat::commands::doctor;
use lifeboat::commands::doctor::Finding;
use lifeboat::commands::doctor::Health;
use lifeboat::config::Config;
use lifeboat::config::Program;
use lifeboat_chaos::serve::kube_client;
use lifeboat_chaos::serve::s3_http;
use lifeboat_chaos::serve::s3_store;
use lifeboat_chaos::serve::sqs_client;
use lifeboat_chaos::wire;
use lifeboat_chaos::wire::Request;
use lifeboat_chaos::wire::Wire;
use lifeboat_chaos::wire::kube;
use lifeboat_chaos::wire::s3::s3_from;
use lifeboat_chaos::wire::sqs::sqs;
use lifeboat_chaos::world::World;
use lifeboat_chaos::world::cluster::resource;
use lifeboat_chaos::world::cluster::resource::Resource;
use lifeboat_chaos::world::queue::Redrive;
use lifeboat_chaos::world::queue::Settings;
use serde_json::Value;
use serde_json::json;

const CONFIG: &str = r#"
cluster = "east"
region = "us-east-2"
queue.url = "http://sqs.simulated/123456789012/ours"
store.bucket = "checkpoints"
"#;

const EVENTS: [&str; 5] = [
    "EC2 Spot Instance Interruption Warning",
    "EC2 Instance Rebalance Recommendation",
    "AWS Health Event",
    "EC2 Instance State-change Notification",
    "EC2 Capacity Reservation Instance Interruption Warning",
];

/// Where doctor's bytes to the bucket come from, where their rate is limited.
const HERE: &str = "here";

/// A cluster and a cloud in which nothing is wrong, until something is planted.
struct Fixture {
    world: World,
    config: String,
    /// A verb and a resource that the API server does not let us do.
    denied: (&'static str, &'static str),
    /// A path that it does not let us read.
    forbidden: &'static str,
    /// What the agents count.
    metrics: &'static str,
    /// Kinds of events that rules send to the queue.
    rules: Vec<&'static str>,
    /// Whether the bucket looks at conditions.
    conditions: Conditions,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Conditions {
    Honoured,
    Ignored,
}

impl Fixture {
    fn healthy() -> Self {
        let start: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let world = World::new(Clock::starting_at(start, 0), 7);
        let fixture = Self {
            world,
            config: CONFIG.to_owned(),
            denied: ("", ""),
            forbidden: "nothing",
            metrics: "lifeboat_errors_total{adapter=\"nvml\",label=\"late\"} 0\n",
            rules: EVENTS.to_vec(),
            conditions: Conditions::Honoured,
        };
        fixture.queue(&policy("events.amazonaws.com"), 5);
        fixture.world.update(|state| {
            state.queues.create("dead", Settings::default());
            let delay = std::time::Duration::from_secs(5);
            state.queues.create("karpenter", Settings { delay, ..Settings::default() });
        });
        for (_, definition) in lifeboat::commands::crds::definitions() {
            fixture.put(resource::DEFINITION, serde_json::to_value(definition).unwrap());
        }
        for namespace in ["team", "kube-system", "lifeboat-system"] {
            fixture.put(resource::NAMESPACE, json!({"metadata": {"name": namespace}}));
        }
        fixture.put(resource::NODE, node("gpu-1"));
        fixture.put(resource::DAEMON_SET, agents());
        let set = fixture.world.read(|state| {
            let set = state.cluster.list(resource::DAEMON_SET).next().unwrap();
            set["metadata"]["uid"].as_str().unwrap().to_owned()
        });
        fixture.put(resource::POD, agent_on("gpu-1", &set));
        fixture.put(
            resource::JOB,
            job(&json!({"rules": [{
                "action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}],
            }]})),
        );
        fixture.put(resource::POD, trainer(&json!({})));
        fixture.put(resource::CHECKPOINT, checkpoint(&json!({})));
        fixture.put(resource::DEPLOYMENT, karpenter("1.14.1", "karpenter"));
        fixture.put(resource::NODE_POOL, pool("15m"));
        fixture.put(resource::NODE_CLASS, class(1));
        fixture
    }

    fn put(&self, resource: Resource, object: Value) {
        self.world.update(|state| state.cluster.put(resource, object));
    }

    fn queue(&self, policy: &str, max_receives: u32) {
        let redrive = Redrive { dead_letter_queue: "dead".to_owned(), max_receives };
        let policy = Some(policy.to_owned());
        let settings = Settings { redrive: Some(redrive), policy, ..Settings::default() };
        self.world.update(|state| state.queues.create("ours", settings));
    }

    async fn examine(&self) -> Vec<Finding> {
        let config = Config::parse(Program::Controller, &self.config).unwrap();
        doctor::examine(&config, &self.clients()).await
    }

    fn clients(&self) -> doctor::Clients {
        let s3 = self.s3();
        let store = s3_store(&s3, "checkpoints").unwrap();
        let signed = Signed {
            http: s3_http(&self.aws(s3)),
            credentials: store.credentials().clone(),
            bucket: "http://s3.simulated/checkpoints".to_owned(),
            bucket_region: "us-east-2".to_owned(),
            events: "http://events.simulated".to_owned(),
            region: "us-east-2".to_owned(),
        };
        doctor::Clients {
            kube: Ok(kube_client(&self.api_server(), "default")),
            sqs: sqs_client(&sqs(self.world.clone())),
            store: Arc::new(store),
            signed,
            clock: self.world.clock().clone(),
        }
    }

    /// The simulated API server, with agents behind it, and rights that are denied.
    fn api_server(&self) -> Wire {
        let inner = kube::wire(&self.world, "tester");
        let (denied, forbidden, metrics) = (self.denied, self.forbidden, self.metrics);
        wire::wire(move |request: Request| {
            let inner = inner.clone();
            async move {
                let path = request.uri().path().to_owned();
                if path.ends_with(forbidden) {
                    let status = json!({
                        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
                        "reason": "Forbidden", "message": "not for you",
                    });
                    let (code, text) = (StatusCode::FORBIDDEN, status.to_string());
                    return Ok(wire::answer(code, "application/json", text));
                }
                if path.ends_with("/proxy/metrics") {
                    assert!(path.contains("/lifeboat-agent-gpu-1:9808/"), "{path}");
                    return Ok(wire::answer(StatusCode::OK, "text/plain", metrics));
                }
                if !path.ends_with("/selfsubjectaccessreviews") {
                    return wire::call(&inner, request).await;
                }
                let (head, body) = request.into_parts();
                let body = wire::collect(body).await?;
                let mut review: Value = serde_json::from_slice(&body)?;
                let asked = &review["spec"]["resourceAttributes"];
                if (asked["verb"].as_str(), asked["resource"].as_str())
                    == (Some(denied.0), Some(denied.1))
                {
                    review["status"] = json!({"allowed": false});
                    let text = review.to_string();
                    return Ok(wire::answer(StatusCode::CREATED, "application/json", text));
                }
                let request = Request::from_parts(head, wire::full(body));
                wire::call(&inner, request).await
            }
        })
    }

    fn s3(&self) -> Wire {
        let inner = s3_from(self.world.clone(), Some(HERE.to_owned()));
        let conditions = self.conditions;
        wire::wire(move |mut request: Request| {
            if conditions == Conditions::Ignored {
                request.headers_mut().remove("if-none-match");
            }
            wire::call(&inner, request)
        })
    }

    /// S3, and EventBridge as its API answers.
    fn aws(&self, s3: Wire) -> Wire {
        let rules = self.rules.clone();
        wire::wire(move |request: Request| {
            let (s3, rules) = (s3.clone(), rules.clone());
            async move {
                if request.uri().host() != Some("events.simulated") {
                    return wire::call(&s3, request).await;
                }
                let (head, body) = request.into_parts();
                let signature = head.headers["authorization"].to_str()?;
                assert!(signature.contains("/us-east-2/events/aws4_request"), "{signature}");
                let body: Value = serde_json::from_slice(&wire::collect(body).await?)?;
                let found = match head.headers["x-amz-target"].to_str()? {
                    "AWSEvents.ListRuleNamesByTarget" => {
                        assert_eq!(body["TargetArn"], "arn:aws:sqs:us-east-2:123456789012:ours");
                        json!({"RuleNames": rules})
                    }
                    "AWSEvents.DescribeRule" => json!({
                        "Name": body["Name"], "State": "ENABLED",
                        "EventPattern": json!({"detail-type": [body["Name"]]}).to_string(),
                    }),
                    other => panic!("EventBridge was asked for {other}"),
                };
                Ok(wire::answer(StatusCode::OK, "application/json", found.to_string()))
            }
        })
    }
}

fn policy(service: &str) -> String {
    let statement = json!({
        "Effect": "Allow", "Principal": {"Service": service}, "Action": "sqs:SendMessage",
        "Resource": "*",
    });
    json!({"Version": "2012-10-17", "Statement": [statement]}).to_string()
}

fn node(name: &str) -> Value {
    json!({
        "metadata": {
            "name": name,
            "labels": {"karpenter.sh/capacity-type": "spot", "nvidia.com/gpu.present": "true"},
        },
        "status": {
            "allocatable": {"nvidia.com/gpu": "1"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn agents() -> Value {
    json!({
        "metadata": {"name": "lifeboat-agent", "namespace": "lifeboat-system"},
        "spec": {"selector": {"matchLabels": {
            "app.kubernetes.io/name": "lifeboat", "app.kubernetes.io/component": "agent",
        }}},
    })
}

fn agent_on(node: &str, set: &str) -> Value {
    json!({
        "metadata": {
            "name": format!("lifeboat-agent-{node}"), "namespace": "lifeboat-system",
            "annotations": {"lifeboat.dev/configuration": "0"},
            "ownerReferences": [owner("apps/v1", "DaemonSet", set)],
        },
        "spec": {"nodeName": node, "containers": [{"name": "agent", "image": "lifeboat"}]},
        "status": {"phase": "Running"},
    })
}

fn owner(version: &str, kind: &str, uid: &str) -> Value {
    json!({"apiVersion": version, "kind": kind, "name": uid, "uid": uid, "controller": true})
}

fn job(policy: &Value) -> Value {
    json!({
        "metadata": {"name": "train", "namespace": "team", "uid": "train"},
        "spec": {
            "backoffLimit": 6,
            "podFailurePolicy": policy,
            "template": {
                "metadata": {"annotations": {"lifeboat.dev/checkpoint": "sdk"}},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]},
            },
        },
    })
}

/// The protected pod, with annotations beside those that it needs.
fn trainer(more: &Value) -> Value {
    let mut annotations = json!({
        "lifeboat.dev/checkpoint": "sdk", "karpenter.sh/do-not-disrupt": "true",
    });
    for (key, value) in more.as_object().unwrap() {
        annotations[key] = value.clone();
    }
    json!({
        "metadata": {
            "name": "train-0", "namespace": "team", "annotations": annotations,
            "ownerReferences": [owner("batch/v1", "Job", "train")],
        },
        "spec": {
            "nodeName": "gpu-1", "terminationGracePeriodSeconds": 120,
            "containers": [{"name": "main", "image": "train"}],
        },
        "status": {"phase": "Running"},
    })
}

/// The index of what it saved, an hour ago.
fn checkpoint(more: &Value) -> Value {
    let mut status = json!({"newest": {
        "epoch": 3, "step": 8412, "bytes": 3_u64 << 30, "durableAt": "2026-11-22T11:00:00Z",
        "podUid": "u", "node": "gpu-1",
    }});
    for (key, value) in more.as_object().unwrap() {
        status[key] = value.clone();
    }
    json!({
        "metadata": {"name": "train", "namespace": "team"},
        "spec": {"jobKey": "train"},
        "status": status,
    })
}

fn karpenter(version: &str, queue: &str) -> Value {
    json!({
        "metadata": {
            "name": "karpenter", "namespace": "kube-system",
            "labels": {
                "app.kubernetes.io/name": "karpenter", "app.kubernetes.io/version": version,
            },
        },
        "spec": {"template": {"spec": {"containers": [{
            "name": "controller", "image": "public.ecr.aws/karpenter/controller",
            "env": [
                {"name": "INTERRUPTION_QUEUE", "value": queue},
                {"name": "FEATURE_GATES", "value": "NodeRepair=false,NodeOverlay=false"},
            ],
        }]}}},
    })
}

fn pool(grace: &str) -> Value {
    json!({
        "metadata": {"name": "gpu"},
        "spec": {"template": {"spec": {"terminationGracePeriod": grace, "nodeClassRef": {
            "group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu",
        }}}},
    })
}

fn class(hops: u64) -> Value {
    json!({
        "metadata": {"name": "gpu"},
        "spec": {"metadataOptions": {"httpTokens": "required", "httpPutResponseHopLimit": hops}},
    })
}

fn worse(findings: &[Finding]) -> Vec<(Health, String)> {
    let worse = findings.iter().filter(|one| one.health != Health::Green);
    worse.map(|one| (one.health, one.found.clone())).collect()
}

/// Plants one fault into a world where nothing is wrong: it is found, with what to do about it, and
/// nothing else is.
async fn check(health: Health, found: &str, plant: impl FnOnce(&mut Fixture)) {
    let mut fixture = Fixture::healthy();
    plant(&mut fixture);
    let findings = fixture.examine().await;
    let all = worse(&findings);
    assert_eq!(all.len(), 1, "{found}: {all:#?}");
    assert!(all[0].0 == health && all[0].1.contains(found), "{found}: {all:#?}");
    let finding = findings.iter().find(|one| one.health != Health::Green).unwrap();
    assert!(!finding.remedy.is_empty(), "{finding:?}");
}

#[tokio::test(start_paused = true)]
async fn doctor_is_green_where_all_is_well() {
    let findings = Fixture::healthy().examine().await;
    assert_eq!(worse(&findings), []);
    let found: Vec<&str> = findings.iter().map(|one| one.found.as_str()).collect();
    for expected in [
        "bucket `checkpoints` is written, read and created once",
        "the bucket is in `us-east-2`, as the cluster is",
        "no rule of the bucket takes checkpoints away",
        "5 rules fill the queue",
        "each of 1 GPU nodes has its agent",
        "1 agents see what they need",
        "1 protected pods are held",
        "interruptions do not count against 1 Jobs",
        "Karpenter is 1.14",
        "1 NodePools leave the time",
        "1 node classes keep their metadata near",
        "the newest checkpoint of `team/train` is 60 min old",
    ] {
        assert!(found.contains(&expected), "no `{expected}` in {found:#?}");
    }
    let measured = |found: &&&str| found.starts_with("32.0 MiB were written at ");
    assert!(found.iter().any(|found| measured(&found)), "{found:#?}");
    let table = doctor::table(&findings);
    assert!(table.starts_with("ok    the configuration is right\n"), "{table}");
}

#[tokio::test(start_paused = true)]
async fn faults_of_the_cluster_itself_are_found() {
    check(Health::Red, "may not patch nodes", |fixture| fixture.denied = ("patch", "nodes")).await;
    check(Health::Yellow, "the list of Jobs was not read", |fixture| {
        fixture.forbidden = "/apis/batch/v1/jobs";
    })
    .await;
    check(Health::Yellow, "is of another release", |fixture| {
        let (_, mut definition) =
            lifeboat::commands::crds::definitions().into_iter().next().unwrap();
        definition.spec.versions[0].schema = None;
        fixture.put(resource::DEFINITION, serde_json::to_value(definition).unwrap());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn faults_of_nodes_and_agents_are_found() {
    check(Health::Red, "1 of 2 GPU nodes have no agent: `gpu-2`", |fixture| {
        fixture.put(resource::NODE, node("gpu-2"));
    })
    .await;
    check(Health::Yellow, "NVIDIA's library does not answer on 1 of 1 nodes", |fixture| {
        fixture.metrics = "lifeboat_errors_total{adapter=\"nvml\",label=\"library\"} 3\n";
    })
    .await;
    check(Health::Yellow, "kubelet's pod-resources do not answer on 1 of 1", |fixture| {
        fixture.metrics = "lifeboat_errors_total{adapter=\"kubelet\",label=\"away\"} 1\n";
    })
    .await;
    check(Health::Yellow, "1 of 1 agents were not asked", |fixture| {
        fixture.forbidden = "/proxy/metrics";
    })
    .await;
    check(Health::Yellow, "EC2NodeClass `gpu` answers 2 hops away", |fixture| {
        fixture.put(resource::NODE_CLASS, class(2));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn faults_beside_karpenter_are_found() {
    check(Health::Red, "Karpenter is 0.37", |fixture| {
        fixture.put(resource::DEPLOYMENT, karpenter("0.37.6", "karpenter"));
    })
    .await;
    check(Health::Red, "Karpenter reads our queue `ours`", |fixture| {
        fixture.put(resource::DEPLOYMENT, karpenter("1.14.1", "ours"));
    })
    .await;
    check(Health::Red, "NodePool `gpu` has terminationGracePeriod 3m", |fixture| {
        fixture.put(resource::NODE_POOL, pool("3m"));
    })
    .await;
    check(Health::Red, "NodePool `gpu` starts its nodes tainted", |fixture| {
        let mut pool = pool("15m");
        let taint = json!({"key": "lifeboat.dev/agent-not-ready", "effect": "NoSchedule"});
        pool["spec"]["template"]["spec"]["startupTaints"] = json!([taint]);
        fixture.put(resource::NODE_POOL, pool);
        fixture.config.push_str("mode = \"observe\"\n");
    })
    .await;
    check(Health::Red, "`karpenter.mode` is `none`", |fixture| {
        fixture.config.push_str("karpenter.mode = \"none\"\n");
    })
    .await;
    let on_signal = || trainer(&json!({"lifeboat.dev/hold": "on-signal"}));
    check(Health::Red, "and Karpenter's queue is not delayed", |fixture| {
        fixture.put(resource::POD, on_signal());
        fixture.world.update(|state| state.queues.create("karpenter", Settings::default()));
    })
    .await;
    let delayed = Fixture::healthy();
    delayed.put(resource::POD, on_signal());
    assert_eq!(worse(&delayed.examine().await), [], "with the delay it is well");
    let handler = || {
        json!({
            "metadata": {"name": "handler", "namespace": "kube-system"},
            "spec": {"template": {"spec": {"containers": [{
                "name": "x", "image": "public.ecr.aws/aws-ec2/aws-node-termination-handler:v1.25.6",
            }]}}},
        })
    };
    check(Health::Red, "aws-node-termination-handler runs beside us", |fixture| {
        fixture.put(resource::DAEMON_SET, handler());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn slices_that_karpenter_does_not_know_of_are_found() {
    let sliced = |fixture: &Fixture| {
        let mut node = node("gpu-1");
        node["status"]["allocatable"] = json!({"nvidia.com/gpu.shared": "4"});
        fixture.put(resource::NODE, node);
    };
    let stated =
        |fixture: &Fixture, name: &str| {
            fixture.put(resource::NODE_OVERLAY, json!({
            "metadata": {"name": "slices"}, "spec": {"requirements": [], "capacity": {name: 4}},
        }));
        };
    check(Health::Red, "slices `nvidia.com/gpu.shared`, and no NodeOverlay", |fixture| {
        sliced(fixture);
        stated(fixture, "nvidia.com/mig-1g.10gb");
    })
    .await;
    check(Health::Red, "Karpenter does not look at NodeOverlays", |fixture| {
        sliced(fixture);
        stated(fixture, "nvidia.com/gpu.shared");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn faults_of_workloads_are_found() {
    check(
        Health::Yellow,
        "interruptions count against the backoffLimit of `team/train`",
        |fixture| {
            fixture.put(resource::JOB, job(&Value::Null));
        },
    )
    .await;
    check(Health::Red, "one interruption fails these Jobs: `team/train`", |fixture| {
        let mut job = job(&Value::Null);
        job["spec"]["backoffLimit"] = json!(0);
        fixture.put(resource::JOB, job);
    })
    .await;
    check(Health::Yellow, "1 of 1 protected pods are not held: `team/train-0`", |fixture| {
        let mut pod = trainer(&json!({}));
        pod["metadata"]["annotations"] = json!({"lifeboat.dev/checkpoint": "sdk"});
        fixture.put(resource::POD, pod);
    })
    .await;
    check(Health::Red, "`team/train` could not be saved at a notice", |fixture| {
        fixture.put(
            resource::CHECKPOINT,
            checkpoint(&json!({"outlook": {
                "fits": false, "pod": "train-0", "node": "gpu-1", "at": "2026-11-22T12:00:00Z",
                "bytes": 60_u64 << 30, "window": 115, "needed": 242, "bytesPerSecond": 312_500_000,
                "by": "baseline",
            }})),
        );
    })
    .await;
    check(Health::Yellow, "the newest checkpoint of `team/train` is 60 min old", |fixture| {
        fixture.config.push_str("background.enabled = \"true\"\nbackground.every = \"10m\"\n");
    })
    .await;
    for (annotation, value, found) in [
        (
            "lifeboat.dev/checkpiont",
            "sdk",
            "annotation `lifeboat.dev/checkpiont`, which means nothing",
        ),
        ("lifeboat.dev/priority", "high", "annotation `lifeboat.dev/priority` is `high`"),
        ("lifeboat.dev/checkpoint-http", ":80/save", "which means nothing in its mode"),
        ("lifeboat.dev/checkpoint", "sdkk", "annotation `lifeboat.dev/checkpoint` is `sdkk`"),
    ] {
        check(Health::Yellow, found, |fixture| {
            fixture.put(resource::POD, trainer(&json!({annotation: value})));
        })
        .await;
    }
    check(Health::Yellow, "pod `team/train-0` has no job key", |fixture| {
        let mut pod = trainer(&json!({}));
        pod["metadata"]["ownerReferences"] = json!([owner("apps/v1", "ReplicaSet", "r")]);
        fixture.put(resource::POD, pod);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn faults_of_the_queue_are_found() {
    check(Health::Red, "the queue has no dead-letter queue", |fixture| {
        let policy = Some(policy("events.amazonaws.com"));
        let settings = Settings { policy, ..Settings::default() };
        fixture.world.update(|state| state.queues.create("ours", settings));
    })
    .await;
    check(Health::Red, "does not let EventBridge write", |fixture| {
        fixture.queue(&policy("sns.amazonaws.com"), 5);
    })
    .await;
    check(Health::Yellow, "a message is dead after 1 receives", |fixture| {
        fixture.queue(&policy("events.amazonaws.com"), 1);
    })
    .await;
    check(Health::Yellow, "1 messages wait in the queue", |fixture| {
        let now = fixture.world.now();
        fixture.world.update(|state| state.queues.send("ours", "{}", now).unwrap());
    })
    .await;
    check(Health::Red, "no rule sends the queue `EC2 Spot Instance Interruption", |fixture| {
        fixture.rules.remove(0);
    })
    .await;
    check(Health::Yellow, "no rule sends the queue `AWS Health Event`", |fixture| {
        fixture.rules.remove(2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn faults_of_the_bucket_are_found() {
    check(Health::Red, "creates an object that is there already", |fixture| {
        fixture.conditions = Conditions::Ignored;
    })
    .await;
    check(Health::Red, "the bucket is in `eu-west-1`, and the cluster in `us-east-2`", |fixture| {
        fixture.world.update(|state| state.bucket.move_to("eu-west-1"));
    })
    .await;
    check(Health::Red, "rule `old` of the bucket deletes objects after 30 days", |fixture| {
        let rules = "<LifecycleConfiguration><Rule><ID>old</ID><Filter/><Status>Enabled</Status>\
                     <Expiration><Days>30</Days></Expiration></Rule></LifecycleConfiguration>";
        fixture.world.update(|state| state.bucket.set_lifecycle(rules));
    })
    .await;
    // 3 GiB of state over a line of 16 MiB a second.
    check(Health::Red, "`team/train` with 3.0 GiB would take 19", |fixture| {
        fixture.world.update(|state| state.bucket.limit(HERE, 16 << 20));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn without_a_cluster_or_aws_the_rest_is_looked_at() {
    let fixture = Fixture::healthy();
    let config = Config::parse(Program::Controller, CONFIG).unwrap();
    let kube = Err("no API server is named".to_owned());
    let no_cluster = doctor::Clients { kube, ..fixture.clients() };
    let findings = doctor::examine(&config, &no_cluster).await;
    let expected = [(Health::Red, "no API server is named".to_owned())];
    assert_eq!(worse(&findings), expected);
    assert!(findings.iter().any(|one| one.found == "5 rules fill the queue"), "{findings:#?}");

    let away = wire::wire(|_: Request| async { Err("nobody is there".into()) });
    let signed = Signed { http: s3_http(&away), ..fixture.clients().signed };
    let store = Arc::new(s3_store(&away, "checkpoints").unwrap());
    let no_aws = doctor::Clients { sqs: sqs_client(&away), store, signed, ..fixture.clients() };
    let findings = doctor::examine(&config, &no_aws).await;
    let said: Vec<String> = worse(&findings).into_iter().map(|(_, found)| found).collect();
    for expected in ["queue `http://sqs.simulated/", "bucket `checkpoints` was not", "lifecycle"] {
        assert!(said.iter().any(|found| found.contains(expected)), "{expected}: {said:#?}");
    }
    let cluster = "each of 1 GPU nodes has its agent";
    assert!(findings.iter().any(|one| one.found == cluster), "{findings:#?}");
}
