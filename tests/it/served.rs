//! Wires on a port of loopback: the one place beside the process tier that opens any.

use std::time::Duration;

use jiff::Timestamp;
use lifeboat::clock::Clock;
use lifeboat_chaos::serve::Door;
use lifeboat_chaos::serve::serve;
use lifeboat_chaos::wire::s3::s3;
use lifeboat_chaos::world::World;
use object_store::ClientOptions;
use object_store::ObjectStoreExt;
use object_store::RetryConfig;
use object_store::aws::AmazonS3;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;

fn world() -> World {
    let clock = Clock::starting_at(Timestamp::from_second(1_800_000_000).unwrap(), 0);
    World::new(clock, 1)
}

fn store(url: &str) -> AmazonS3 {
    // A second test in this process may have installed it before.
    drop(rustls::crypto::ring::default_provider().install_default());
    let options = ClientOptions::new().with_timeout(Duration::from_secs(2)).with_allow_http(true);
    AmazonS3Builder::new()
        .with_bucket_name("checkpoints")
        .with_region("us-east-2")
        .with_endpoint(url)
        .with_client_options(options)
        .with_access_key_id("simulated")
        .with_secret_access_key("simulated")
        .with_unsigned_payload(true)
        .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
        .build()
        .unwrap()
}

#[tokio::test]
async fn a_served_wire_answers_a_real_client() {
    let served = serve(s3(world())).await.unwrap();
    let store = store(&served.url());
    let text = vec![7; 3 << 20];
    store.put(&Path::from("a"), text.clone().into()).await.unwrap();
    assert_eq!(store.get(&Path::from("a")).await.unwrap().bytes().await.unwrap(), text);
}

#[tokio::test]
async fn a_closed_door_refuses_a_silent_one_never_answers_and_both_open_again() {
    let served = serve(s3(world())).await.unwrap();
    let store = store(&served.url());
    let key = Path::from("a");
    store.put(&key, "x".into()).await.unwrap();
    for door in [Door::Closed, Door::Silent] {
        served.set(door);
        tokio::time::sleep(Duration::from_millis(50)).await;
        store.get(&key).await.unwrap_err();
        served.set(Door::Open);
        tokio::time::sleep(Duration::from_millis(50)).await;
        store.get(&key).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_is_dropped_is_gone() {
    let served = serve(s3(world())).await.unwrap();
    let store = store(&served.url());
    drop(served);
    tokio::time::sleep(Duration::from_millis(50)).await;
    store.put(&Path::from("a"), "x".into()).await.unwrap_err();
}
