//! What the programs ask of AWS, by the names that policies have for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use http::Method;

use crate::faults::WireName;
use crate::wire::Request;
use crate::wire::Wire;
use crate::wire::call;
use crate::wire::wire;

/// Who asked for what, as `lifeboat-agent-gpu-1` and `s3:PutObject`; every clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Actions(Arc<Mutex<BTreeSet<(String, String)>>>);

impl Actions {
    /// Notes what this client asks over a wire to AWS.
    pub fn before(&self, name: WireName, client: &str, inner: Wire) -> Wire {
        let (actions, client) = (self.clone(), client.to_owned());
        wire(move |request: Request| {
            if let Some(action) = action(name, &request) {
                let mut seen = actions.0.lock().unwrap_or_else(PoisonError::into_inner);
                seen.insert((client.clone(), action));
            }
            call(&inner, request)
        })
    }

    /// All of it.
    pub fn seen(&self) -> BTreeSet<(String, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The action that a policy must allow; nothing on wires that AWS guards by no policy.
///
/// Source: Service Authorization Reference, "Amazon SQS", "Amazon S3": a batch needs what one needs.
fn action(name: WireName, request: &Request) -> Option<String> {
    match name {
        WireName::Sqs => {
            let target = request.headers().get("x-amz-target")?.to_str().ok()?;
            let action = target.strip_prefix("AmazonSQS.")?;
            Some(format!("sqs:{}", action.strip_suffix("Batch").unwrap_or(action)))
        }
        WireName::S3 => {
            let query = request.uri().query().unwrap_or_default();
            let (is_list, deletes) = (query.contains("list-type"), query.contains("delete"));
            Some(match *request.method() {
                Method::GET if is_list => "s3:ListBucket".to_owned(),
                Method::GET if query.starts_with("lifecycle") => {
                    "s3:GetLifecycleConfiguration".to_owned()
                }
                Method::GET | Method::HEAD => "s3:GetObject".to_owned(),
                // Many at once, as `POST /bucket?delete`.
                Method::POST if deletes => "s3:DeleteObject".to_owned(),
                Method::PUT | Method::POST => "s3:PutObject".to_owned(),
                Method::DELETE => "s3:DeleteObject".to_owned(),
                ref other => format!("s3:{other}"),
            })
        }
        WireName::Kube | WireName::Imds | WireName::Kubelet => None,
    }
}
