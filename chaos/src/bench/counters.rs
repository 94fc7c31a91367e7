//! What the API server and etcd count by themselves.

use std::collections::BTreeMap;

use anyhow::Context;
use http::Request;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Counters at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Counters {
    /// Requests to the API server, by verb and resource.
    requests: BTreeMap<String, f64>,
    /// Bytes that etcd wrote to its log.
    bytes: f64,
}

impl Counters {
    /// Reads them; without etcd's address its bytes stay at zero.
    pub(super) async fn read(client: &kube::Client, etcd: Option<&str>) -> anyhow::Result<Self> {
        let text = client.request_text(Request::get("/metrics").body(Vec::new())?).await?;
        let mut requests: BTreeMap<String, f64> = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{")) {
            let Some((labels, value)) = line.split_once("} ") else { continue };
            let resource = match (label(labels, "resource"), label(labels, "subresource")) {
                (resource, "") => resource.to_owned(),
                (resource, part) => format!("{resource}/{part}"),
            };
            let verb = label(labels, "verb");
            let known = !resource.is_empty() && verb != "WATCH";
            if let (true, Ok(value)) = (known, value.trim().parse::<f64>()) {
                *requests.entry(format!("{verb} {resource}")).or_default() += value;
            }
        }
        let bytes = match etcd {
            Some(url) => value(&get(url, "/metrics").await?, "etcd_disk_wal_write_bytes_total"),
            None => 0.0,
        };
        Ok(Self { requests, bytes })
    }

    /// Requests since then for each of so many nodes, by verb and resource, without those that are rare.
    pub(super) fn requests_since(&self, before: &Self, nodes: f64) -> BTreeMap<String, f64> {
        let since = self.requests.iter().map(|(name, count)| {
            let before = before.requests.get(name).copied().unwrap_or(0.0);
            (name.clone(), (count - before) / nodes)
        });
        since.filter(|(_, count)| *count >= 0.05).collect()
    }

    /// Bytes in etcd's log since then.
    pub(super) fn bytes_since(&self, before: &Self) -> f64 {
        self.bytes - before.bytes
    }
}

fn label<'a>(labels: &'a str, name: &str) -> &'a str {
    let quoted = format!("{name}=\"");
    // `subresource` ends like `resource`: only a label that begins here is meant.
    let begins = |at: usize| at == 0 || labels.as_bytes()[at - 1] == b',';
    let at = labels.match_indices(&quoted).map(|(at, _)| at).find(|at| begins(*at));
    let Some(at) = at else { return "" };
    labels[at + quoted.len()..].split('"').next().unwrap_or_default()
}

fn value(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.trim().parse().ok()).unwrap_or(0.0)
}

/// A page from a plain server on loopback.
async fn get(url: &str, path: &str) -> anyhow::Result<String> {
    let address = url.strip_prefix("http://").context("not a plain URL")?;
    let mut stream = TcpStream::connect(address).await.with_context(|| url.to_owned())?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_not_found_in_the_end_of_another_name() {
        let labels = r#"code="200",subresource="status",resource="nodes",verb="PATCH""#;
        assert_eq!(label(labels, "resource"), "nodes");
        assert_eq!(label(labels, "subresource"), "status");
        assert_eq!(label(labels, "group"), "");
    }
}
