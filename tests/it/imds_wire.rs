//! The simulated metadata service in virtual time: one test for each rule we rely on.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::Request;
use http::Response;
use jiff::Timestamp;
use lifeboat::adapters::imds::Action;
use lifeboat::adapters::imds::Imds;
use lifeboat::adapters::imds::ImdsError;
use lifeboat::adapters::imds::LifeCycle;
use lifeboat::clock::Clock;
use lifeboat_chaos::serve::bytes_service;
use lifeboat_chaos::wire::BoxError;
use lifeboat_chaos::wire::imds::imds;
use lifeboat_chaos::world::World;
use lifeboat_chaos::world::instances::ImdsMode;
use lifeboat_chaos::world::instances::Notice;
use lifeboat_chaos::world::instances::NoticeAction;
use lifeboat_chaos::world::instances::Offering;
use lifeboat_chaos::world::instances::Purchase;
use tower::ServiceExt;

const ID: &str = "i-0123456789abcdef0";
const TTL: &str = "X-aws-ec2-metadata-token-ttl-seconds";

fn world() -> World {
    let clock = Clock::starting_at("2026-11-22T12:00:00Z".parse().unwrap(), 0);
    let world = World::new(clock, 1);
    let now = world.now();
    let offering =
        Offering { instance_type: "g5.xlarge", zone: "us-east-2a", purchase: Purchase::Spot };
    world.update(|state| state.instances.launch(ID, offering, now));
    world
}

async fn ask(world: &World, request: Request<Bytes>) -> Result<Response<Bytes>, BoxError> {
    bytes_service(&imds(world.clone(), ID)).oneshot(request).await
}

fn put_token(ttl: &str) -> Request<Bytes> {
    let request = Request::builder().method(Method::PUT).uri("http://imds/latest/api/token");
    request.header(TTL, ttl).body(Bytes::new()).unwrap()
}

fn get(item: &str, token: &str) -> Request<Bytes> {
    let request = Request::builder().uri(format!("http://imds/latest/{item}"));
    request.header("X-aws-ec2-metadata-token", token).body(Bytes::new()).unwrap()
}

async fn token(world: &World) -> String {
    let response = ask(world, put_token("60")).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()[TTL]),
        (200, &"60".parse().unwrap())
    );
    String::from_utf8(response.into_body().to_vec()).unwrap()
}

#[track_caller]
fn check(response: &Response<Bytes>, status: u16, text: &str) {
    assert_eq!((response.status().as_u16(), response.body().as_ref()), (status, text.as_bytes()));
}

async fn check_item(world: &World, item: &str, text: &str) {
    let token = token(world).await;
    check(&ask(world, get(item, &token)).await.unwrap(), 200, text);
}

fn announce(world: &World, seconds: u64) {
    let now = world.now();
    let time = now + Duration::from_secs(seconds);
    let notice = Notice { action: NoticeAction::Terminate, at: now, time, imds_from: Some(now) };
    world.update(|state| state.instances.announce(ID, notice));
}

#[tokio::test(start_paused = true)]
async fn a_token_needs_a_life_within_its_limits_and_a_put_that_was_not_forwarded() {
    let world = world();
    for ttl in ["0", "21601", "soon", ""] {
        check(&ask(&world, put_token(ttl)).await.unwrap(), 400, "");
    }
    check(&ask(&world, get("api/token", "")).await.unwrap(), 405, "");
    let mut forwarded = put_token("60");
    forwarded.headers_mut().insert("X-Forwarded-For", "10.0.0.1".parse().unwrap());
    check(&ask(&world, forwarded).await.unwrap(), 403, "");
    ask(&world, put_token("21600")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_told_without_a_living_token() {
    let world = world();
    let token = token(&world).await;
    check(&ask(&world, get("meta-data/instance-id", "made-up")).await.unwrap(), 401, "");
    check(&ask(&world, get("meta-data/instance-id", &token)).await.unwrap(), 200, ID);
    tokio::time::sleep(Duration::from_mins(1)).await;
    check(&ask(&world, get("meta-data/instance-id", &token)).await.unwrap(), 401, "");
}

#[tokio::test(start_paused = true)]
async fn an_instance_tells_where_and_what_it_is() {
    let world = world();
    check_item(&world, "meta-data/instance-id", ID).await;
    check_item(&world, "meta-data/instance-life-cycle", "spot").await;
    check_item(&world, "meta-data/placement/availability-zone", "us-east-2a").await;
    check_item(&world, "meta-data/placement/region", "us-east-2").await;
    let token = token(&world).await;
    let document = ask(&world, get("dynamic/instance-identity/document", &token)).await.unwrap();
    let document: serde_json::Value = serde_json::from_slice(document.body()).unwrap();
    assert_eq!(document["instanceId"], ID);
    assert_eq!(document["accountId"], "123456789012");
    assert_eq!(document["instanceType"], "g5.xlarge");
}

#[tokio::test(start_paused = true)]
async fn a_notice_is_an_empty_404_until_it_is_there() {
    let world = world();
    let token = token(&world).await;
    let none = ask(&world, get("meta-data/spot/instance-action", &token)).await.unwrap();
    check(&none, 404, "");
    assert_eq!(none.headers()["connection"], "close");
    announce(&world, 45);
    let text = r#"{"action":"terminate","time":"2026-11-22T12:00:45Z"}"#;
    check_item(&world, "meta-data/spot/instance-action", text).await;
    check_item(&world, "meta-data/spot/termination-time", "2026-11-22T12:00:45Z").await;
}

#[tokio::test(start_paused = true)]
async fn a_recommendation_names_its_time() {
    let world = world();
    let token = token(&world).await;
    let path = "meta-data/events/recommendations/rebalance";
    check(&ask(&world, get(path, &token)).await.unwrap(), 404, "");
    let now: Timestamp = world.now();
    world.update(|state| state.instances.recommend(ID, now));
    check_item(&world, path, r#"{"noticeTime":"2026-11-22T12:00:00Z"}"#).await;
}

#[tokio::test(start_paused = true)]
async fn throttled_or_switched_off_is_never_a_404() {
    let world = world();
    let token = token(&world).await;
    for (mode, status) in [(ImdsMode::Throttled, 503), (ImdsMode::Off, 403)] {
        world.update(|state| state.instances.get_mut(ID).unwrap().imds = mode);
        check(&ask(&world, put_token("60")).await.unwrap(), status, "");
        let action = get("meta-data/spot/instance-action", &token);
        check(&ask(&world, action).await.unwrap(), status, "");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hop_limit_looks_like_a_token_that_never_comes() {
    let world = world();
    let mode = ImdsMode::TokenNeverAnswers;
    world.update(|state| state.instances.get_mut(ID).unwrap().imds = mode);
    let asked = tokio::time::timeout(Duration::from_hours(1), ask(&world, put_token("60")));
    assert!(asked.await.is_err());
    check(&ask(&world, get("meta-data/instance-id", "none")).await.unwrap(), 401, "");
}

#[tokio::test(start_paused = true)]
async fn a_gone_instance_answers_nothing() {
    let world = world();
    let now = world.now();
    assert!(world.update(|state| state.instances.take(ID, now)));
    ask(&world, put_token("60")).await.unwrap();
    assert!(world.update(|state| state.instances.terminated(ID, now)));
    assert!(ask(&world, put_token("60")).await.is_err());
}

fn agent(world: &World) -> Imds {
    Imds::new(bytes_service(&imds(world.clone(), ID)), "http://169.254.169.254")
}

#[tokio::test(start_paused = true)]
async fn the_agent_reads_what_there_is_and_takes_a_new_token_when_its_own_is_forgotten() {
    let world = world();
    let mut agent = agent(&world);
    assert_eq!(agent.identity().await.unwrap().instance_id, ID);
    assert_eq!(agent.life_cycle().await.unwrap(), LifeCycle::Spot);
    assert_eq!(agent.instance_action().await.unwrap(), None);
    assert_eq!(agent.rebalance().await.unwrap(), None);
    announce(&world, 45);
    world.update(|state| state.instances.get_mut(ID).unwrap().forget_tokens());
    let notice = agent.instance_action().await.unwrap().unwrap();
    assert_eq!(notice.action, Action::Terminate);
    assert_eq!(notice.time, Some("2026-11-22T12:00:45Z".parse().unwrap()));
}

#[tokio::test(start_paused = true)]
async fn the_agent_never_takes_trouble_for_the_absence_of_a_notice() {
    let world = world();
    let mut agent = agent(&world);
    let mode = |mode| world.update(|state| state.instances.get_mut(ID).unwrap().imds = mode);
    mode(ImdsMode::TokenNeverAnswers);
    let error = agent.instance_action().await.unwrap_err();
    assert!(matches!(error, ImdsError::TokenUnanswered), "{error:?}");
    mode(ImdsMode::Off);
    let error = agent.instance_action().await.unwrap_err();
    assert!(matches!(error, ImdsError::SwitchedOff), "{error:?}");
    mode(ImdsMode::Throttled);
    let error = agent.instance_action().await.unwrap_err();
    assert!(matches!(error, ImdsError::Refused { .. }), "{error:?}");
    mode(ImdsMode::Answers);
    assert_eq!(agent.instance_action().await.unwrap(), None);
}
