//! A way of so many bits a second, which all that goes over it shares.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use futures::stream;
use http_body::Body as _;
use http_body_util::BodyExt;
use http_body_util::StreamBody;
use tokio::time::Instant;

use crate::wire::Body;
use crate::wire::Wire;
use crate::wire::call;
use crate::wire::wire;

/// How far ahead of its rate it may be before somebody waits.
const AHEAD: Duration = Duration::from_millis(2);

/// One direction of a network.
#[derive(Debug)]
pub(super) struct Link {
    bytes_per_second: Option<f64>,
    free_at: Mutex<Instant>,
}

impl Link {
    /// One of so many Gbit/s, or as fast as it goes.
    pub(super) fn new(gbit: Option<f64>) -> Self {
        let bytes_per_second = gbit.map(|gbit| gbit * 1e9 / 8.0);
        Self { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes have passed.
    pub(super) async fn travel(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let now = Instant::now();
        let there = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            #[expect(clippy::cast_precision_loss, reason = "a frame is small")]
            let takes = Duration::from_secs_f64(bytes as f64 / rate);
            *free_at = (*free_at).max(now) + takes;
            *free_at
        };
        if there > now + AHEAD {
            tokio::time::sleep_until(there - AHEAD).await;
        }
    }

    /// A body whose bytes go this way.
    fn carry(self: Arc<Self>, body: Body) -> Body {
        if body.is_end_stream() {
            return body;
        }
        let frames = stream::unfold((self, body), |(link, mut body)| async move {
            let frame = body.frame().await?;
            if let Some(data) = frame.as_ref().ok().and_then(|frame| frame.data_ref()) {
                link.travel(data.len()).await;
            }
            Some((frame, (link, body)))
        });
        BodyExt::boxed(StreamBody::new(Box::pin(frames)))
    }
}

/// A wire behind a network that carries so many Gbit/s each way.
pub(super) fn shaped(gbit: f64, inner: Wire) -> Wire {
    let (up, down) = (Arc::new(Link::new(Some(gbit))), Arc::new(Link::new(Some(gbit))));
    wire(move |request| {
        let (up, down, inner) = (Arc::clone(&up), Arc::clone(&down), inner.clone());
        async move {
            let answer = call(&inner, request.map(|body| up.carry(body))).await?;
            Ok(answer.map(|body| down.carry(body)))
        }
    })
}
