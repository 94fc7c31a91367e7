//! Log lines, and the admin server that says how we are.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::Instrument;
use tracing::info_span;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::Log;
use crate::config::LogFormat;

/// The type of what `/metrics` answers.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Logs to standard error from here on.
pub fn init(log: &Log) {
    // In a test binary another test may have been first, which is as good.
    match log.format {
        LogFormat::Json => drop(json(log, io::stderr).try_init()),
        LogFormat::Text => drop(text(log, io::stderr).try_init()),
    }
}

/// Runs `future` as a task whose span bears `name`. Whoever spawns awaits the handle, or ends it.
pub fn spawn<T: Send + 'static>(
    name: &'static str,
    future: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    tokio::spawn(future.instrument(info_span!("task", name)))
}

/// Says that `part` of this program does what it should.
pub fn ready(part: &'static str) {
    set(part, Readiness::Ready);
}

/// Says that `part` of this program does not, for now.
pub fn not_ready(part: &'static str) {
    set(part, Readiness::NotReady);
}

/// Serves `/metrics` (what `render` gives), `/livez` and `/readyz` `until` then.
pub async fn serve(
    listener: TcpListener,
    render: fn() -> String,
    until: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(async move || ([(CONTENT_TYPE, OPENMETRICS)], render())))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(async || readiness()));
    axum::serve(listener, router).with_graceful_shutdown(until).await
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readiness {
    Ready,
    NotReady,
}

static PARTS: Mutex<BTreeMap<&'static str, Readiness>> = Mutex::new(BTreeMap::new());

fn set(part: &'static str, readiness: Readiness) {
    PARTS.lock().unwrap_or_else(PoisonError::into_inner).insert(part, readiness);
}

fn readiness() -> impl IntoResponse {
    let parts = PARTS.lock().unwrap_or_else(PoisonError::into_inner);
    let waiting: Vec<&str> = parts
        .iter()
        .filter(|(_, readiness)| **readiness == Readiness::NotReady)
        .map(|(part, _)| *part)
        .collect();
    match waiting.as_slice() {
        [] => (StatusCode::OK, "ok\n".to_owned()),
        parts => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", parts.join(", "))),
    }
}

type Inner = Box<dyn tracing::Subscriber + Send + Sync>;

/// A subscriber that is not installed yet.
struct Subscriber(Inner);

impl Subscriber {
    fn try_init(self) -> Result<(), tracing::subscriber::SetGlobalDefaultError> {
        tracing::subscriber::set_global_default(self.0)
    }
}

fn json(log: &Log, writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static) -> Subscriber {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(log)).with_writer(writer);
    Subscriber(Box::new(builder.json().flatten_event(true).with_span_list(false).finish()))
}

fn text(log: &Log, writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static) -> Subscriber {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(log)).with_writer(writer);
    Subscriber(Box::new(builder.with_ansi(false).with_target(false).finish()))
}

fn filter(log: &Log) -> EnvFilter {
    // `config` has refused what does not parse.
    EnvFilter::try_new(&log.filter).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_json_line_holds_its_fields_and_the_span_it_is_in() {
        let sink = Sink::default();
        let made = sink.clone();
        let log = Log { format: LogFormat::Json, filter: "info".to_owned() };
        let subscriber = json(&log, move || made.clone());
        tracing::subscriber::with_default(subscriber.0, || {
            let _span = info_span!("interruption", instance = "i-1").entered();
            tracing::warn!(node = "gpu-1", "taint not applied");
            tracing::debug!("left out");
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["message"], "taint not applied");
        assert_eq!(line["node"], "gpu-1");
        assert_eq!(line["span"]["instance"], "i-1");
    }
}
