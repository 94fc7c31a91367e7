//! The simulated API server and the real one, held to the same rules.

use std::path::Path;
use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::PostParams;
use lifeboat_chaos::control_plane::ControlPlane;
use lifeboat_chaos::control_plane::Part;
use lifeboat_chaos::control_plane::Settings;
use serde_json::json;
use tokio::sync::Mutex;

use crate::plane::binaries;
use crate::rules::CHAPTERS;
use crate::rules::CONTROLLERS;
use crate::rules::Chapter;
use crate::rules::Levers;
use crate::rules::Told;
use crate::rules::differences;

/// With this set, what the real server says is recorded.
const UPDATE: &str = "UPDATE_GOLDEN";

#[tokio::test]
async fn the_real_server_keeps_every_rule_as_recorded() {
    let Some(binaries) = binaries() else { return };
    let folder = tempfile::tempdir().unwrap();
    let plane = quiet(&binaries, folder.path()).await;
    let plane = Arc::new(Mutex::new(plane));
    let mut wrong = String::new();
    for chapter in CHAPTERS {
        wrong += &asked(chapter, &plane).await;
    }
    plane.lock().await.launch(Part::ControllerManager).await.unwrap();
    wrong += &asked(&CONTROLLERS, &plane).await;
    assert!(wrong.is_empty(), "the real server says otherwise (+) than recorded (-)\n{wrong}");
}

async fn asked(chapter: &Chapter, plane: &Arc<Mutex<ControlPlane>>) -> String {
    let told = chapter.ask(async || real(plane).await).await;
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(chapter.path(), written(&told)).unwrap();
    }
    differences(&chapter.recorded(), &told)
}

fn written(told: &Told) -> String {
    let rule =
        |(rule, lines): &(String, Vec<String>)| format!("{rule}\n  {}\n", lines.join("\n  "));
    told.iter().map(rule).collect::<Vec<_>>().join("\n")
}

/// The API server without its controllers: nobody writes but who asks.
async fn quiet(binaries: &Path, folder: &Path) -> ControlPlane {
    let mut plane = ControlPlane::start(Settings::new(binaries, folder)).await.unwrap();
    define(&plane, &binaries.join("crds")).await;
    for part in [Part::ControllerManager, Part::Scheduler, Part::Kwok] {
        plane.end(part).await;
    }
    plane
}

/// Gives the server Karpenter's definitions, without Karpenter.
async fn define(plane: &ControlPlane, folder: &Path) {
    let api: Api<CustomResourceDefinition> = Api::all(plane.client());
    for file in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let definition: CustomResourceDefinition = serde_yaml_ng::from_str(&text).unwrap();
        let made = api.create(&PostParams::default(), &definition).await.unwrap();
        let served = kube::runtime::wait::conditions::is_crd_established();
        let name = made.metadata.name.unwrap();
        kube::runtime::wait::await_condition(api.clone(), &name, served).await.unwrap();
    }
}

async fn real(plane: &Arc<Mutex<ControlPlane>>) -> Levers {
    let (old, new) = (Arc::clone(plane), Arc::clone(plane));
    let forget = move || -> BoxFuture<'static, ()> {
        let plane = Arc::clone(&old);
        Box::pin(async move { compact(&*plane.lock().await).await })
    };
    let restart = move || -> BoxFuture<'static, ()> {
        let plane = Arc::clone(&new);
        Box::pin(async move { plane.lock().await.restart(Part::ApiServer).await.unwrap() })
    };
    let client = plane.lock().await.client();
    Levers { client, forget: Box::new(forget), restart: Box::new(restart) }
}

/// Makes etcd forget all but the newest version.
async fn compact(plane: &ControlPlane) {
    let list = http::Request::get("/api/v1/namespaces").body(Vec::new()).unwrap();
    let list: serde_json::Value = plane.client().request(list).await.unwrap();
    let newest = &list["metadata"]["resourceVersion"];
    let etcd = kube::Config::new(plane.etcd().parse().unwrap());
    let etcd = kube::Client::try_from(etcd).unwrap();
    let body = json!({ "revision": newest, "physical": true }).to_string().into_bytes();
    let request = http::Request::post("/v3/kv/compaction").body(body).unwrap();
    etcd.request_text(request).await.unwrap();
}
