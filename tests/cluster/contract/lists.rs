//! Lists: selected, paged, of which version, and of metadata alone.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::Value;
use serde_json::json;

use crate::rules::rules;
use crate::rules::witness::Answer;
use crate::rules::witness::NODES;
use crate::rules::witness::Witness;
use crate::rules::witness::node;
use crate::rules::witness::pod;

rules![
    a_list_is_of_one_namespace_or_of_all,
    a_list_is_selected_by_labels,
    a_list_is_selected_by_fields,
    a_field_that_cannot_be_selected_is_refused,
    a_list_is_paged,
    pages_are_of_one_version,
    a_page_of_a_forgotten_version_is_gone,
    a_token_that_is_none_is_refused,
    a_list_may_be_of_any_version,
    a_version_of_the_future_is_too_large,
    a_list_may_be_of_metadata_alone,
    a_list_says_its_kind_and_its_items_do_not,
    an_empty_list_is_a_list,
    what_is_not_there_is_not_found,
];

fn names(answer: &Answer) -> String {
    let names = answer.body["items"].as_array().into_iter().flatten();
    let names = names.map(|one| one["metadata"]["name"].as_str().unwrap_or_default());
    names.collect::<Vec<_>>().join(" ")
}

async fn a_list_is_of_one_namespace_or_of_all(witness: &mut Witness) {
    witness.running("a").await;
    let here = witness.read(&witness.here("pods")).await;
    witness.note("here", names(&here));
    let there = witness.read("/api/v1/namespaces/kube-system/pods?labelSelector=app%3Da").await;
    witness.note("elsewhere", names(&there));
    let path = format!("/api/v1/pods?fieldSelector=metadata.namespace%3D{}", witness.namespace());
    let all = witness.read(&path).await;
    witness.note("everywhere", names(&all));
    let nowhere = witness.read("/api/v1/namespaces/nowhere/pods").await;
    witness.note("nowhere", nowhere.short());
    witness.note("nowhere", names(&nowhere));
}

async fn a_list_is_selected_by_labels(witness: &mut Witness) {
    for name in ["a", "b", "c"] {
        witness.create(&witness.here("pods"), &pod(name)).await;
    }
    for selector in [
        "app=a",
        "app==a",
        "app!=a",
        "app in (a, b)",
        "app notin (a)",
        "app",
        "!app",
        "app in (a,b),app!=a",
        "other!=x",
        "app in ()",
        "app=(",
    ] {
        let query = selector.replace(' ', "%20").replace('=', "%3D").replace('!', "%21");
        let list = witness.read(&witness.here(&format!("pods?labelSelector={query}"))).await;
        witness.note(selector, format!("{} {}", list.short(), names(&list)));
    }
}

async fn a_list_is_selected_by_fields(witness: &mut Witness) {
    witness.running("a").await;
    let mut other = pod("b");
    other["spec"]["nodeName"] = json!("gpu-2");
    witness.create(&witness.here("pods"), &other).await;
    for selector in [
        "spec.nodeName=gpu-1",
        "spec.nodeName!=gpu-1",
        "metadata.name=b",
        "status.phase=Running",
        "status.phase!=Running,spec.nodeName=gpu-2",
        "spec.restartPolicy=Always",
        "metadata.name",
    ] {
        let query = selector.replace('=', "%3D").replace('!', "%21");
        let list = witness.read(&witness.here(&format!("pods?fieldSelector={query}"))).await;
        witness.note(selector, format!("{} {}", list.short(), names(&list)));
    }
    let mut body = node(&witness.own("gpu-1"));
    body["spec"] = json!({ "unschedulable": true });
    body["metadata"]["labels"] = json!({ "rule": witness.own("r") });
    witness.create(NODES, &body).await;
    let label = format!("labelSelector=rule%3D{}", witness.own("r"));
    for value in ["true", "false"] {
        let path = format!("{NODES}?fieldSelector=spec.unschedulable%3D{value}&{label}");
        let list = witness.read(&path).await;
        witness.note("cordoned", format!("{value} {}", names(&list)));
    }
}

async fn a_field_that_cannot_be_selected_is_refused(witness: &mut Witness) {
    let list = witness.read(&witness.here("pods?fieldSelector=spec.priority%3D1")).await;
    witness.note("pods", list.short());
    let list = witness.read(&format!("{NODES}?fieldSelector=spec.providerID%3Da")).await;
    witness.note("nodes", list.short());
}

async fn a_list_is_paged(witness: &mut Witness) {
    for name in ["a", "b", "c", "d", "e"] {
        witness.create(&witness.here("pods"), &pod(name)).await;
    }
    let mut path = witness.here("pods?limit=2");
    loop {
        let page = witness.read(&path).await;
        let metadata = &page.body["metadata"];
        witness.note("page", names(&page));
        witness.note("left", &metadata["remainingItemCount"]);
        let Some(token) = metadata["continue"].as_str().filter(|token| !token.is_empty()) else {
            break;
        };
        path = witness.here(&format!("pods?limit=2&continue={token}"));
    }
    let selected = witness.read(&witness.here("pods?limit=1&labelSelector=app")).await;
    witness.note("left of a selection", &selected.body["metadata"]["remainingItemCount"]);
    let cached = witness.read(&witness.here("pods?limit=2&resourceVersion=0")).await;
    witness.note("from the cache", names(&cached));
    let whole = witness.read(&witness.here("pods?limit=5")).await;
    witness.note("just enough", &whole.body["metadata"]["continue"]);
}

async fn pages_are_of_one_version(witness: &mut Witness) {
    for name in ["a", "c"] {
        witness.create(&witness.here("pods"), &pod(name)).await;
    }
    let first = witness.read(&witness.here("pods?limit=1")).await;
    witness.create(&witness.here("pods"), &pod("b")).await;
    witness.delete(&witness.pod("c"), json!({ "gracePeriodSeconds": 0 })).await;
    let token = first.body["metadata"]["continue"].as_str().unwrap_or_default();
    let second = witness.read(&witness.here(&format!("pods?limit=5&continue={token}"))).await;
    witness.note("second", names(&second));
    witness.note("same version", first.version() == second.version());
    let both = format!("pods?limit=5&continue={token}&resourceVersion={}", first.version());
    let refused = witness.read(&witness.here(&both)).await;
    witness.note("with a version beside it", refused.short());
}

async fn a_page_of_a_forgotten_version_is_gone(witness: &mut Witness) {
    let path = witness.here_of("lifeboat.dev/v1alpha1", "workloadcheckpoints");
    let index = |name: &str| {
        json!({
            "apiVersion": "lifeboat.dev/v1alpha1", "kind": "WorkloadCheckpoint",
            "metadata": { "name": name }, "spec": { "jobKey": name },
        })
    };
    for name in ["a", "b", "c", "d"] {
        witness.create(&path, &index(name)).await;
    }
    let first = witness.read(&format!("{path}?limit=1")).await;
    let token = first.body["metadata"]["continue"].as_str().unwrap_or_default();
    let mut token: Value =
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(token).unwrap()).unwrap();
    // The real server keeps some versions in its cache: this one is older than all of them.
    token["rv"] = json!(1);
    let token = BASE64_URL_SAFE_NO_PAD.encode(token.to_string());
    witness.delete(&format!("{path}/c"), json!({})).await;
    witness.forget().await;
    let gone = witness.read(&format!("{path}?limit=1&continue={token}")).await;
    witness.note("gone", &gone);
    let token = gone.body["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
    let rest = witness.read(&format!("{path}?limit=1&continue={token}")).await;
    witness.note("the rest as it is now", names(&rest));
    let token = rest.body["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
    let rest = witness.read(&format!("{path}?limit=1&continue={token}")).await;
    witness.note("and on", names(&rest));
}

async fn a_token_that_is_none_is_refused(witness: &mut Witness) {
    let refused = witness.read(&witness.here("pods?limit=1&continue=nonsense")).await;
    witness.note("refused", refused.short());
}

async fn a_list_may_be_of_any_version(witness: &mut Witness) {
    let made = witness.running("a").await;
    let any = witness.read(&witness.here("pods?resourceVersion=0")).await;
    witness.note("any", any.short());
    let version = made.version();
    let not_older = format!("pods?resourceVersion={version}&resourceVersionMatch=NotOlderThan");
    let list = witness.read(&witness.here(&not_older)).await;
    witness.note("not older", names(&list));
    let bare = witness.read(&witness.here(&format!("pods?resourceVersion={version}"))).await;
    witness.note("not older, by default", names(&bare));
    let alone = witness.read(&witness.here("pods?resourceVersionMatch=NotOlderThan")).await;
    witness.note("a match without a version", alone.short());
    let strange = format!("pods?resourceVersion={version}&resourceVersionMatch=Nearly");
    let refused = witness.read(&witness.here(&strange)).await;
    witness.note("a strange match", refused.short());
    let refused = witness.read(&witness.here("pods?resourceVersion=abc")).await;
    witness.note("no number", refused.short());
    let read = witness.read(&format!("{}?resourceVersion=0", witness.pod("a"))).await;
    witness.note("one object, any", read.short());
}

async fn a_version_of_the_future_is_too_large(witness: &mut Witness) {
    let far = "999999999";
    let refused = witness.read(&witness.here(&format!("pods?resourceVersion={far}"))).await;
    witness.note("list", refused.short());
    let after = refused.headers.get("retry-after").and_then(|value| value.to_str().ok());
    witness.note("retry after", after.unwrap_or("nothing"));
}

async fn a_list_may_be_of_metadata_alone(witness: &mut Witness) {
    witness.running("a").await;
    let accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let request = http::Request::get(witness.here("pods")).header("accept", accept);
    let list = witness.ask(request.body(Vec::new()).unwrap()).await;
    witness.note("kind", &list.body["kind"]);
    witness.note("kind of an item", &list.body["items"][0]["kind"]);
    witness.note("name", &list.body["items"][0]["metadata"]["name"]);
    witness.note("spec", &list.body["items"][0]["spec"]);
    let accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let request = http::Request::get(witness.pod("a")).header("accept", accept);
    let one = witness.ask(request.body(Vec::new()).unwrap()).await;
    witness.note("one", &one.body["kind"]);
    witness.note("spec of one", &one.body["spec"]);
}

async fn a_list_says_its_kind_and_its_items_do_not(witness: &mut Witness) {
    witness.running("a").await;
    let list = witness.read(&witness.here("pods")).await;
    witness.note("kind", &list.body["kind"]);
    witness.note("version", &list.body["apiVersion"]);
    witness.note("kind of a pod in it", &list.body["items"][0]["kind"]);
    let one = witness.read(&witness.pod("a")).await;
    witness.note("kind of one", &one.body["kind"]);
    witness.with_interruption().await;
    let name = witness.own("i-1");
    let path =
        format!("{}?fieldSelector=metadata.name%3D{name}", crate::rules::witness::INTERRUPTIONS);
    let list = witness.read(&path).await;
    witness.note("kind of a list of ours", &list.body["kind"]);
    witness.note("kind of a record in it", &list.body["items"][0]["kind"]);
}

async fn an_empty_list_is_a_list(witness: &mut Witness) {
    let list = witness.read(&witness.here("pods")).await;
    witness.note("items", &list.body["items"]);
    witness.note("has a version", !list.version().is_empty());
    let path = witness.here_of("lifeboat.dev/v1alpha1", "workloadcheckpoints");
    let list = witness.read(&path).await;
    witness.note("of ours", &list.body["items"]);
}

async fn what_is_not_there_is_not_found(witness: &mut Witness) {
    let paths = [
        ("node", witness.node()),
        ("pod", witness.pod("a")),
        ("record", witness.interruption()),
        ("claim", witness.claim()),
        ("lease", witness.here_of("coordination.k8s.io/v1", "leases/lb")),
        ("volume", "/api/v1/persistentvolumes/nothing".to_owned()),
        ("pool", "/apis/karpenter.sh/v1/nodepools/nothing".to_owned()),
        ("namespace", "/api/v1/namespaces/nowhere".to_owned()),
    ];
    for (what, path) in paths {
        let told = witness.read(&path).await;
        witness.note(what, told);
    }
}
