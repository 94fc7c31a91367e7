//! S3 as `object_store` asks it: objects, lists, multipart, conditions and checksums.
//!
//! What the real service has and this one lacks is refused with 501, never ignored.

use std::collections::BTreeMap;
use std::ops::Range;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::stream;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header;
use http::request::Parts;
use http_body::Frame;
use http_body_util::BodyExt;
use http_body_util::StreamBody;
use jiff::Timestamp;

use crate::wire::Body;
use crate::wire::BoxError;
use crate::wire::Request;
use crate::wire::Response;
use crate::wire::Wire;
use crate::wire::empty;
use crate::wire::full;
use crate::wire::wire;
use crate::world::World;
use crate::world::bucket::Access;
use crate::world::bucket::Blob;
use crate::world::bucket::Bucket;
use crate::world::bucket::Completion;
use crate::world::bucket::Condition;
use crate::world::bucket::Object;
use crate::world::bucket::Query;
use crate::world::bucket::checksum;

mod refusal;
mod xml;

use refusal::Refusal;

const CRC64NVME: &str = "x-amz-checksum-crc64nvme";

/// S3 over the bucket of a world, asked from nowhere in particular: no rate is limited.
pub fn s3(world: World) -> Wire {
    s3_from(world, None)
}

/// S3 over the bucket of a world, asked from one instance, whose rate may be limited.
pub fn s3_from(world: World, origin: Option<String>) -> Wire {
    wire(move |request| {
        let (world, origin) = (world.clone(), origin.clone());
        async move { respond(&world, origin.as_deref(), request).await }
    })
}

/// A request in the words of S3.
struct Asked {
    parts: Parts,
    key: String,
    query: BTreeMap<String, String>,
    body: Vec<Bytes>,
    origin: Option<String>,
}

type Answer = Result<Response, Refusal>;

async fn respond(
    world: &World,
    origin: Option<&str>,
    request: Request,
) -> Result<Response, BoxError> {
    let (parts, body) = request.into_parts();
    let body = segments(body).await?;
    let (bucket, key) = split(parts.uri.path());
    let asked = Asked {
        key,
        query: query(parts.uri.query().unwrap_or_default()),
        body,
        origin: origin.map(ToOwned::to_owned),
        parts,
    };
    let known = world.read(|state| state.bucket.name() == bucket);
    let outcome = if known { dispatch(world, &asked).await } else { Err(Refusal::NO_SUCH_BUCKET) };
    let response = outcome.unwrap_or_else(|refusal| refusal.response(&asked.key));
    note(world, &asked, &response);
    Ok(response)
}

async fn dispatch(world: &World, asked: &Asked) -> Answer {
    asked.refuse_what_is_not_known()?;
    let has = |name: &str| asked.query.contains_key(name);
    match (asked.parts.method.as_str(), asked.key.is_empty()) {
        ("GET", true) if asked.query.get("list-type").is_some_and(|kind| kind == "2") => {
            Ok(list(world, asked))
        }
        ("GET", true) if has("lifecycle") => lifecycle(world),
        ("HEAD", true) => {
            let mut response = done(StatusCode::OK);
            let region = world.read(|state| state.bucket.region().to_owned());
            response.headers_mut().insert("x-amz-bucket-region", value(&region));
            Ok(response)
        }
        ("POST", true) if has("delete") => delete_many(world, asked),
        ("PUT", false) if has("uploadId") => put_part(world, asked).await,
        ("PUT", false) => put(world, asked).await,
        ("GET" | "HEAD", false) => get(world, asked).await,
        ("DELETE", false) if has("uploadId") => abort_upload(world, asked),
        ("DELETE", false) => {
            world.update(|state| state.bucket.delete(&asked.key));
            Ok(done(StatusCode::NO_CONTENT))
        }
        ("POST", false) if has("uploads") => Ok(begin_upload(world, asked)),
        ("POST", false) if has("uploadId") => complete_upload(world, asked),
        _ => Err(Refusal::NOT_IMPLEMENTED),
    }
}

async fn put(world: &World, asked: &Asked) -> Answer {
    let condition = asked.condition()?;
    let object = asked.receive(world).await?;
    let stored = world.update(|state| state.bucket.put(&asked.key, object.clone(), &condition));
    stored?;
    Ok(stored_as(&object))
}

async fn put_part(world: &World, asked: &Asked) -> Answer {
    let number = asked.query.get("partNumber").and_then(|number| number.parse().ok());
    let number = number.filter(|number| (1..=10_000).contains(number));
    let number = number.ok_or(Refusal::INVALID_ARGUMENT)?;
    let part = asked.receive(world).await?;
    let upload = (asked.upload(), &*asked.key);
    world.update(|state| state.bucket.put_part(upload, number, part.clone()))?;
    Ok(stored_as(&part))
}

async fn get(world: &World, asked: &Asked) -> Answer {
    let object = world.read(|state| state.bucket.get(&asked.key).cloned())?;
    asked.check_conditions_on(&object)?;
    let length = object.blob.length();
    let range = asked.range(length)?;
    let part = range.clone().unwrap_or(0..length);
    let mut response = done(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(part.end - part.start));
    headers.insert(header::LAST_MODIFIED, value(&http_date(object.stored_at)));
    headers.insert(header::ETAG, value(&object.etag));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if range.is_some() {
        let range = format!("bytes {}-{}/{length}", part.start, part.end.saturating_sub(1));
        headers.insert(header::CONTENT_RANGE, value(&range));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    if asked.parts.method == Method::GET {
        asked.travel(world, part.end - part.start).await;
        let segments = object.blob.slice(part).map_err(|_| Refusal::INTERNAL)?;
        *response.body_mut() = body_of(segments);
    }
    Ok(response)
}

fn list(world: &World, asked: &Asked) -> Response {
    let text = |name: &str| asked.query.get(name).cloned();
    let query = Query {
        prefix: text("prefix").unwrap_or_default(),
        delimiter: text("delimiter"),
        after: text("continuation-token").or(text("start-after")),
        most: text("max-keys").and_then(|most| most.parse().ok()),
    };
    let (name, page) =
        world.read(|state| (state.bucket.name().to_owned(), state.bucket.list(&query)));
    xml::response(&xml::list(&name, &query.prefix, &page))
}

fn lifecycle(world: &World) -> Answer {
    let rules = world.read(|state| state.bucket.lifecycle().map(str::to_owned));
    Ok(xml::response(&rules.ok_or(Refusal::NO_SUCH_LIFECYCLE)?))
}

fn delete_many(world: &World, asked: &Asked) -> Answer {
    asked.check_digest()?;
    let keys = xml::keys_to_delete(&asked.body.concat()).ok_or(Refusal::MALFORMED_XML)?;
    world.update(|state| {
        for key in &keys {
            state.bucket.delete(key);
        }
    });
    Ok(xml::response(&xml::deleted(&keys)))
}

fn begin_upload(world: &World, asked: &Asked) -> Response {
    let (name, upload) = world.update(|state| {
        let upload = state.bucket.begin_upload(&asked.key);
        (state.bucket.name().to_owned(), upload)
    });
    xml::response(&xml::begun(&name, &asked.key, &upload))
}

fn complete_upload(world: &World, asked: &Asked) -> Answer {
    let parts = xml::parts(&asked.body.concat()).ok_or(Refusal::MALFORMED_XML)?;
    let completion = Completion { parts, condition: asked.condition()? };
    let (upload, now) = ((asked.upload(), &*asked.key), world.now());
    let (name, etag) = world.update(|state| {
        let etag = state.bucket.complete_upload(upload, &completion, now);
        (state.bucket.name().to_owned(), etag)
    });
    Ok(xml::response(&xml::completed(&name, &asked.key, &etag?)))
}

fn abort_upload(world: &World, asked: &Asked) -> Answer {
    world.update(|state| state.bucket.abort_upload(asked.upload(), &asked.key))?;
    Ok(done(StatusCode::NO_CONTENT))
}

impl Asked {
    /// Signatures are not verified, but who sends none is refused as the real service does.
    fn refuse_what_is_not_known(&self) -> Result<(), Refusal> {
        const NOT_KNOWN: [&str; 3] =
            ["x-amz-copy-source", "if-modified-since", "if-unmodified-since"];
        let text = |name: &str| self.header(name).unwrap_or_default();
        if !text("authorization").starts_with("AWS4-HMAC-SHA256") {
            return Err(Refusal::ACCESS_DENIED);
        }
        let streamed = text("content-encoding").contains("aws-chunked")
            || text("x-amz-content-sha256").starts_with("STREAMING");
        if streamed || NOT_KNOWN.iter().any(|name| self.header(name).is_some()) {
            return Err(Refusal::NOT_IMPLEMENTED);
        }
        Ok(())
    }

    /// Takes the body in: over the instance's line, then checked, then kept.
    async fn receive(&self, world: &World) -> Result<Object, Refusal> {
        let length = self.body.iter().map(|segment| segment.len() as u64).sum();
        self.travel(world, length).await;
        self.check_digest()?;
        let sum = checksum(&self.body);
        let sent = self.header(CRC64NVME);
        if sent.is_some_and(|sent| sent != BASE64_STANDARD.encode(sum.to_be_bytes())) {
            return Err(Refusal::BAD_DIGEST);
        }
        let blob = match world.update(|state| state.bucket.next_file()) {
            Some(path) => Blob::write(path, &self.body).map_err(|_| Refusal::INTERNAL)?,
            None => Blob::Memory(self.body.clone()),
        };
        Ok(Object::new(blob, sum, world.now()))
    }

    /// Waits until so many bytes have passed the instance's line.
    async fn travel(&self, world: &World, bytes: u64) {
        let Some(origin) = &self.origin else { return };
        let now = world.now();
        let there = world.update(|state| state.bucket.occupy(Some(origin), bytes, now));
        let takes = there.duration_since(now).unsigned_abs();
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
    }

    fn condition(&self) -> Result<Condition, Refusal> {
        match (self.header("if-none-match"), self.header("if-match")) {
            (None, None) => Ok(Condition::Any),
            (Some("*"), None) => Ok(Condition::Absent),
            (None, Some(etag)) => Ok(Condition::Matches(etag.to_owned())),
            (Some(_), _) => Err(Refusal::NOT_IMPLEMENTED),
        }
    }

    fn check_conditions_on(&self, object: &Object) -> Result<(), Refusal> {
        let names = |header: Option<&str>| {
            header.is_some_and(|header| {
                header.split(',').any(|etag| etag.trim() == "*" || etag.trim() == object.etag)
            })
        };
        if self.header("if-match").is_some() && !names(self.header("if-match")) {
            return Err(Refusal::PRECONDITION_FAILED);
        }
        if names(self.header("if-none-match")) {
            return Err(Refusal::NOT_MODIFIED);
        }
        Ok(())
    }

    fn check_digest(&self) -> Result<(), Refusal> {
        use md5::Digest;
        let Some(sent) = self.header("content-md5") else { return Ok(()) };
        let mut digest = md5::Md5::new();
        for segment in &self.body {
            digest.update(segment);
        }
        let right = sent == BASE64_STANDARD.encode(digest.finalize());
        if right { Ok(()) } else { Err(Refusal::BAD_DIGEST) }
    }

    /// The bytes that are asked for, if not all.
    fn range(&self, length: u64) -> Result<Option<Range<u64>>, Refusal> {
        let Some(range) = self.header("range") else { return Ok(None) };
        let range = range.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
        let (first, last) = range.ok_or(Refusal::INVALID_ARGUMENT)?;
        let range = match (first.parse::<u64>(), last.parse::<u64>()) {
            (Ok(first), Ok(last)) => first..length.min(last.saturating_add(1)),
            (Ok(first), Err(_)) if last.is_empty() => first..length,
            (Err(_), Ok(last)) if first.is_empty() => length.saturating_sub(last)..length,
            _ => return Err(Refusal::INVALID_ARGUMENT),
        };
        if range.is_empty() { Err(Refusal::INVALID_RANGE) } else { Ok(Some(range)) }
    }

    fn upload(&self) -> &str {
        self.query.get("uploadId").map_or("", String::as_str)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

fn note(world: &World, asked: &Asked, response: &Response) {
    let length = |headers: &HeaderMap| {
        let length = headers.get(header::CONTENT_LENGTH)?;
        length.to_str().ok()?.parse().ok()
    };
    let sent: u64 = asked.body.iter().map(|segment| segment.len() as u64).sum();
    let bytes = if sent > 0 { sent } else { length(response.headers()).unwrap_or(0) };
    let prefix = asked.query.get("prefix");
    let access = Access {
        at: world.now(),
        origin: asked.origin.clone(),
        method: asked.parts.method.to_string(),
        key: prefix.filter(|_| asked.key.is_empty()).unwrap_or(&asked.key).clone(),
        status: response.status().as_u16(),
        bytes,
    };
    world.update(|state| Bucket::note(&mut state.bucket, access));
}

fn stored_as(object: &Object) -> Response {
    let mut response = done(StatusCode::OK);
    let sum = BASE64_STANDARD.encode(object.checksum.to_be_bytes());
    response.headers_mut().insert(header::ETAG, value(&object.etag));
    response.headers_mut().insert(CRC64NVME, value(&sum));
    response
}

fn done(status: StatusCode) -> Response {
    let mut response = http::Response::new(empty());
    *response.status_mut() = status;
    response
}

fn body_of(mut segments: Vec<Bytes>) -> Body {
    if segments.len() <= 1 {
        return full(segments.pop().unwrap_or_default());
    }
    let frames = segments.into_iter().map(|segment| Ok(Frame::data(segment)));
    BodyExt::boxed(StreamBody::new(stream::iter(frames)))
}

/// The body's frames as they come.
async fn segments(mut body: Body) -> Result<Vec<Bytes>, BoxError> {
    let mut segments = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(segment) = frame?.into_data() {
            segments.push(segment);
        }
    }
    Ok(segments)
}

/// Bucket and key of a path-style address.
fn split(path: &str) -> (String, String) {
    let path = path.strip_prefix('/').unwrap_or(path);
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    (decoded(bucket), decoded(key))
}

fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(&value.replace('+', " ")))
        })
        .collect()
}

/// Text with its `%xx` resolved; what is no such sequence stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let coded = match (first, tail) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        if let Some((high, low)) = coded {
            bytes.push(high * 16 + low);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn http_date(time: Timestamp) -> String {
    time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}
