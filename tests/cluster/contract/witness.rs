//! Who asks a server and notes down what it says, in words that are the same on every server.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use futures::future::BoxFuture;
use http::Method;
use http_body_util::BodyExt;
use serde_json::Value;
use serde_json::json;

/// Longest that an answer, or a line of a watch, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long nothing may come for a watch to be called quiet.
const QUIET: Duration = Duration::from_millis(400);

/// A server, and what can be done to it from behind.
pub(crate) struct Levers {
    /// Its client.
    pub(crate) client: kube::Client,
    /// Makes it forget old versions.
    pub(crate) forget: Lever,
    /// Ends it and starts it again: all connections break.
    pub(crate) restart: Lever,
}

/// Something done to a server from behind.
pub(crate) type Lever = Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// Asks one rule of one server.
pub(crate) struct Witness {
    levers: Levers,
    /// What makes names of this rule its own, and is its namespace.
    tag: String,
    said: Vec<String>,
}

/// What was answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: Value,
    pub(crate) headers: http::HeaderMap,
}

/// A watch that is open.
pub(crate) struct Watch {
    /// None once it has ended.
    body: Option<Pin<Box<kube::client::Body>>>,
    read: Vec<u8>,
}

impl Witness {
    pub(crate) async fn new(levers: Levers, tag: &str) -> Self {
        let witness = Self { levers, tag: tag.to_owned(), said: Vec::new() };
        witness.create("/api/v1/namespaces", &json!({ "metadata": { "name": tag } })).await;
        // The real server lets no pod in without it; the simulated one has no such kind.
        let account = json!({ "metadata": { "name": "default" } });
        witness.create(&witness.here("serviceaccounts"), &account).await;
        witness
    }

    pub(crate) fn said(self) -> Vec<String> {
        self.said
    }

    pub(crate) fn client(&self) -> kube::Client {
        self.levers.client.clone()
    }

    pub(crate) async fn forget(&self) {
        (self.levers.forget)().await;
    }

    pub(crate) async fn restart(&self) {
        (self.levers.restart)().await;
    }

    /// Reads an object until it is as wanted, or for as long as anything is waited for.
    pub(crate) async fn until(&self, path: &str, wanted: impl Fn(&Answer) -> bool) -> Answer {
        const PAUSE: Duration = Duration::from_millis(50);
        let tries = PATIENCE.as_millis() / PAUSE.as_millis();
        for _ in 1..tries {
            let answer = self.read(path).await;
            if wanted(&answer) {
                return answer;
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.read(path).await
    }

    /// A name that no other rule has.
    pub(crate) fn own(&self, name: &str) -> String {
        format!("{name}-{}", self.tag)
    }

    /// The namespace of this rule.
    pub(crate) fn namespace(&self) -> &str {
        &self.tag
    }

    /// A collection of the core group in the namespace of this rule, or one of its objects.
    pub(crate) fn here(&self, rest: &str) -> String {
        format!("/api/v1/namespaces/{}/{rest}", self.tag)
    }

    /// As [`Self::here`], of another group.
    pub(crate) fn here_of(&self, group: &str, rest: &str) -> String {
        format!("/apis/{group}/namespaces/{}/{rest}", self.tag)
    }

    pub(crate) fn node(&self) -> String {
        format!("/api/v1/nodes/{}", self.own("gpu-1"))
    }

    pub(crate) fn interruption(&self) -> String {
        format!("{INTERRUPTIONS}/{}", self.own("i-1"))
    }

    pub(crate) fn claim(&self) -> String {
        format!("{CLAIMS}/{}", self.own("c-1"))
    }

    pub(crate) async fn read(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None).await
    }

    pub(crate) async fn create(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, &managed(path), Some(("application/json", body))).await
    }

    pub(crate) async fn replace(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PUT, &managed(path), Some(("application/json", body))).await
    }

    pub(crate) async fn json_patch(&self, path: &str, body: &Value) -> Answer {
        self.patch(path, "application/json-patch+json", body).await
    }

    pub(crate) async fn merge_patch(&self, path: &str, body: &Value) -> Answer {
        self.patch(path, "application/merge-patch+json", body).await
    }

    pub(crate) async fn strategic_patch(&self, path: &str, body: &Value) -> Answer {
        self.patch(path, "application/strategic-merge-patch+json", body).await
    }

    pub(crate) async fn patch(&self, path: &str, content_type: &str, body: &Value) -> Answer {
        self.send(Method::PATCH, &managed(path), Some((content_type, body))).await
    }

    /// Applies under a manager's name; a conflict is refused.
    pub(crate) async fn apply(&self, path: &str, manager: &str, body: &Value) -> Answer {
        let path = format!("{path}?fieldManager={manager}&force=false");
        self.send(Method::PATCH, &path, Some(("application/apply-patch+yaml", body))).await
    }

    /// Applies under a manager's name, and takes over what others own.
    pub(crate) async fn force(&self, path: &str, manager: &str, body: &Value) -> Answer {
        let path = format!("{path}?fieldManager={manager}&force=true");
        self.send(Method::PATCH, &path, Some(("application/apply-patch+yaml", body))).await
    }

    pub(crate) async fn delete(&self, path: &str, options: Value) -> Answer {
        let mut body = json!({ "apiVersion": "v1", "kind": "DeleteOptions" });
        for (key, value) in options.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        self.send(Method::DELETE, path, Some(("application/json", &body))).await
    }

    pub(crate) async fn evict(&self, pod: &str, options: Value) -> Answer {
        let body = json!({
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": { "name": pod, "namespace": self.tag }, "deleteOptions": options,
        });
        self.create(&self.here(&format!("pods/{pod}/eviction")), &body).await
    }

    pub(crate) async fn watch(&self, path: &str) -> Watch {
        let request = http::Request::get(path).header("user-agent", "contract/1").body(Vec::new());
        let request = request.unwrap().map(kube::client::Body::from);
        let answer = tokio::time::timeout(PATIENCE, self.levers.client.send(request)).await;
        let answer = answer.expect("a watch begins").expect("a watch is answered");
        Watch { body: Some(Box::pin(answer.into_body())), read: Vec::new() }
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Answer {
        let mut request = http::Request::builder().method(method).uri(path);
        request = request.header("user-agent", "contract/1");
        let mut bytes = Vec::new();
        if let Some((content_type, body)) = body {
            request = request.header("content-type", content_type);
            bytes = body.to_string().into_bytes();
        }
        self.ask(request.body(bytes).unwrap()).await
    }

    pub(crate) async fn ask(&self, request: http::Request<Vec<u8>>) -> Answer {
        let request = request.map(kube::client::Body::from);
        let answer = tokio::time::timeout(PATIENCE, self.levers.client.send(request)).await;
        let answer = answer.expect("a request is answered in time").expect("a request is answered");
        let (code, headers) = (answer.status().as_u16(), answer.headers().clone());
        let bytes = answer.into_body().collect_bytes().await.expect("an answer has a body");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Answer { code, body, headers }
    }

    /// Notes what was said.
    pub(crate) fn note(&mut self, what: &str, told: impl fmt::Display) {
        let told = told.to_string().replace(&format!("-{}", self.tag), "");
        let told = told.replace(&self.tag, "here").replace('\n', " / ");
        self.said.push(format!("{what}: {}", without_uids(&told)));
    }
}

/// Our records.
pub(crate) const INTERRUPTIONS: &str = "/apis/lifeboat.dev/v1alpha1/nodeinterruptions";
/// Karpenter's claims.
pub(crate) const CLAIMS: &str = "/apis/karpenter.sh/v1/nodeclaims";
/// Nodes.
pub(crate) const NODES: &str = "/api/v1/nodes";

impl Answer {
    /// The version of the object.
    pub(crate) fn version(&self) -> &str {
        self.body["metadata"]["resourceVersion"].as_str().unwrap_or_default()
    }

    /// The UID of the object.
    pub(crate) fn uid(&self) -> &str {
        self.body["metadata"]["uid"].as_str().unwrap_or_default()
    }

    /// Code and reason, and what it is about, without the words for people.
    pub(crate) fn short(&self) -> String {
        if self.code < 300 {
            return self.code.to_string();
        }
        let Self { code, body, .. } = self;
        let details = &body["details"];
        let mut text = format!("{code} {}", body["reason"].as_str().unwrap_or("without reason"));
        for part in ["group", "kind", "name"] {
            if let Some(told) = details[part].as_str() {
                text = format!("{text} {told}");
            }
        }
        let causes = details["causes"].as_array().into_iter().flatten();
        let mut causes: Vec<String> = causes.map(told_cause).collect();
        // The real server checks some rules twice, and says when it left some out.
        causes.dedup();
        causes.retain(|cause| cause != " [FieldValueInvalid <nil>]");
        text.extend(causes);
        if let Some(seconds) = details["retryAfterSeconds"].as_i64() {
            text = format!("{text} after {seconds} s");
        }
        text
    }
}

fn told_cause(cause: &Value) -> String {
    let [reason, field] = ["reason", "field"].map(|part| cause[part].as_str().unwrap_or_default());
    format!(" [{reason} {field}]")
}

impl fmt::Display for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.short())?;
        match self.body["message"].as_str() {
            Some(message) if self.code >= 300 => write!(formatter, ": {message}"),
            _ => Ok(()),
        }
    }
}

impl Watch {
    /// The next line; `None` where the watch has ended or nothing comes.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        self.within(PATIENCE).await
    }

    /// What comes within a time.
    pub(crate) async fn within(&mut self, time: Duration) -> Option<Value> {
        let line = tokio::time::timeout(time, self.line()).await.ok()??;
        Some(serde_json::from_slice(&line).expect("a line of a watch is JSON"))
    }

    /// The next line as `TYPE name`.
    pub(crate) async fn told(&mut self) -> String {
        let Some(event) = self.next().await else { return "nothing".to_owned() };
        let object = &event["object"];
        let name = object["metadata"]["name"].as_str();
        let kind = event["type"].as_str().unwrap_or_default();
        format!("{kind} {}", name.unwrap_or(object["reason"].as_str().unwrap_or_default()))
    }

    /// Whether nothing more comes for a while.
    pub(crate) async fn is_quiet(&mut self) -> bool {
        self.within(QUIET).await.is_none()
    }

    /// Whether the server ends it, saying nothing more.
    pub(crate) async fn ends(&mut self) -> bool {
        tokio::time::timeout(PATIENCE, self.line()).await.is_ok_and(|line| line.is_none())
    }

    async fn line(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.drain(..=end).collect();
                return Some(line);
            }
            let Some(Ok(frame)) = self.body.as_mut()?.as_mut().frame().await else {
                self.body = None;
                return None;
            };
            self.read.extend_from_slice(&frame.into_data().ok()?);
        }
    }
}

/// The manager under which a rule writes that names no other.
fn managed(path: &str) -> String {
    let joint = if path.contains('?') { '&' } else { '?' };
    format!("{path}{joint}fieldManager=contract")
}

/// Puts a word in the place of every UID: they differ on every server.
fn without_uids(text: &str) -> String {
    const LENGTH: usize = 36;
    let is_uid = |part: &str| -> bool {
        part.len() == LENGTH
            && part.bytes().enumerate().all(|(index, byte)| match index {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            })
    };
    let mut clean = String::new();
    let mut index = 0;
    while index < text.len() {
        if text.get(index..index + LENGTH).is_some_and(is_uid) {
            clean.push_str("<uid>");
            index += LENGTH;
            continue;
        }
        let letter = text[index..].chars().next().expect("the index is within the text");
        clean.push(letter);
        index += letter.len_utf8();
    }
    clean
}

/// A node without anything; a rule adds what it needs.
pub(crate) fn node(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } })
}

/// A pod that is bound to a node.
pub(crate) fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": name } },
        "spec": {
            "nodeName": "gpu-1", "terminationGracePeriodSeconds": 40,
            "automountServiceAccountToken": false,
            "containers": [{ "name": "main", "image": "train" }],
        },
    })
}

/// A record of ours.
pub(crate) fn interruption(name: &str) -> Value {
    json!({
        "apiVersion": "lifeboat.dev/v1alpha1", "kind": "NodeInterruption",
        "metadata": { "name": name },
        "spec": { "node": "gpu-1", "zone": "us-east-2a", "signals": {} },
    })
}

/// A claim of Karpenter's.
pub(crate) fn claim(name: &str) -> Value {
    json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "metadata": { "name": name },
        "spec": {
            "nodeClassRef": { "group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu" },
            "requirements": [{
                "key": "node.kubernetes.io/instance-type", "operator": "In",
                "values": ["g5.xlarge"],
            }],
        },
    })
}

impl Witness {
    /// Makes a pod that runs and is ready.
    pub(crate) async fn running(&self, name: &str) -> Answer {
        self.create(&self.here("pods"), &pod(name)).await;
        let ready = json!({ "type": "Ready", "status": "True" });
        let status = json!({ "status": { "phase": "Running", "conditions": [ready] } });
        self.strategic_patch(&self.here(&format!("pods/{name}/status")), &status).await
    }

    /// The path of a pod.
    pub(crate) fn pod(&self, name: &str) -> String {
        self.here(&format!("pods/{name}"))
    }

    /// Makes the node of this rule.
    pub(crate) async fn with_node(&self, spec: Value) -> Answer {
        let mut body = node(&self.own("gpu-1"));
        body["spec"] = spec;
        self.create(NODES, &body).await
    }

    /// Makes the record of this rule.
    pub(crate) async fn with_interruption(&self) -> Answer {
        self.create(INTERRUPTIONS, &interruption(&self.own("i-1"))).await
    }

    /// Makes the claim of this rule.
    pub(crate) async fn with_claim(&self) -> Answer {
        self.create(CLAIMS, &claim(&self.own("c-1"))).await
    }
}
