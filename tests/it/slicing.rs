//! The samples of `deploy/gpu-slicing` agree with one another: what the device plugin offers, what
//! Karpenter is told, and what workloads ask for.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;

use serde::Deserialize;
use serde_json::Value;

use crate::sources::files;
use crate::sources::root;

const SAMPLES: &str = "deploy/gpu-slicing";
/// What a Spot notice leaves.
const NOTICE: u64 = 120;
/// What is left of it to a pod that saves itself: `drain.sigtermMargin`.
const SIGTERM: u64 = 110;

#[test]
fn what_workloads_ask_for_is_offered_and_stated() {
    let stated = stated();
    let asked: BTreeSet<String> = pods().iter().flat_map(|pod| gpus(&pod.spec)).collect();
    assert_eq!(asked, BTreeSet::from(["nvidia.com/gpu.shared".to_owned()]));
    for name in &asked {
        assert!(stated.contains_key(name), "no overlay states `{name}`");
    }
    for (file, name, replicas) in [
        ("time-slicing.yaml", "nvidia.com/gpu", 4_u64),
        ("time-slicing-renamed.yaml", "nvidia.com/gpu.shared", 4),
        ("mps.yaml", "nvidia.com/gpu.shared", 4),
    ] {
        let sharing = plugin(file)["sharing"].clone();
        let how = if file == "mps.yaml" { &sharing["mps"] } else { &sharing["timeSlicing"] };
        let offered = &how["resources"][0];
        assert_eq!(offered["name"], "nvidia.com/gpu", "{file}");
        assert_eq!(offered["replicas"], replicas, "{file}");
        let renamed = how["renameByDefault"] == true;
        assert_eq!(renamed, name.ends_with(".shared"), "{file}");
        assert_eq!(how["failRequestsGreaterThanOne"], true, "{file}");
        if renamed {
            // Of a node with one GPU: replicas times GPUs.
            assert_eq!(stated[name], BTreeMap::from([(1, replicas)]), "{file}");
        }
    }
    assert_eq!(plugin("mig.yaml")["flags"]["migStrategy"], "mixed");
    // Seven parts of each GPU, on nodes with one and with eight.
    assert_eq!(stated["nvidia.com/mig-1g.10gb"], BTreeMap::from([(1, 7), (8, 56)]));
}

#[test]
fn every_batch_sample_forgives_an_interruption_and_keeps_its_key() {
    let mut keys = BTreeSet::new();
    for pod in pods().iter().filter(|pod| pod.kind != "Deployment") {
        let rule = &pod.above["podFailurePolicy"]["rules"][0];
        assert_eq!(rule["action"], "Ignore", "{}", pod.name);
        assert_eq!(rule["onPodConditions"][0]["type"], "DisruptionTarget", "{}", pod.name);
        assert_eq!(pod.spec["restartPolicy"], "Never", "{}", pod.name);
        assert_eq!(pod.annotations["karpenter.sh/do-not-disrupt"], "true", "{}", pod.name);
        // The volume says the same as the annotations.
        let attributes = &pod.spec["volumes"][0]["csi"]["volumeAttributes"];
        for key in ["lifeboat.dev/checkpoint", "lifeboat.dev/job-key"] {
            assert_eq!(attributes[key], pod.annotations[key], "{}", pod.name);
        }
        let key = pod.annotations["lifeboat.dev/job-key"].as_str().unwrap().to_owned();
        assert!(keys.insert(key), "{}: two pods under one key", pod.name);
    }
    assert!(keys.len() >= 4, "{keys:?}");
}

#[test]
fn the_inference_server_ends_within_its_grace_and_that_within_the_notice() {
    let pods = pods();
    let server = pods.iter().find(|pod| pod.kind == "Deployment").unwrap();
    let container = &server.spec["containers"][0];
    let mut arguments = container["args"].as_array().unwrap().iter().filter_map(Value::as_str);
    let timeout = arguments.find_map(|one| one.strip_prefix("--shutdown-timeout="));
    let timeout: u64 = timeout.unwrap().parse().unwrap();
    let leaves = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap();
    let grace = server.spec["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(leaves + timeout < grace && grace <= SIGTERM, "{leaves} + {timeout}, {grace}");
    assert_eq!(server.annotations["lifeboat.dev/checkpoint"], "sigterm");
}

#[test]
fn every_pool_leaves_the_time_that_its_workloads_need_and_is_tolerated() {
    let pods = pods();
    let longest = pods.iter().map(|pod| pod.spec["terminationGracePeriodSeconds"].as_u64());
    let longest = longest.map(|grace| grace.unwrap_or(30)).max().unwrap();
    let pools = of_kind("karpenter", "NodePool");
    assert_eq!(pools.len(), 3);
    for pool in &pools {
        let spec = &pool["spec"]["template"]["spec"];
        let limit = spec["terminationGracePeriod"].as_str().unwrap();
        let limit: u64 = limit.strip_suffix('m').unwrap().parse().unwrap();
        assert!(limit * 60 >= NOTICE + longest, "{}", pool["metadata"]["name"]);
        for taint in spec["taints"].as_array().unwrap() {
            for pod in &pods {
                let tolerated = pod.spec["tolerations"].as_array().unwrap().iter();
                let mut tolerated = tolerated.filter(|one| one["operator"] == "Exists");
                assert!(tolerated.any(|one| one["key"] == taint["key"]), "{}", pod.name);
            }
        }
    }
}

/// A pod as a sample makes it.
struct Pod {
    kind: String,
    name: String,
    annotations: Value,
    spec: Value,
    /// What the Job above it says.
    above: Value,
}

fn pods() -> Vec<Pod> {
    let mut pods = Vec::new();
    for object in objects("workloads") {
        let kind = object["kind"].as_str().unwrap();
        let jobs: Vec<&Value> = match kind {
            "Job" | "Deployment" => vec![&object["spec"]],
            "JobSet" => {
                let jobs = object["spec"]["replicatedJobs"].as_array().unwrap();
                jobs.iter().map(|job| &job["template"]["spec"]).collect()
            }
            _ => continue,
        };
        pods.extend(jobs.into_iter().map(|above| Pod {
            kind: kind.to_owned(),
            name: object["metadata"]["name"].as_str().unwrap().to_owned(),
            annotations: above["template"]["metadata"]["annotations"].clone(),
            spec: above["template"]["spec"].clone(),
            above: above.clone(),
        }));
    }
    assert!(pods.len() >= 5);
    pods
}

fn gpus(spec: &Value) -> Vec<String> {
    let containers = spec["containers"].as_array().unwrap().iter();
    let limits = containers.flat_map(|one| one["resources"]["limits"].as_object().unwrap());
    let gpus = limits.filter(|(name, _)| name.starts_with("nvidia.com/"));
    gpus.inspect(|(_, count)| assert_eq!(**count, 1)).map(|(name, _)| name.clone()).collect()
}

/// What overlays state: by resource, the count on nodes with so many GPUs.
fn stated() -> BTreeMap<String, BTreeMap<u64, u64>> {
    let mut stated: BTreeMap<String, BTreeMap<u64, u64>> = BTreeMap::new();
    for overlay in of_kind("karpenter", "NodeOverlay") {
        let requirements = overlay["spec"]["requirements"].as_array().unwrap();
        let count = requirements
            .iter()
            .find(|one| one["key"] == "karpenter.k8s.aws/instance-gpu-count")
            .and_then(|one| one["values"][0].as_str()?.parse().ok())
            .unwrap();
        for (name, capacity) in overlay["spec"]["capacity"].as_object().unwrap() {
            stated.entry(name.clone()).or_default().insert(count, capacity.as_u64().unwrap());
        }
    }
    stated
}

/// The device plugin's own configuration in these values of its chart.
fn plugin(file: &str) -> Value {
    let path = root().join(SAMPLES).join("device-plugin").join(file);
    let values: Value = serde_yaml_ng::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let name = values["config"]["default"].as_str().unwrap();
    let text = values["config"]["map"][name].as_str().unwrap();
    let config: Value = serde_yaml_ng::from_str(text).unwrap();
    assert_eq!(config["version"], "v1");
    config
}

fn of_kind(folder: &str, kind: &str) -> Vec<Value> {
    let mut all = objects(folder);
    all.retain(|object| object["kind"] == kind);
    all
}

fn objects(folder: &str) -> Vec<Value> {
    let mut objects = Vec::new();
    for file in files(&root().join(SAMPLES).join(folder)) {
        let text = fs::read_to_string(file).unwrap();
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            objects.push(Value::deserialize(document).unwrap());
        }
    }
    objects.retain(|object| !object.is_null());
    objects
}
