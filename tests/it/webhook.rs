//! The webhook over a real socket: TLS, and `AdmissionReview` as the API server sends it.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use lifeboat::clock::Clock;
use lifeboat::controller::webhook::certificate;
use lifeboat::controller::webhook::certificate::Certificate;
use lifeboat::controller::webhook::injection;
use lifeboat::controller::webhook::keep;
use lifeboat::controller::webhook::keep::Shown;
use lifeboat::controller::webhook::review::Review;
use lifeboat::controller::webhook::serve;
use lifeboat_domain::workload::Hold;
use serde_json::Value;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub(crate) mod line;

/// A webhook on a port of loopback, that shows this certificate.
struct Served {
    port: u16,
    name: String,
    shown: Arc<Shown>,
    certificate: Certificate,
    _task: JoinSet<()>,
}

impl Served {
    async fn new() -> Self {
        let name = keep::name("lifeboat-system");
        let certificate = certificate::make(&name, None, now()).unwrap();
        let shown = Arc::new(Shown::default());
        shown.show(&certificate).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut task = JoinSet::new();
        let resolver = shown.clone();
        task.spawn(serve::serve(listener, resolver, |body| std::future::ready(answer(&body))));
        Self { port, name, shown, certificate, _task: task }
    }

    fn post(&self, path: &str, body: &str) -> (u16, String) {
        let trusted = (self.name.as_str(), self.certificate.authorities());
        line::post(self.port, trusted, (path, body)).unwrap()
    }

    fn review(&self, pod: &Value) -> Value {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "name": "", "namespace": "team", "operation": "CREATE", "dryRun": false,
                "userInfo": {"username": "somebody"}, "object": pod, "oldObject": null,
                "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
            },
        });
        let (status, body) = self.post("/pods", &review.to_string());
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer["response"]["uid"], review["request"]["uid"]);
        assert_eq!(answer["response"]["allowed"], true);
        answer["response"].clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_answered_with_a_patch_that_gives_it_what_it_needs() {
    let served = Served::new().await;
    let pod = json!({
        "metadata": {"generateName": "train-", "annotations": {"lifeboat.dev/checkpoint": "sdk"}},
        "spec": {"containers": [{"name": "train", "image": "train"}]},
    });
    let response = served.review(&pod);
    assert_eq!(response["patchType"], "JSONPatch");
    let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let mut patched = pod.clone();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    json_patch::patch(&mut patched, &patch).unwrap();
    assert_eq!(patched["spec"]["volumes"][0]["csi"]["driver"], "lifeboat.dev");
    assert_eq!(patched["metadata"]["annotations"]["lifeboat.dev/job-key"], "job-1");

    let misspelt = json!({"metadata": {"annotations": {"lifeboat.dev/checkpoint": "skd"}}});
    let warnings = served.review(&misspelt)["warnings"].clone();
    assert!(warnings[0].as_str().unwrap().starts_with("lifeboat: annotation"), "{warnings}");

    let plain = json!({"metadata": {}, "spec": {"containers": []}});
    let response = served.review(&plain);
    assert_eq!(response.as_object().unwrap().len(), 2, "{response}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_review_is_refused_and_the_next_is_answered() {
    let served = Served::new().await;
    assert_eq!(served.post("/pods", "{").0, 400);
    assert_eq!(served.post("/pods", "{}").0, 400);
    assert_eq!(served.post("/nodes", "{}").0, 404);
    let long =
        "POST /pods HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\nConnection: close\r\n\r\n";
    let trusted = (served.name.as_str(), served.certificate.authorities());
    assert_eq!(line::say(served.port, trusted, long).unwrap().0, 413);
    served.review(&json!({"metadata": {}}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_shown_from_the_next_connection_on() {
    let served = Served::new().await;
    let second = certificate::make(&served.name, Some(&served.certificate), now()).unwrap();
    let is_trusted = |certificate: &Certificate| {
        line::is_trusted(served.port, &served.name, certificate.authorities())
    };
    // The last one is shown still, and trusted beside the new one.
    assert!(is_trusted(&served.certificate) && is_trusted(&second));
    served.shown.show(&second).unwrap();
    assert!(!is_trusted(&served.certificate) && is_trusted(&second));
    let other = certificate::make(&served.name, None, now()).unwrap();
    assert!(!is_trusted(&other));
}

fn answer(body: &[u8]) -> Option<String> {
    let review = Review::read(body).ok()?;
    let key = Ok("job-1".parse().unwrap());
    Some(review.answer(&injection::inject(review.pod(), &key, Hold::Always)))
}

fn now() -> Timestamp {
    Clock::system().now()
}
