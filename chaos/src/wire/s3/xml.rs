//! The XML that S3 writes and reads.

use http::StatusCode;
use quick_xml::de::from_str;
use quick_xml::se::to_string;
use serde::Deserialize;
use serde::Serialize;

use crate::wire::Response;
use crate::wire::answer;
use crate::world::bucket::Page;

/// An answer of this document.
pub(super) fn response(document: &str) -> Response {
    let text = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{document}");
    answer(StatusCode::OK, "application/xml", text)
}

/// A page of a list.
pub(super) fn list(bucket: &str, prefix: &str, page: &Page) -> String {
    let contents = page.objects.iter().map(|object| Contents {
        key: object.key.clone(),
        last_modified: object.stored_at.strftime("%Y-%m-%dT%H:%M:%S.000Z").to_string(),
        e_tag: object.etag.clone(),
        size: object.size,
        storage_class: "STANDARD",
    });
    let groups = page.prefixes.iter().map(|prefix| CommonPrefixes { prefix: prefix.clone() });
    written(&ListBucketResult {
        name: bucket.to_owned(),
        prefix: prefix.to_owned(),
        key_count: page.objects.len() + page.prefixes.len(),
        is_truncated: page.next.is_some(),
        next_continuation_token: page.next.clone(),
        contents: contents.collect(),
        common_prefixes: groups.collect(),
    })
}

/// What was deleted by one request.
pub(super) fn deleted(keys: &[String]) -> String {
    let deleted = keys.iter().map(|key| Key { key: key.clone() }).collect();
    written(&DeleteResult { deleted })
}

/// A multipart upload has begun.
pub(super) fn begun(bucket: &str, key: &str, upload: &str) -> String {
    written(&InitiateMultipartUploadResult {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        upload_id: upload.to_owned(),
    })
}

/// A multipart upload is an object now.
pub(super) fn completed(bucket: &str, key: &str, etag: &str) -> String {
    written(&CompleteMultipartUploadResult {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        e_tag: etag.to_owned(),
    })
}

/// A refusal.
pub(super) fn error(code: &str, key: &str) -> String {
    written(&Error {
        code: code.to_owned(),
        message: format!("the simulated S3 says {code}"),
        key: key.to_owned(),
        request_id: "simulated",
    })
}

/// The keys that a request wants deleted.
pub(super) fn keys_to_delete(body: &[u8]) -> Option<Vec<String>> {
    let delete: Delete = from_str(std::str::from_utf8(body).ok()?).ok()?;
    Some(delete.objects.into_iter().map(|object| object.key).collect())
}

/// Number and `ETag` of the parts that a request completes an upload with.
pub(super) fn parts(body: &[u8]) -> Option<Vec<(u32, String)>> {
    let complete: CompleteMultipartUpload = from_str(std::str::from_utf8(body).ok()?).ok()?;
    Some(complete.parts.into_iter().map(|part| (part.part_number, part.e_tag)).collect())
}

fn written<T: Serialize>(document: &T) -> String {
    to_string(document).expect("strings and numbers are always XML")
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ListBucketResult {
    name: String,
    prefix: String,
    key_count: usize,
    is_truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_continuation_token: Option<String>,
    contents: Vec<Contents>,
    common_prefixes: Vec<CommonPrefixes>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Contents {
    key: String,
    last_modified: String,
    #[serde(rename = "ETag")]
    e_tag: String,
    size: u64,
    storage_class: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct CommonPrefixes {
    prefix: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteResult {
    deleted: Vec<Key>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Key {
    key: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct InitiateMultipartUploadResult {
    bucket: String,
    key: String,
    upload_id: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct CompleteMultipartUploadResult {
    bucket: String,
    key: String,
    #[serde(rename = "ETag")]
    e_tag: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Error {
    code: String,
    message: String,
    key: String,
    request_id: &'static str,
}

#[derive(Deserialize)]
struct Delete {
    #[serde(rename = "Object", default)]
    objects: Vec<Key>,
}

#[derive(Deserialize)]
struct CompleteMultipartUpload {
    #[serde(rename = "Part", default)]
    parts: Vec<Part>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Part {
    #[serde(rename = "ETag")]
    e_tag: String,
    part_number: u32,
}
