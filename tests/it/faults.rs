//! The fault layer in front of real clients in virtual time: one test for each kind of fault.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;
use kube::api::PostParams;
use kube::api::WatchEvent;
use kube::api::WatchParams;
use lifeboat::adapters::store::Store;
use lifeboat::adapters::store::StoreError;
use lifeboat::clock::Clock;
use lifeboat::offload::Offload;
use lifeboat_chaos::faults::Faults;
use lifeboat_chaos::faults::Strike;
use lifeboat_chaos::faults::WireName;
use lifeboat_chaos::serve::kube_client;
use lifeboat_chaos::serve::s3_store;
use lifeboat_chaos::serve::sqs_client;
use lifeboat_chaos::wire;
use lifeboat_chaos::world::World;
use lifeboat_chaos::world::queue::Settings;
use lifeboat_domain::deadline::Deadline;
use object_store::ObjectStoreExt;
use object_store::aws::AmazonS3;
use object_store::path::Path;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::timeout;

const URL: &str = "http://sqs.simulated/123456789012/ours";

struct Stage {
    world: World,
    faults: Faults,
    sqs: aws_sdk_sqs::Client,
    store: AmazonS3,
    nodes: Api<Node>,
}

fn stage(plan: &str) -> Stage {
    let clock = Clock::starting_at(Timestamp::from_second(1_800_000_000).unwrap(), 0);
    let world = World::new(clock, 1);
    world.update(|state| state.queues.create("ours", Settings::default()));
    let faults = Faults::new(plan.parse().unwrap(), 7);
    let before = |name, inner| faults.before(name, "controller", inner);
    let sqs = before(WireName::Sqs, wire::sqs::sqs(world.clone()));
    let s3 = before(WireName::S3, wire::s3::s3(world.clone()));
    let kube = before(WireName::Kube, wire::kube::wire(&world, "controller"));
    Stage {
        sqs: sqs_client(&sqs),
        store: s3_store(&s3, "checkpoints").unwrap(),
        nodes: Api::all(kube_client(&kube, "default")),
        world,
        faults,
    }
}

impl Stage {
    async fn send(&self) -> bool {
        self.sqs.send_message().queue_url(URL).message_body("x").send().await.is_ok()
    }

    fn queued(&self) -> usize {
        self.world.read(|state| state.queues.bodies("ours").len())
    }

    async fn put(&self, key: &str) -> object_store::Result<object_store::PutResult> {
        self.store.put(&Path::from(key), "x".into()).await
    }

    async fn create_node(&self, name: &str) {
        let mut node = Node::default();
        node.metadata.name = Some(name.to_owned());
        self.nodes.create(&PostParams::default(), &node).await.unwrap();
    }

    async fn node_names(&self) -> Vec<String> {
        let nodes = self.nodes.list(&ListParams::default()).await.unwrap();
        nodes.items.into_iter().filter_map(|node| node.metadata.name).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_is_away_for_its_time() {
    let stage = stage("sqs away from 5s until 00:10");
    assert!(stage.send().await);
    sleep(Duration::from_secs(5)).await;
    assert!(!stage.send().await);
    sleep(Duration::from_secs(5)).await;
    assert!(stage.send().await);
    assert_eq!(stage.queued(), 2);
    let at = Duration::from_secs(5);
    let fault = "sqs away from 5s until 10s".to_owned();
    let request = "POST /".to_owned();
    let client = "controller".to_owned();
    assert_eq!(stage.faults.log(), [Strike { at, client, request, fault }]);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_delayed() {
    let stage = stage("s3 delay 1500ms");
    let start = Instant::now();
    stage.put("a").await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_millis(1500));
}

#[tokio::test(start_paused = true)]
async fn each_wire_refuses_in_its_own_words() {
    let stage = stage("kube 429\ns3 503\nsqs 503");
    let refused = stage.nodes.list(&ListParams::default()).await.unwrap_err();
    let kube::Error::Api(refused) = refused else { panic!("{refused:?}") };
    assert_eq!((refused.code, refused.reason.as_str()), (429, "TooManyRequests"));
    let refused = stage.put("a").await.unwrap_err();
    assert!(format!("{refused:?}").contains("SlowDown"), "{refused:?}");
    assert!(!stage.send().await);
    assert_eq!(stage.queued(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_bucket_that_says_slow_down_is_heard_and_tried_again() {
    let plan = "s3 503 until 1s\ns3 429 from 1s until 2s\ns3 500 from 2s until 3s";
    let stage = stage(plan);
    let clock = stage.world.clock();
    let store = Store::new(Arc::new(stage.store), clock.clone(), Offload::Inline);
    let by = Deadline::after(clock.now(), Duration::from_mins(1));
    store.put(&Path::from("a"), &Bytes::from_static(b"a"), by).await.unwrap();
    // After 50, 100, 200, 400 and 800 ms; an error of the bucket's own asks for nothing.
    assert_eq!(store.slow_downs().count(), 6);
    let soon = Deadline::after(clock.now(), Duration::from_millis(10));
    let refused = Store::new(Arc::new(slow(clock)), clock.clone(), Offload::Inline);
    let refused = refused.put(&Path::from("a"), &Bytes::from_static(b"a"), soon).await;
    assert!(matches!(refused, Err(StoreError::SlowDown { .. })), "{refused:?}");
}

/// A bucket that only ever says so.
fn slow(clock: &Clock) -> AmazonS3 {
    let world = World::new(clock.clone(), 1);
    let faults = Faults::new("s3 503".parse().unwrap(), 7);
    s3_store(&faults.before(WireName::S3, "agent", wire::s3::s3(world)), "checkpoints").unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_request_that_hangs_is_never_answered_and_never_done() {
    let stage = stage("s3 hang until 1s");
    assert!(timeout(Duration::from_hours(1), stage.put("a")).await.is_err());
    assert!(stage.world.read(|state| state.bucket.keys("").is_empty()));
    stage.put("a").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_request_was_not_done_and_a_lost_response_was() {
    let stage = stage("sqs lose-request until 1s\nsqs lose-response from 1s");
    assert!(!stage.send().await);
    assert_eq!(stage.queued(), 0);
    sleep(Duration::from_secs(1)).await;
    assert!(!stage.send().await);
    assert_eq!(stage.queued(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_is_done_twice_and_answered_once() {
    let stage = stage("sqs duplicate most 1");
    assert!(stage.send().await);
    assert_eq!(stage.queued(), 2);
    assert!(stage.send().await);
    assert_eq!(stage.queued(), 3);
}

#[tokio::test(start_paused = true)]
async fn requests_overtake_each_other_within_their_bound() {
    let stage = stage("s3 reorder 2s");
    let start = Instant::now();
    let keys = ["a", "b", "c", "d", "e", "f"];
    futures::future::try_join_all(keys.map(|key| stage.put(key))).await.unwrap();
    assert!(start.elapsed() <= Duration::from_secs(2));
    let log = stage.world.read(|state| state.bucket.log().to_vec());
    let order: Vec<_> = log.iter().map(|access| access.key.as_str()).collect();
    assert_ne!(order, keys);
}

#[tokio::test(start_paused = true)]
async fn a_stale_read_tells_what_was_true_before() {
    let stage = stage("kube stale 5s from 1s path /nodes");
    stage.create_node("old").await;
    assert_eq!(stage.node_names().await, ["old"]);
    stage.create_node("new").await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(stage.node_names().await, ["old"]);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(stage.node_names().await, ["new", "old"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_runs_is_told_that_it_is_gone() {
    let stage = stage("kube watch-gone from 3s until 4s");
    let start = Instant::now();
    let mut events = stage.nodes.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    stage.create_node("one").await;
    assert!(matches!(events.next().await, Some(Ok(WatchEvent::Added(_)))));
    let Some(Ok(WatchEvent::Error(gone))) = events.next().await else { panic!("no error") };
    assert_eq!((gone.code, start.elapsed()), (410, Duration::from_secs(3)));
    let mut again = stage.nodes.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    assert!(matches!(again.next().await, Some(Ok(WatchEvent::Error(_)))));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_runs_breaks_when_its_server_goes_away() {
    let stage = stage("");
    let mut events = stage.nodes.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    let start = Instant::now();
    let later = async {
        sleep(Duration::from_secs(2)).await;
        stage.faults.add_from_now("kube away for 9s".parse().unwrap());
    };
    let (broken, ()) = tokio::join!(events.next(), later);
    assert!(matches!(broken, Some(Err(_)) | None), "{broken:?}");
    assert_eq!(start.elapsed(), Duration::from_secs(2));
    assert!(stage.nodes.list(&ListParams::default()).await.is_err());
    sleep(Duration::from_secs(9)).await;
    assert!(stage.nodes.list(&ListParams::default()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_fault_strikes_only_whom_it_names() {
    let stage = stage(
        "s3 500 client agent-1\n\
         s3 500 method DELETE\n\
         s3 500 path /epochs/ most 2",
    );
    stage.put("a").await.unwrap();
    stage.put("epochs/1").await.unwrap_err();
    stage.put("epochs/1").await.unwrap_err();
    stage.put("epochs/1").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn chance_is_drawn_from_the_seed() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let stage = stage("sqs lose-request chance 50");
        let mut sent = Vec::new();
        for _ in 0..40 {
            sent.push(stage.send().await);
        }
        runs.push(sent);
    }
    assert_eq!(runs[0], runs[1]);
    let sent = runs[0].iter().filter(|sent| **sent).count();
    assert!((8..=32).contains(&sent), "{sent} of 40");
}
