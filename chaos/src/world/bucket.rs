//! What S3 knows: the objects of one bucket, unfinished uploads, and how much was asked of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::ops::Bound;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use crc_fast::Digest;
use crc_fast::checksum_combine;
use jiff::Timestamp;

/// Most accesses that are remembered one by one; later ones are only counted.
const LOG_CAPACITY: usize = 100_000;

/// The smallest part that is not the last one.
///
/// Source: Amazon S3 User Guide, "Multipart upload limits".
const PART_MIN: u64 = 5 << 20;

/// The simulated bucket.
#[derive(Debug)]
pub struct Bucket {
    name: String,
    region: String,
    lifecycle: Option<String>,
    page: usize,
    folder: Option<PathBuf>,
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
    started: u64,
    links: BTreeMap<String, Link>,
    traffic: Traffic,
    log: Vec<Access>,
    deleted: Vec<String>,
}

/// One object, or one part of an upload.
#[derive(Clone, Debug)]
pub struct Object {
    /// What is in it.
    pub blob: Blob,
    /// Its `ETag`, with quotes.
    pub etag: String,
    /// Its CRC64NVME.
    pub checksum: u64,
    /// When it was stored.
    pub stored_at: Timestamp,
}

/// Bytes in memory, as they came, or in a file.
#[derive(Clone, Debug)]
pub enum Blob {
    /// In memory, never copied together.
    Memory(Vec<Bytes>),
    /// In a file of this length.
    File {
        /// Where.
        path: PathBuf,
        /// How long.
        length: u64,
    },
}

/// What must be true of an object for a write to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    Any,
    /// It does not exist.
    Absent,
    /// It has this `ETag`.
    Matches(String),
}

/// What completes an upload.
#[derive(Clone, Debug)]
pub struct Completion {
    /// Number and `ETag` of each part, in order.
    pub parts: Vec<(u32, String)>,
    /// What must be true of the object.
    pub condition: Condition,
}

/// A page of a list.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The objects that belong to no group.
    pub objects: Vec<Listed>,
    /// What is common up to the delimiter.
    pub prefixes: Vec<String>,
    /// Where the next page begins, if there is one.
    pub next: Option<String>,
}

/// An object as a list shows it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// How long it is.
    pub size: u64,
    /// Its `ETag`, with quotes.
    pub etag: String,
    /// When it was stored.
    pub stored_at: Timestamp,
}

/// What a list asks for.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Keys begin with this.
    pub prefix: String,
    /// Keys are cut after it.
    pub delimiter: Option<String>,
    /// Keys come after this one.
    pub after: Option<String>,
    /// At most so many, if fewer than a page.
    pub most: Option<usize>,
}

/// How much was asked of the bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests of any kind.
    pub requests: u64,
    /// Bytes stored by `PUT`.
    pub bytes_in: u64,
    /// Bytes read by `GET`.
    pub bytes_out: u64,
}

/// One request, as checkers read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// When it was answered.
    pub at: Timestamp,
    /// From which instance, where that is known.
    pub origin: Option<String>,
    /// What was asked, as in `PUT` or `GET`.
    pub method: String,
    /// Of which key, or with which prefix.
    pub key: String,
    /// The answer's status.
    pub status: u16,
    /// Bytes of content, in or out.
    pub bytes: u64,
}

/// Why S3 refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BucketError {
    /// There is no such object.
    #[error("the specified key does not exist")]
    NoSuchKey,
    /// There is no such upload.
    #[error("the specified upload does not exist")]
    NoSuchUpload,
    /// A condition does not hold.
    #[error("a precondition does not hold")]
    PreconditionFailed,
    /// A part is missing or has another `ETag`.
    #[error("a part could not be found")]
    InvalidPart,
    /// Parts are not named in ascending order.
    #[error("the parts are not in ascending order")]
    InvalidPartOrder,
    /// A part that is not the last is too small.
    #[error("a part is smaller than the minimum")]
    EntityTooSmall,
}

#[derive(Debug)]
struct Upload {
    key: String,
    parts: BTreeMap<u32, Object>,
}

/// The line between one instance and the bucket.
#[derive(Clone, Copy, Debug)]
struct Link {
    bytes_per_second: u64,
    free_at: Timestamp,
}

impl Default for Bucket {
    fn default() -> Self {
        Self {
            name: "checkpoints".to_owned(),
            region: "us-east-2".to_owned(),
            lifecycle: None,
            page: 1000,
            folder: None,
            objects: BTreeMap::new(),
            uploads: BTreeMap::new(),
            started: 0,
            links: BTreeMap::new(),
            traffic: Traffic::default(),
            log: Vec::new(),
            deleted: Vec::new(),
        }
    }
}

impl Bucket {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives it another name than `checkpoints`.
    pub fn rename(&mut self, name: &str) {
        name.clone_into(&mut self.name);
    }

    /// The region that it says it is in.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Puts it into another region.
    pub fn move_to(&mut self, region: &str) {
        region.clone_into(&mut self.region);
    }

    /// The rules of its lifecycle, as S3's XML; `None` where it has none.
    pub fn lifecycle(&self) -> Option<&str> {
        self.lifecycle.as_deref()
    }

    /// Gives it rules.
    pub fn set_lifecycle(&mut self, rules: &str) {
        self.lifecycle = Some(rules.to_owned());
    }

    /// Shortens the pages of its lists.
    pub fn set_page(&mut self, keys: usize) {
        self.page = keys;
    }

    /// Keeps what is stored from now on in files of this folder, not in memory.
    pub fn keep_in(&mut self, folder: PathBuf) {
        self.folder = Some(folder);
    }

    /// A file for the next object, if objects are kept in files.
    pub fn next_file(&mut self) -> Option<PathBuf> {
        self.started += 1;
        let number = self.started;
        self.folder.as_ref().map(|folder| folder.join(format!("object-{number:08}")))
    }

    /// Stores an object if the condition holds; there is no moment between the two.
    pub fn put(
        &mut self,
        key: &str,
        object: Object,
        condition: &Condition,
    ) -> Result<(), BucketError> {
        self.holds(key, condition)?;
        self.traffic.bytes_in += object.blob.length();
        self.objects.insert(key.to_owned(), object);
        Ok(())
    }

    /// One object.
    pub fn get(&self, key: &str) -> Result<&Object, BucketError> {
        self.objects.get(key).ok_or(BucketError::NoSuchKey)
    }

    /// All bytes of an object, for checkers and for what the demo shows.
    pub fn read(&self, key: &str) -> Option<Bytes> {
        let object = self.objects.get(key)?;
        let segments = object.blob.slice(0..object.blob.length()).ok()?;
        Some(segments.concat().into())
    }

    /// All keys with a prefix, in order.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        self.starting_at(Bound::Included(prefix.to_owned()))
            .map(|(key, _)| key.clone())
            .take_while(|key| key.starts_with(prefix))
            .collect()
    }

    /// Removes an object; tells whether it was there.
    pub fn delete(&mut self, key: &str) -> bool {
        let was_there = self.objects.remove(key).is_some();
        if was_there && self.deleted.len() < LOG_CAPACITY {
            self.deleted.push(key.to_owned());
        }
        was_there
    }

    /// The keys of objects that were there and were deleted, in order.
    pub fn deleted(&self) -> &[String] {
        &self.deleted
    }

    /// Turns one bit of an object, as nothing but a broken disk would.
    pub fn damage(&mut self, key: &str) {
        let Some(bytes) = self.read(key) else { return };
        let mut bytes = bytes.to_vec();
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
        }
        if let Some(object) = self.objects.get_mut(key) {
            object.blob = Blob::Memory(vec![bytes.into()]);
        }
    }

    /// A page of keys in order; a group that shares a prefix counts as one.
    pub fn list(&self, query: &Query) -> Page {
        let most = query.most.unwrap_or(self.page).min(self.page);
        let start = match &query.after {
            Some(after) if *after >= query.prefix => Bound::Excluded(after.clone()),
            Some(_) | None => Bound::Included(query.prefix.clone()),
        };
        let mut page = Page::default();
        let mut last = None;
        for (key, object) in self.starting_at(start) {
            if !key.starts_with(&query.prefix) {
                break;
            }
            let group = query.group(key);
            let seen = page.prefixes.last().or(query.after.as_ref());
            if group.as_ref().is_some_and(|group| seen.is_some_and(|key| key.starts_with(group))) {
                continue;
            }
            if page.objects.len() + page.prefixes.len() == most {
                page.next = last;
                break;
            }
            last = Some(group.clone().unwrap_or_else(|| key.clone()));
            match group {
                Some(group) => page.prefixes.push(group),
                None => page.objects.push(Listed::new(key, object)),
            }
        }
        page
    }

    /// Begins a multipart upload; returns its id.
    pub fn begin_upload(&mut self, key: &str) -> String {
        self.started += 1;
        let id = format!("upload-{:08}", self.started);
        let upload = Upload { key: key.to_owned(), parts: BTreeMap::new() };
        self.uploads.insert(id.clone(), upload);
        id
    }

    /// Stores one part; a part of the same number is replaced.
    pub fn put_part(
        &mut self,
        (upload, key): (&str, &str),
        number: u32,
        part: Object,
    ) -> Result<(), BucketError> {
        let length = part.blob.length();
        self.upload(upload, key)?.parts.insert(number, part);
        self.traffic.bytes_in += length;
        Ok(())
    }

    /// Makes an object of the named parts; returns its `ETag`.
    pub fn complete_upload(
        &mut self,
        (upload, key): (&str, &str),
        completion: &Completion,
        now: Timestamp,
    ) -> Result<String, BucketError> {
        let parts = &self.upload(upload, key)?.parts;
        let object = whole(parts, &completion.parts, now)?;
        self.holds(key, &completion.condition)?;
        let etag = object.etag.clone();
        self.uploads.remove(upload);
        self.objects.insert(key.to_owned(), object);
        Ok(etag)
    }

    /// Gives up an upload and its parts.
    pub fn abort_upload(&mut self, upload: &str, key: &str) -> Result<(), BucketError> {
        self.upload(upload, key)?;
        self.uploads.remove(upload);
        Ok(())
    }

    /// How many uploads were begun and neither completed nor aborted.
    pub fn uploads(&self) -> usize {
        self.uploads.len()
    }

    /// Limits what one instance can send and receive together; none is limited at first.
    pub fn limit(&mut self, origin: &str, bytes_per_second: u64) {
        let link = Link { bytes_per_second, free_at: Timestamp::UNIX_EPOCH };
        self.links.insert(origin.to_owned(), link);
    }

    /// Takes the instance's line for so many bytes, after those who came before.
    ///
    /// Returns when the last byte has passed.
    pub fn occupy(&mut self, origin: Option<&str>, bytes: u64, now: Timestamp) -> Timestamp {
        let link = origin.and_then(|origin| self.links.get_mut(origin));
        let Some(link) = link else { return now };
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(link.bytes_per_second.max(1));
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        link.free_at = link.free_at.max(now) + takes;
        link.free_at
    }

    /// Counts one request and remembers it.
    pub fn note(&mut self, access: Access) {
        self.traffic.requests += 1;
        if access.method == "GET" && access.status < 300 {
            self.traffic.bytes_out += access.bytes;
        }
        if self.log.len() < LOG_CAPACITY {
            self.log.push(access);
        }
    }

    /// How much was asked so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// The requests so far, in order.
    pub fn log(&self) -> &[Access] {
        &self.log
    }

    fn starting_at(&self, start: Bound<String>) -> impl Iterator<Item = (&String, &Object)> {
        self.objects.range((start, Bound::Unbounded))
    }

    fn holds(&self, key: &str, condition: &Condition) -> Result<(), BucketError> {
        match (condition, self.objects.get(key)) {
            (Condition::Any, _) | (Condition::Absent, None) => Ok(()),
            (Condition::Matches(_), None) => Err(BucketError::NoSuchKey),
            (Condition::Matches(etag), Some(object)) if *etag == object.etag => Ok(()),
            (Condition::Absent | Condition::Matches(_), Some(_)) => {
                Err(BucketError::PreconditionFailed)
            }
        }
    }

    fn upload(&mut self, id: &str, key: &str) -> Result<&mut Upload, BucketError> {
        let upload = self.uploads.get_mut(id).filter(|upload| upload.key == key);
        upload.ok_or(BucketError::NoSuchUpload)
    }
}

impl Query {
    /// The group a key belongs to; it ends with the delimiter.
    fn group(&self, key: &str) -> Option<String> {
        let delimiter = self.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty())?;
        let (head, _) = key.strip_prefix(&self.prefix)?.split_once(delimiter)?;
        Some(format!("{}{head}{delimiter}", self.prefix))
    }
}

impl Listed {
    fn new(key: &str, object: &Object) -> Self {
        Self {
            key: key.to_owned(),
            size: object.blob.length(),
            etag: object.etag.clone(),
            stored_at: object.stored_at,
        }
    }
}

impl Object {
    /// An object of these bytes.
    pub fn new(blob: Blob, checksum: u64, now: Timestamp) -> Self {
        let etag = format!("\"{checksum:016x}{:016x}\"", blob.length());
        Self { blob, etag, checksum, stored_at: now }
    }
}

impl Blob {
    /// How many bytes there are.
    pub fn length(&self) -> u64 {
        match self {
            Self::Memory(segments) => segments.iter().map(|segment| segment.len() as u64).sum(),
            Self::File { length, .. } => *length,
        }
    }

    /// The bytes of a range that lies inside; from memory without a copy.
    pub fn slice(&self, range: Range<u64>) -> io::Result<Vec<Bytes>> {
        match self {
            Self::Memory(segments) => Ok(slice(segments, range)),
            Self::File { path, .. } => {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(range.start))?;
                let mut bytes = Vec::new();
                file.take(range.end - range.start).read_to_end(&mut bytes)?;
                Ok(vec![bytes.into()])
            }
        }
    }

    /// Writes these segments to a file.
    pub fn write(path: PathBuf, segments: &[Bytes]) -> io::Result<Self> {
        let mut file = File::create(&path)?;
        for segment in segments {
            file.write_all(segment)?;
        }
        let length = segments.iter().map(|segment| segment.len() as u64).sum();
        Ok(Self::File { path, length })
    }
}

/// The CRC64NVME of all segments.
pub fn checksum(segments: &[Bytes]) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    for segment in segments {
        digest.update(segment);
    }
    digest.finalize()
}

fn slice(segments: &[Bytes], range: Range<u64>) -> Vec<Bytes> {
    let mut start = 0;
    let mut slices = Vec::new();
    for segment in segments {
        let length = segment.len() as u64;
        let from = range.start.clamp(start, start + length) - start;
        let to = range.end.clamp(start, start + length) - start;
        if let (Ok(from), Ok(to)) = (usize::try_from(from), usize::try_from(to))
            && from < to
        {
            slices.push(segment.slice(from..to));
        }
        start += length;
    }
    slices
}

fn whole(
    parts: &BTreeMap<u32, Object>,
    named: &[(u32, String)],
    now: Timestamp,
) -> Result<Object, BucketError> {
    if !named.is_sorted_by(|one, next| one.0 < next.0) {
        return Err(BucketError::InvalidPartOrder);
    }
    let mut segments = Vec::new();
    let mut checksum = 0;
    for (index, (number, etag)) in named.iter().enumerate() {
        let part = parts.get(number).filter(|part| part.etag == *etag);
        let part = part.ok_or(BucketError::InvalidPart)?;
        let length = part.blob.length();
        if index + 1 < named.len() && length < PART_MIN {
            return Err(BucketError::EntityTooSmall);
        }
        checksum = checksum_combine(CrcAlgorithm::Crc64Nvme, checksum, part.checksum, length);
        segments.extend(part.blob.slice(0..length).map_err(|_| BucketError::InvalidPart)?);
    }
    let mut object = Object::new(Blob::Memory(segments), checksum, now);
    object.etag = format!("\"{checksum:016x}-{}\"", named.len());
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn bucket(keys: &[&str]) -> Bucket {
        let mut bucket = Bucket::default();
        for key in keys {
            let segments = vec![Bytes::copy_from_slice(key.as_bytes())];
            let checksum = checksum(&segments);
            let object = Object::new(Blob::Memory(segments), checksum, at(0));
            bucket.put(key, object, &Condition::Any).unwrap();
        }
        bucket
    }

    #[track_caller]
    fn check(keys: &[&str], page: usize, expected: &[&str]) {
        let mut bucket = bucket(keys);
        bucket.set_page(page);
        let mut query = Query { prefix: "a/".to_owned(), ..Query::default() };
        query.delimiter = Some("/".to_owned());
        let mut seen = Vec::new();
        loop {
            let page = bucket.list(&query);
            seen.extend(page.objects.into_iter().map(|listed| listed.key));
            seen.extend(page.prefixes);
            query.after = page.next;
            if query.after.is_none() {
                break;
            }
        }
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_list_groups_keys_and_names_each_group_once_over_pages() {
        let keys = ["a/1", "a/b/1", "a/b/2", "a/b/3", "a/c/1", "a/d", "ab/1", "b/1"];
        check(&keys, 1, &["a/1", "a/b/", "a/c/", "a/d"]);
        check(&keys, 2, &["a/1", "a/b/", "a/d", "a/c/"]);
        check(&keys, 1000, &["a/1", "a/d", "a/b/", "a/c/"]);
    }

    #[test]
    fn a_line_is_taken_by_one_request_after_the_other() {
        let mut bucket = Bucket::default();
        bucket.limit("i-1", 100);
        assert_eq!(bucket.occupy(Some("i-1"), 300, at(0)), at(3));
        assert_eq!(bucket.occupy(Some("i-1"), 100, at(1)), at(4));
        assert_eq!(bucket.occupy(Some("i-2"), 100, at(1)), at(1));
        assert_eq!(bucket.occupy(Some("i-1"), 100, at(9)), at(10));
    }

    #[test]
    fn a_slice_goes_over_segments() {
        let segments = ["abc", "def", "ghi"].map(|text| Bytes::from_static(text.as_bytes()));
        assert_eq!(slice(&segments, 2..7).concat(), b"cdefg");
        assert_eq!(slice(&segments, 3..6), [Bytes::from_static(b"def")]);
        assert!(slice(&segments, 4..4).is_empty());
    }
}
