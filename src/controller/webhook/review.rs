//! The API server's question about a pod, and its answer: `AdmissionReview`, `admission.k8s.io/v1`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;

use crate::controller::webhook::injection::Injection;

/// A question about a pod that is being made.
#[derive(Clone, Debug, Deserialize)]
pub struct Review {
    request: Asked,
}

#[derive(Clone, Debug, Deserialize)]
struct Asked {
    uid: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    object: Value,
}

impl Review {
    /// Reads a question.
    pub fn read(body: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(body)
    }

    /// The pod as it is so far.
    pub fn pod(&self) -> &Value {
        &self.request.object
    }

    /// The namespace that it is made in.
    pub fn namespace(&self) -> &str {
        &self.request.namespace
    }

    /// Its name, or what that will begin with.
    pub fn name(&self) -> &str {
        let metadata = &self.request.object["metadata"];
        metadata["name"].as_str().or(metadata["generateName"].as_str()).unwrap_or_default()
    }

    /// The pod may be made as it is.
    pub fn unchanged(&self) -> String {
        Self::response(&json!({"uid": self.request.uid, "allowed": true}))
    }

    /// The pod may be made, changed so. What could not be done is shown to whoever makes it.
    pub fn answer(&self, injection: &Injection) -> String {
        let patch = injection.patch(self.pod());
        if patch.0.is_empty() && injection.faults.is_empty() {
            return self.unchanged();
        }
        let patch = STANDARD.encode(json!(patch).to_string());
        let warnings = injection.faults.iter().map(|fault| format!("lifeboat: {fault}"));
        Self::response(&json!({
            "uid": self.request.uid,
            "allowed": true,
            "patchType": "JSONPatch",
            "patch": patch,
            "warnings": warnings.collect::<Vec<_>>(),
        }))
    }

    fn response(response: &Value) -> String {
        json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "response": response,
        })
        .to_string()
    }
}
