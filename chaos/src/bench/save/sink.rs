//! A store on loopback that is in nobody's way: bytes of chunks are counted, some of them checked,
//! and dropped or kept as they came; everything else is the simulated S3's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use anyhow::ensure;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use crc_fast::Digest;
use futures::stream;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header;
use http_body::Frame;
use http_body_util::BodyExt;
use http_body_util::StreamBody;
use lifeboat::clock::Clock;

use crate::bench::link::Link;
use crate::serve;
use crate::serve::Served;
use crate::serve::tls::Identity;
use crate::wire;
use crate::wire::Body;
use crate::wire::BoxError;
use crate::wire::Request;
use crate::wire::Response;
use crate::wire::Wire;
use crate::wire::call;
use crate::world::World;

/// One object in so many has its checksum computed: the store's processor time is not what is
/// measured.
const CHECKED_EACH: u64 = 16;
/// What every checksum is sent as.
const CRC64NVME: &str = "x-amz-checksum-crc64nvme";

/// Whether chunks are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bench) enum Keep {
    /// None of their bytes.
    Nothing,
    /// All, in memory.
    All,
}

/// The store, served.
pub(in crate::bench) struct Sink {
    served: Served,
    shelf: Arc<Shelf>,
}

#[derive(Debug)]
struct Shelf {
    keep: Keep,
    link: Link,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    objects: u64,
    wrong: u64,
    kept: BTreeMap<String, Vec<Bytes>>,
}

impl Sink {
    /// Serves it, at a rate in Gbit/s or as fast as it goes.
    pub(in crate::bench) async fn serve(
        gbit: Option<f64>,
        keep: Keep,
        identity: Option<&Identity>,
    ) -> anyhow::Result<Self> {
        let world = World::new(Clock::system(), 1);
        let behind = wire::s3::s3(world);
        let state = State { objects: 0, wrong: 0, kept: BTreeMap::new() };
        let shelf = Arc::new(Shelf { keep, link: Link::new(gbit), state: Mutex::new(state) });
        let front = front(Arc::clone(&shelf), behind);
        let served = match identity {
            Some(identity) => serve::serve_tls(front, identity).await?,
            None => serve::serve(front).await?,
        };
        Ok(Self { served, shelf })
    }

    /// Where it listens.
    pub(in crate::bench) fn url(&self) -> String {
        self.served.url()
    }

    /// Whether all that came was what it said.
    pub(in crate::bench) fn check(&self) -> anyhow::Result<()> {
        let state = self.shelf.state();
        ensure!(
            state.wrong == 0,
            "{} of {} objects were others than said",
            state.wrong,
            state.objects
        );
        Ok(())
    }
}

/// Takes what is a chunk, or a bare object; passes on the rest.
fn front(shelf: Arc<Shelf>, behind: Wire) -> Wire {
    wire::wire(move |request| {
        let (shelf, behind) = (Arc::clone(&shelf), behind.clone());
        async move {
            let path = request.uri().path();
            if !path.contains("/chunks/") && !path.contains("/bare/") {
                return call(&behind, request).await;
            }
            if request.method() == Method::PUT {
                shelf.put(request).await
            } else {
                Ok(shelf.get(path))
            }
        }
    })
}

impl Shelf {
    async fn put(&self, request: Request) -> Result<Response, BoxError> {
        let (parts, mut body) = request.into_parts();
        let number = {
            let mut state = self.state();
            state.objects += 1;
            state.objects
        };
        let text = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let sum = text(CRC64NVME).filter(|_| number.is_multiple_of(CHECKED_EACH));
        let mut digest = sum.map(|_| Digest::new(CrcAlgorithm::Crc64Nvme));
        let (mut length, mut kept) = (0_u64, Vec::new());
        while let Some(frame) = body.frame().await {
            let Ok(bytes) = frame?.into_data() else { continue };
            length += bytes.len() as u64;
            self.link.travel(bytes.len()).await;
            if let Some(digest) = &mut digest {
                digest.update(&bytes);
            }
            if self.keep == Keep::All {
                kept.push(bytes);
            }
        }
        let said: Option<u64> = text("content-length").and_then(|said| said.parse().ok());
        let found = digest.map(|digest| BASE64_STANDARD.encode(digest.finalize().to_be_bytes()));
        let mut state = self.state();
        if said != Some(length) || found.as_deref() != sum {
            state.wrong += 1;
            return Ok(answer(StatusCode::BAD_REQUEST, wire::empty()));
        }
        if self.keep == Keep::All {
            state.kept.insert(parts.uri.path().to_owned(), kept);
        }
        Ok(answer(StatusCode::OK, wire::empty()))
    }

    fn get(self: &Arc<Self>, path: &str) -> Response {
        let Some(object) = self.state().kept.get(path).cloned() else {
            return answer(StatusCode::NOT_FOUND, wire::empty());
        };
        let length: usize = object.iter().map(Bytes::len).sum();
        let line = Arc::clone(self);
        let frames = stream::unfold((line, object.into_iter()), |(line, mut rest)| async move {
            let bytes = rest.next()?;
            line.link.travel(bytes.len()).await;
            Some((Ok(Frame::data(bytes)), (line, rest)))
        });
        let mut response =
            answer(StatusCode::OK, BodyExt::boxed(StreamBody::new(Box::pin(frames))));
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        response
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer as S3 gives it to a PUT or a GET.
fn answer(status: StatusCode, body: Body) -> Response {
    let mut response = http::Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::ETAG, HeaderValue::from_static("\"kept-by-nobody\""));
    let modified = HeaderValue::from_static("Mon, 23 Nov 2026 00:00:00 GMT");
    headers.insert(header::LAST_MODIFIED, modified);
    response
}
