//! `lifeboat crds`: both resource definitions as YAML.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::crd::node_interruption::NodeInterruption;
use crate::crd::workload_checkpoint::WorkloadCheckpoint;

/// Both definitions, by the name of their file in the chart.
pub fn definitions() -> [(&'static str, CustomResourceDefinition); 2] {
    [
        ("nodeinterruptions.yaml", NodeInterruption::crd()),
        ("workloadcheckpoints.yaml", WorkloadCheckpoint::crd()),
    ]
}

/// Both definitions, ready for `kubectl apply -f -`.
pub fn yaml() -> String {
    definitions().iter().map(|(_, definition)| document(definition)).collect()
}

/// One definition as a document of YAML.
pub fn document(definition: &CustomResourceDefinition) -> String {
    let text = serde_yaml_ng::to_string(definition).expect("a definition is plain data");
    format!("---\n{text}")
}
