//! The agent's IMDS client against the simulated service: one test for each of its rules.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat::adapters::imds::Action;
use lifeboat::adapters::imds::Imds;
use lifeboat::adapters::imds::LifeCycle;
use lifeboat::clock::Clock;
use lifeboat::error::Classify;
use lifeboat_chaos::serve::bytes_service;
use lifeboat_chaos::wire::Wire;
use lifeboat_chaos::wire::call;
use lifeboat_chaos::wire::imds::imds;
use lifeboat_chaos::wire::wire;
use lifeboat_chaos::world::World;
use lifeboat_chaos::world::instances::ImdsMode;
use lifeboat_chaos::world::instances::Notice;
use lifeboat_chaos::world::instances::NoticeAction;
use lifeboat_chaos::world::instances::Offering;
use lifeboat_chaos::world::instances::Purchase;

const ID: &str = "i-0123456789abcdef0";

struct Fixture {
    world: World,
    imds: Imds,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fixture {
    fn new() -> Self {
        let world = World::new(Clock::starting_at("2026-11-22T12:00:00Z".parse().unwrap(), 0), 1);
        let now = world.now();
        let offering =
            Offering { instance_type: "g5.xlarge", zone: "us-east-2a", purchase: Purchase::Spot };
        world.update(|state| state.instances.launch(ID, offering, now));
        let asked = Arc::default();
        let overheard = overheard(imds(world.clone(), ID), Arc::clone(&asked));
        let imds = Imds::new(bytes_service(&overheard), "http://169.254.169.254/");
        Self { world, imds, asked }
    }

    fn mode(&self, mode: ImdsMode) {
        self.world.update(|state| state.instances.get_mut(ID).unwrap().imds = mode);
    }

    fn announce(&self, action: NoticeAction) -> Timestamp {
        let now = self.world.now();
        let time = now + Duration::from_mins(2);
        let notice = Notice { action, at: now, time, imds_from: Some(now) };
        self.world.update(|state| state.instances.announce(ID, notice));
        time
    }

    fn tokens(&self) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|line| line.starts_with("PUT")).count()
    }

    async fn check_fails(&mut self, label: &str) {
        assert_eq!(self.imds.instance_action().await.unwrap_err().label(), label);
    }
}

fn overheard(inner: Wire, asked: Arc<Mutex<Vec<String>>>) -> Wire {
    wire(move |request| {
        let line = format!("{} {}", request.method(), request.uri().path());
        asked.lock().unwrap().push(line);
        call(&inner, request)
    })
}

#[tokio::test(start_paused = true)]
async fn nothing_is_announced_until_it_is() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.imds.instance_action().await.unwrap(), None);
    assert_eq!(fixture.imds.rebalance().await.unwrap(), None);
    let time = fixture.announce(NoticeAction::Terminate);
    let told = fixture.imds.instance_action().await.unwrap().unwrap();
    assert_eq!((told.action, told.time), (Action::Terminate, Some(time)));
}

#[tokio::test(start_paused = true)]
async fn a_recommendation_says_when_it_was_made() {
    let mut fixture = Fixture::new();
    let now = fixture.world.now();
    fixture.world.update(|state| state.instances.recommend(ID, now));
    assert_eq!(fixture.imds.rebalance().await.unwrap(), Some(now));
}

#[tokio::test(start_paused = true)]
async fn the_instance_says_what_it_is() {
    let mut fixture = Fixture::new();
    let identity = fixture.imds.identity().await.unwrap();
    assert_eq!(identity.instance_id, ID);
    assert_eq!(identity.availability_zone, "us-east-2a");
    assert_eq!(identity.instance_type.as_deref(), Some("g5.xlarge"));
    assert_eq!(fixture.imds.life_cycle().await.unwrap(), LifeCycle::Spot);
}

#[tokio::test(start_paused = true)]
async fn one_token_serves_until_shortly_before_its_end() {
    let mut fixture = Fixture::new();
    for _ in 0..10 {
        fixture.imds.instance_action().await.unwrap();
    }
    assert_eq!(fixture.tokens(), 1);
    tokio::time::sleep(Duration::from_mins(359) + Duration::from_secs(1)).await;
    fixture.imds.instance_action().await.unwrap();
    assert_eq!(fixture.tokens(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_refused_is_replaced_once() {
    let mut fixture = Fixture::new();
    fixture.imds.instance_action().await.unwrap();
    fixture.world.update(|state| state.instances.get_mut(ID).unwrap().forget_tokens());
    let time = fixture.announce(NoticeAction::Hibernate);
    let told = fixture.imds.instance_action().await.unwrap().unwrap();
    assert_eq!((told.action, told.time), (Action::Hibernate, Some(time)));
    assert_eq!(fixture.tokens(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_hop_limit_is_told_apart_by_its_silence() {
    let mut fixture = Fixture::new();
    fixture.mode(ImdsMode::TokenNeverAnswers);
    let before = tokio::time::Instant::now();
    let error = fixture.imds.instance_action().await.unwrap_err();
    assert_eq!(error.label(), "token_unanswered");
    assert!(error.to_string().contains("hop limit"), "{error}");
    assert!(before.elapsed() <= Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn throttling_and_a_service_that_is_off_are_not_the_absence_of_a_notice() {
    let mut fixture = Fixture::new();
    fixture.announce(NoticeAction::Terminate);
    fixture.mode(ImdsMode::Throttled);
    fixture.check_fails("refused").await;
    fixture.mode(ImdsMode::Off);
    fixture.check_fails("switched_off").await;
    fixture.mode(ImdsMode::Answers);
    assert!(fixture.imds.instance_action().await.unwrap().is_some());
}
