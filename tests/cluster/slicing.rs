//! The samples of `deploy/gpu-slicing`, held against the API server and the definitions that Karpenter
//! and JobSet release.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use lifeboat_chaos::control_plane;
use lifeboat_chaos::control_plane::ControlPlane;
use lifeboat_chaos::control_plane::Settings;
use serde::Deserialize;
use serde_json::Value;

use crate::chart::try_out;
use crate::plane;
use crate::theater::eventually;

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/gpu-slicing");

/// As it stands in many guides; each of its faults is one that the server names.
const COMMONLY_COPIED: &str = "
apiVersion: karpenter.sh/v1beta1
kind: NodePool
metadata: {name: gpu-nodepool}
spec:
  constraints:
    labels: {karpenter.sh/capacity-type: spot}
    taints: [{key: nvidia.com/gpu, effect: NoSchedule}]
    requirements:
      - {key: node.kubernetes.io/instance-type, operator: In, values: [g4dn.xlarge]}
  limits: {resources: {cpu: 1000}}
  nodeClassRef:
    apiVersion: karpenter.k8s.aws/v1beta1
    kind: EC2NodeClass
    name: gpu
";

#[tokio::test]
async fn every_sample_is_accepted_and_the_one_that_is_commonly_copied_is_not() {
    let Some((binaries, definitions)) = plane::binaries().zip(definitions()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start(Settings::new(&binaries, folder.path())).await.unwrap();
    let admin = plane.client();
    for definition in yaml_files(&definitions) {
        for object in objects(&definition) {
            try_out(&admin, &object, "").await.unwrap();
        }
    }
    let samples: Vec<Value> = ["karpenter", "workloads"]
        .iter()
        .flat_map(|folder| yaml_files(&Path::new(SAMPLES).join(folder)))
        .flat_map(|file| objects(&file))
        .collect();
    // A dry run makes nothing, and nothing is taken for a namespace that is not there.
    for object in samples.iter().filter(|object| object["kind"] == "Namespace") {
        try_out(&admin, object, "").await.unwrap();
    }
    // A definition is served a moment after it was taken.
    let node_class = samples.iter().find(|object| object["kind"] == "EC2NodeClass").unwrap();
    let job_set = samples.iter().find(|object| object["kind"] == "JobSet").unwrap();
    for object in [node_class, job_set] {
        eventually("the definition is served", async || {
            let said = try_out(&admin, object, "&dryRun=All").await.err().unwrap_or_default();
            (!said.contains("404")).then_some(())
        })
        .await;
    }
    let mut refused = Vec::new();
    for object in &samples {
        refused.extend(try_out(&admin, object, "&dryRun=All").await.err());
    }
    assert!(refused.is_empty(), "{refused:#?}");
    assert!(samples.len() >= 10, "{} samples", samples.len());

    let mut copied: Value = serde_yaml_ng::from_str(COMMONLY_COPIED).unwrap();
    let said = try_out(&admin, &copied, "&dryRun=All").await.unwrap_err();
    assert!(said.contains("404"), "v1beta1 is still served: {said}");
    copied["apiVersion"] = "karpenter.sh/v1".into();
    let said = try_out(&admin, &copied, "&dryRun=All").await.unwrap_err();
    assert!(said.contains(".spec.constraints"), "{said}");
}

/// The definitions that `tests/cluster/definitions/build` gathered; `None`, said aloud, where it did
/// not.
fn definitions() -> Option<PathBuf> {
    let found = control_plane::cache().map(|cache| cache.join("definitions"));
    let found = found.filter(|folder| folder.join("complete").exists());
    if found.is_none() {
        eprintln!("skipped: the definitions are not gathered (`make cluster-test` does it)");
    }
    found
}

fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|end| end == "yaml")).collect();
    files.sort();
    assert!(!files.is_empty(), "{}", folder.display());
    files
}

fn objects(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap();
    serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|object| !object.is_null())
        .collect()
}
