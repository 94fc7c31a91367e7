//! Streams that end, or fall silent, when a fault begins.

use std::future::pending;
use std::pin::pin;

use bytes::Bytes;
use futures::stream;
use http_body::Frame;
use http_body_util::BodyExt;
use http_body_util::StreamBody;
use tokio::time::Instant;

use crate::faults::FaultKind;
use crate::faults::Faults;
use crate::faults::Opened;
use crate::faults::refusal;
use crate::wire::Body;
use crate::wire::BoxError;

/// How a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// The connection breaks.
    Broken,
    /// Nothing comes any more, and nothing ends.
    Silent,
    /// It says 410 Gone and ends.
    Gone,
}

impl Cut {
    pub(super) fn by(kind: FaultKind) -> Option<Self> {
        match kind {
            FaultKind::Away => Some(Self::Broken),
            FaultKind::Hang => Some(Self::Silent),
            FaultKind::WatchGone => Some(Self::Gone),
            FaultKind::Delay(_)
            | FaultKind::Reorder(_)
            | FaultKind::Refuse(_)
            | FaultKind::LoseRequest
            | FaultKind::LoseResponse
            | FaultKind::Duplicate
            | FaultKind::StaleRead(_) => None,
        }
    }

    async fn last_frame(self) -> Result<Frame<Bytes>, BoxError> {
        match self {
            Self::Broken => Err("connection reset".into()),
            Self::Silent => pending().await,
            Self::Gone => Ok(Frame::data(refusal::gone_event())),
        }
    }
}

/// The same stream until a fault that cuts it begins.
pub(super) fn cut(body: Body, faults: Faults, opened: Opened) -> Body {
    let frames = stream::unfold(Some((body, faults, opened)), next);
    BodyExt::boxed(StreamBody::new(frames))
}

type Rest = Option<(Body, Faults, Opened)>;

async fn next(rest: Rest) -> Option<(Result<Frame<Bytes>, BoxError>, Rest)> {
    let (mut body, faults, opened) = rest?;
    loop {
        let mut changed = pin!(faults.changed.notified());
        changed.as_mut().enable();
        let cut = faults.next_cut(&opened);
        tokio::select! {
            biased;
            how = reached(cut) => return Some((how.last_frame().await, None)),
            () = changed => (),
            frame = body.frame() => {
                return frame.map(|frame| (frame, Some((body, faults.clone(), opened))));
            }
        }
    }
}

async fn reached(cut: Option<(Instant, Cut)>) -> Cut {
    let Some((at, how)) = cut else { return pending().await };
    tokio::time::sleep_until(at).await;
    how
}
