//! The roles that the chart gives to our programs, for those that play on the control planes.

use lifeboat_chaos::company::objects::Objects;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/lifeboat/files/rbac.yaml");

/// Gives the programs in this namespace what the chart gives them, and nothing else.
pub(crate) async fn grant(objects: &Objects, namespace: &str) {
    let text = std::fs::read_to_string(FILE).unwrap();
    for document in serde_yaml_ng::Deserializer::from_str(&text) {
        let mut object = Value::deserialize(document).unwrap();
        let metadata = &mut object["metadata"];
        if !metadata["namespace"].is_null() {
            metadata["namespace"] = json!(namespace);
        }
        let shared = object["kind"] == "ClusterRole";
        if object["kind"] == "ClusterRoleBinding" {
            let name = object["metadata"]["name"].as_str().unwrap();
            object["metadata"]["name"] = json!(format!("{namespace}-{name}"));
        }
        if !object["subjects"].is_null() {
            object["subjects"] = subjects(&object["subjects"][0], namespace);
        }
        match objects.create(object).await {
            Ok(_) => (),
            // A test before this one made it.
            Err(kube::Error::Api(status)) if shared && status.code == 409 => (),
            Err(error) => panic!("{error}"),
        }
    }
}

/// The names that a program has here: replicas of the controller are told apart.
fn subjects(subject: &Value, namespace: &str) -> Value {
    let names: &[&str] = match subject["name"].as_str() {
        Some("lifeboat-agent") => &["agent"],
        _ => &["controller-0", "controller-1"],
    };
    let account = |name| json!({"kind": "ServiceAccount", "namespace": namespace, "name": name});
    names.iter().map(account).collect()
}
