//! Whether the API server lets whoever asks do what the controller does.

use futures::StreamExt;
use futures::stream;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReviewSpec;
use kube::Api;
use kube::Client;
use kube::api::PostParams;
use serde::Deserialize;
use serde_json::Value;

use super::Finding;
use super::few;
use crate::config::Config;
use crate::error::Chain;

/// What the chart grants: what our programs were seen to use, and nothing else.
const ROLES: &str = include_str!("../../../deploy/helm/lifeboat/files/rbac.yaml");
/// Whose rights are asked for: doctor is run with them by `helm test`.
const PROGRAM: &str = "lifeboat-controller";
/// Questions at a time.
const AT_A_TIME: usize = 8;

/// One right, as the server is asked for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Right {
    verb: String,
    group: String,
    resource: String,
    subresource: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
}

pub(super) async fn examine(config: &Config, client: &Client) -> Vec<Finding> {
    let all = rights(ROLES, &config.namespace);
    let count = all.len();
    let answers = stream::iter(all).map(|right| ask(client, right)).buffer_unordered(AT_A_TIME);
    let answers: Vec<(Right, kube::Result<bool>)> = answers.collect().await;
    if let Some(error) = answers.iter().find_map(|(_, answer)| answer.as_ref().err()) {
        let found = format!("rights were not asked for: {}", Chain(error));
        return vec![Finding::yellow(found, "check the API server's log")];
    }
    let denied = answers.iter().filter(|(_, answer)| matches!(answer, Ok(false)));
    let mut denied: Vec<String> = denied.map(|(right, _)| right.said()).collect();
    denied.sort();
    judge(count, &denied, who(client).await.as_deref())
}

fn judge(count: usize, denied: &[String], who: Option<&str>) -> Vec<Finding> {
    let who = who.unwrap_or("whoever asks");
    if denied.is_empty() {
        return vec![Finding::green(format!("`{who}` has all {count} rights of the controller"))];
    }
    let found = format!("`{who}` may not {}", few(denied));
    if who.ends_with(&format!(":{PROGRAM}")) {
        return vec![Finding::red(found, "apply the roles of this release's chart")];
    }
    vec![Finding::yellow(
        found,
        "the controller needs it: `helm test` asks with the controller's own rights",
    )]
}

async fn who(client: &Client) -> Option<String> {
    let api: Api<SelfSubjectReview> = Api::all(client.clone());
    let review = api.create(&PostParams::default(), &SelfSubjectReview::default()).await.ok()?;
    review.status?.user_info?.username
}

async fn ask(client: &Client, right: Right) -> (Right, kube::Result<bool>) {
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let attributes = ResourceAttributes {
        verb: Some(right.verb.clone()),
        group: Some(right.group.clone()),
        resource: Some(right.resource.clone()),
        subresource: right.subresource.clone(),
        namespace: right.namespace.clone(),
        name: right.name.clone(),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec {
        resource_attributes: Some(attributes),
        ..SelfSubjectAccessReviewSpec::default()
    };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let answer = api.create(&PostParams::default(), &review).await;
    (right, answer.map(|review| review.status.is_some_and(|status| status.allowed)))
}

impl Right {
    fn said(&self) -> String {
        let group = if self.group.is_empty() { String::new() } else { format!(".{}", self.group) };
        let below = self.subresource.as_ref().map_or_else(String::new, |name| format!("/{name}"));
        format!("{} {}{group}{below}", self.verb, self.resource)
    }
}

/// The rights of the controller among the roles of the chart, which stand in our own namespace where
/// they stand in one.
fn rights(roles: &str, ours: &str) -> Vec<Right> {
    let mut rights = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(roles) {
        let role = Value::deserialize(document).unwrap_or_default();
        if role["metadata"]["name"] != PROGRAM {
            continue;
        }
        let namespace = role["metadata"]["namespace"].as_str().map(|_| ours.to_owned());
        for rule in role["rules"].as_array().into_iter().flatten() {
            let named = texts(&rule["resourceNames"]).first().map(|name| (*name).to_owned());
            for (resource, verb) in texts(&rule["resources"]).into_iter().flat_map(|resource| {
                texts(&rule["verbs"]).into_iter().map(move |verb| (resource, verb))
            }) {
                let (resource, subresource) = match resource.split_once('/') {
                    Some((resource, below)) => (resource, Some(below.to_owned())),
                    None => (resource, None),
                };
                rights.push(Right {
                    verb: verb.to_owned(),
                    group: texts(&rule["apiGroups"])
                        .first()
                        .copied()
                        .unwrap_or_default()
                        .to_owned(),
                    resource: resource.to_owned(),
                    subresource,
                    namespace: namespace.clone(),
                    name: named.clone(),
                });
            }
        }
    }
    rights
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::Health;

    #[test]
    fn the_rights_are_those_of_the_chart() {
        let rights = rights(ROLES, "boats");
        let said: Vec<String> = rights.iter().map(Right::said).collect();
        for expected in [
            "patch nodes",
            "create pods/eviction",
            "delete nodeclaims.karpenter.sh",
            "list namespaces",
        ] {
            assert!(said.contains(&expected.to_owned()), "no `{expected}` in {said:?}");
        }
        let lease = rights.iter().find(|one| one.resource == "leases" && one.verb == "update");
        let lease = lease.unwrap();
        assert_eq!(lease.name.as_deref(), Some("lifeboat-controller"));
        assert_eq!(lease.namespace.as_deref(), Some("boats"));
    }

    #[test]
    fn only_the_controllers_own_lack_is_grave() {
        let denied = ["patch nodes".to_owned()];
        for (who, expected) in [
            ("system:serviceaccount:lifeboat-system:lifeboat-controller", Health::Red),
            ("somebody", Health::Yellow),
        ] {
            let found = judge(40, &denied, Some(who));
            assert_eq!(found[0].health, expected, "{who}");
            assert!(found[0].found.contains("patch nodes"), "{found:?}");
        }
    }
}
