//! The simulated S3, asked by the real `object_store` in virtual time: one test for each rule.

use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use http::Request;
use jiff::Timestamp;
use lifeboat::clock::Clock;
use lifeboat_chaos::serve::s3_store;
use lifeboat_chaos::wire::call;
use lifeboat_chaos::wire::collect;
use lifeboat_chaos::wire::full;
use lifeboat_chaos::wire::s3::s3;
use lifeboat_chaos::wire::s3::s3_from;
use lifeboat_chaos::world::World;
use lifeboat_chaos::world::bucket::Traffic;
use object_store::Error;
use object_store::GetOptions;
use object_store::GetRange;
use object_store::ObjectStore;
use object_store::ObjectStoreExt;
use object_store::PutMode;
use object_store::PutPayload;
use object_store::UpdateVersion;
use object_store::aws::AmazonS3;
use object_store::path::Path;
use tokio::time::Instant;

const MIB: usize = 1 << 20;

fn world() -> (World, AmazonS3) {
    let clock = Clock::starting_at(Timestamp::from_second(1_800_000_000).unwrap(), 0);
    let world = World::new(clock, 1);
    let store = s3_store(&s3(world.clone()), "checkpoints").unwrap();
    (world, store)
}

fn path(text: &str) -> Path {
    Path::parse(text).unwrap()
}

async fn put(store: &AmazonS3, key: &str, text: &'static str) {
    store.put(&path(key), PutPayload::from_static(text.as_bytes())).await.unwrap();
}

async fn list(store: &AmazonS3, prefix: &str) -> Vec<String> {
    let listed = store.list(Some(&path(prefix))).map_ok(|meta| meta.location.to_string());
    listed.try_collect().await.unwrap()
}

/// Sends one request as `object_store` would not.
async fn raw(world: &World, request: http::request::Builder, body: &'static str) -> (u16, String) {
    let request = request.header("authorization", "AWS4-HMAC-SHA256 whatever");
    let response = call(&s3(world.clone()), request.body(full(body)).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let text = collect(response.into_body()).await.unwrap();
    (status, String::from_utf8(text.to_vec()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn an_object_comes_out_as_it_went_in() {
    let (world, store) = world();
    let text = Bytes::from(vec![7; 3 * MIB]);
    let payload = PutPayload::from_iter([text.slice(..MIB), text.slice(MIB..)]);
    let put = store.put(&path("a/key with=odd+signs&more"), payload).await.unwrap();
    let read = store.get(&path("a/key with=odd+signs&more")).await.unwrap();
    assert_eq!(read.meta.e_tag, put.e_tag);
    assert_eq!(read.meta.size, 3 * MIB as u64);
    assert_eq!(read.meta.last_modified.timestamp(), 1_800_000_000);
    assert_eq!(read.bytes().await.unwrap(), text);
    let traffic = Traffic { requests: 2, bytes_in: 3 * MIB as u64, bytes_out: 3 * MIB as u64 };
    assert_eq!(world.read(|state| state.bucket.traffic()), traffic);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_not_found() {
    let (_, store) = world();
    let missing = store.get(&path("a")).await.unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
    let missing = store.head(&path("a")).await.unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
}

#[tokio::test(start_paused = true)]
async fn of_two_that_create_a_key_one_is_told_that_it_exists() {
    let (_, store) = world();
    let key = path("epochs/1/MANIFEST.json");
    let create = |text: &'static str| {
        store.put_opts(&key, PutPayload::from_static(text.as_bytes()), PutMode::Create.into())
    };
    let (first, second) = tokio::join!(create("first"), create("second"));
    first.unwrap();
    let second = second.unwrap_err();
    assert!(matches!(second, Error::AlreadyExists { .. }), "{second}");
    assert_eq!(store.get(&key).await.unwrap().bytes().await.unwrap(), "first");
}

#[tokio::test(start_paused = true)]
async fn an_update_needs_the_version_it_saw() {
    let (_, store) = world();
    let key = path("a");
    let first = store.put(&key, "one".into()).await.unwrap();
    let version = |e_tag: &Option<String>| {
        PutMode::Update(UpdateVersion { e_tag: e_tag.clone(), version: None })
    };
    let second = store.put_opts(&key, "two".into(), version(&first.e_tag).into()).await.unwrap();
    let stale = store.put_opts(&key, "three".into(), version(&first.e_tag).into()).await;
    assert!(matches!(stale.unwrap_err(), Error::Precondition { .. }));
    store.put_opts(&key, "three".into(), version(&second.e_tag).into()).await.unwrap();
    let none = store.put_opts(&path("b"), "one".into(), version(&first.e_tag).into()).await;
    assert!(matches!(none.unwrap_err(), Error::Precondition { .. }));
}

#[tokio::test(start_paused = true)]
async fn ranges_are_read_and_those_outside_are_refused() {
    let (_, store) = world();
    put(&store, "a", "0123456789").await;
    assert_eq!(store.get_range(&path("a"), 2..5).await.unwrap(), "234");
    assert_eq!(store.get_range(&path("a"), 8..20).await.unwrap(), "89");
    let last = GetOptions { range: Some(GetRange::Suffix(3)), ..Default::default() };
    let last = store.get_opts(&path("a"), last).await.unwrap();
    assert_eq!((last.meta.size, last.range.clone()), (10, 7..10));
    assert_eq!(last.bytes().await.unwrap(), "789");
    let from = GetOptions { range: Some(GetRange::Offset(6)), ..Default::default() };
    assert_eq!(store.get_opts(&path("a"), from).await.unwrap().bytes().await.unwrap(), "6789");
    assert!(store.get_range(&path("a"), 10..12).await.is_err());
    assert_eq!(store.head(&path("a")).await.unwrap().size, 10);
}

#[tokio::test(start_paused = true)]
async fn lists_go_over_pages_and_group_by_delimiter() {
    let (world, store) = world();
    world.update(|state| state.bucket.set_page(2));
    for key in ["p/a", "p/b/1", "p/b/2", "p/c/1", "p/d", "q/a"] {
        put(&store, key, "x").await;
    }
    assert_eq!(list(&store, "p").await, ["p/a", "p/b/1", "p/b/2", "p/c/1", "p/d"]);
    let grouped = store.list_with_delimiter(Some(&path("p"))).await.unwrap();
    let objects: Vec<_> = grouped.objects.iter().map(|meta| meta.location.as_ref()).collect();
    let groups: Vec<_> = grouped.common_prefixes.iter().map(Path::as_ref).collect();
    assert_eq!((objects, groups), (vec!["p/a", "p/d"], vec!["p/b", "p/c"]));
    let after = store.list_with_offset(Some(&path("p")), &path("p/b/1"));
    let after: Vec<_> = after.map_ok(|meta| meta.location.to_string()).try_collect().await.unwrap();
    assert_eq!(after, ["p/b/2", "p/c/1", "p/d"]);
    assert!(list(&store, "none").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn deletes_go_in_bulk_and_what_is_gone_stays_gone() {
    let (world, store) = world();
    put(&store, "a", "x").await;
    put(&store, "b", "x").await;
    store.delete(&path("a")).await.unwrap();
    store.delete(&path("a")).await.unwrap();
    assert_eq!(world.read(|state| state.bucket.keys("")), ["b"]);
    let last = world.read(|state| state.bucket.log().last().unwrap().method.clone());
    assert_eq!(last, "POST");
}

#[tokio::test(start_paused = true)]
async fn parts_become_one_object_when_completed_and_not_before() {
    let (world, store) = world();
    let key = path("big");
    let mut upload = store.put_multipart(&key).await.unwrap();
    upload.put_part(vec![1; 5 * MIB].into()).await.unwrap();
    upload.put_part(vec![2; MIB].into()).await.unwrap();
    assert!(store.head(&key).await.is_err());
    upload.complete().await.unwrap();
    let read = store.get(&key).await.unwrap().bytes().await.unwrap();
    assert_eq!((read.len(), read[5 * MIB - 1], read[5 * MIB]), (6 * MIB, 1, 2));
    assert_eq!(world.read(|state| state.bucket.uploads()), 0);
}

#[tokio::test(start_paused = true)]
async fn an_aborted_upload_leaves_nothing_and_small_parts_are_refused() {
    let (world, store) = world();
    let mut upload = store.put_multipart(&path("big")).await.unwrap();
    upload.put_part(vec![1; MIB].into()).await.unwrap();
    upload.put_part(vec![2; MIB].into()).await.unwrap();
    let refused = upload.complete().await.unwrap_err();
    assert!(format!("{refused:?}").contains("EntityTooSmall"), "{refused:?}");
    upload.abort().await.unwrap();
    assert_eq!(world.read(|state| state.bucket.uploads()), 0);
    assert!(upload.abort().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_wrong_checksum_is_refused_and_nothing_is_stored() {
    let (world, store) = world();
    let request = || Request::put("http://s3.simulated/checkpoints/a");
    let wrong = request().header("x-amz-checksum-crc64nvme", "AAAAAAAAAAA=");
    let (status, text) = raw(&world, wrong, "hello").await;
    assert_eq!((status, text.contains("<Code>BadDigest</Code>")), (400, true));
    let wrong = request().header("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==");
    assert_eq!(raw(&world, wrong, "hello").await.0, 400);
    assert!(store.head(&path("a")).await.is_err());
    let right = request().header("content-md5", "XUFAKrxLKna5cZ2REBfFkg==");
    assert_eq!(raw(&world, right, "hello").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn what_the_simulator_does_not_know_is_refused_loudly() {
    let (world, store) = world();
    put(&store, "a", "x").await;
    let copy = store.copy(&path("a"), &path("b")).await.unwrap_err();
    assert!(format!("{copy:?}").contains("NotImplemented"), "{copy:?}");
    let tags = Request::get("http://s3.simulated/checkpoints?tagging");
    assert_eq!(raw(&world, tags, "").await.0, 501);
    let chunked = Request::put("http://s3.simulated/checkpoints/a");
    let chunked = chunked.header("content-encoding", "aws-chunked");
    assert_eq!(raw(&world, chunked, "1\r\nx\r\n").await.0, 501);
}

#[tokio::test(start_paused = true)]
async fn another_bucket_and_an_unsigned_request_are_refused() {
    let (world, _) = world();
    let wire = s3(world.clone());
    let other = s3_store(&wire, "other").unwrap();
    let missing = other.get(&path("a")).await.unwrap_err();
    assert!(format!("{missing:?}").contains("NoSuchBucket"), "{missing:?}");
    let unsigned = Request::get("http://s3.simulated/checkpoints/a").body(full("")).unwrap();
    assert_eq!(call(&wire, unsigned).await.unwrap().status(), 403);
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_shared_by_all_requests_of_an_instance() {
    let (world, _) = world();
    world.update(|state| state.bucket.limit("i-1", MIB as u64));
    let wire = s3_from(world.clone(), Some("i-1".to_owned()));
    let store = s3_store(&wire, "checkpoints").unwrap();
    let start = Instant::now();
    let keys = [path("a"), path("b"), path("c")];
    let puts = keys.each_ref().map(|key| store.put(key, vec![0; 2 * MIB].into()));
    futures::future::try_join_all(puts).await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_secs(6));
    store.get(&keys[0]).await.unwrap().bytes().await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_secs(8));
}

#[tokio::test(start_paused = true)]
async fn a_request_given_up_on_its_way_stores_nothing() {
    let (world, _) = world();
    world.update(|state| state.bucket.limit("i-1", MIB as u64));
    let wire = s3_from(world.clone(), Some("i-1".to_owned()));
    let store = s3_store(&wire, "checkpoints").unwrap();
    let key = path("a");
    let put = store.put(&key, vec![0; 9 * MIB].into());
    assert!(tokio::time::timeout(Duration::from_secs(5), put).await.is_err());
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert!(world.read(|state| state.bucket.keys("").is_empty()));
}

#[tokio::test(start_paused = true)]
async fn objects_may_be_kept_in_files() {
    let (world, store) = world();
    let folder = tempfile::tempdir().unwrap();
    world.update(|state| state.bucket.keep_in(folder.path().to_owned()));
    put(&store, "a", "0123456789").await;
    assert_eq!(store.get_range(&path("a"), 2..5).await.unwrap(), "234");
    assert_eq!(store.get(&path("a")).await.unwrap().bytes().await.unwrap(), "0123456789");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
