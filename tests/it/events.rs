//! The bodies that the simulated cloud puts on a queue, read by the program as it reads the real ones.

use std::time::Duration;

use jiff::Timestamp;
use lifeboat::adapters::eventbridge::Event;
use lifeboat::adapters::eventbridge::Home;
use lifeboat::adapters::eventbridge::NotOurs;
use lifeboat::adapters::eventbridge::Reading;
use lifeboat::adapters::eventbridge::read;
use lifeboat::clock::Clock;
use lifeboat_chaos::world::World;
use lifeboat_chaos::world::instances::InstanceState;
use lifeboat_chaos::world::instances::NoticeAction;
use lifeboat_chaos::world::instances::Offering;
use lifeboat_chaos::world::instances::Purchase;
use lifeboat_chaos::world::instances::announce::Announcement;
use lifeboat_chaos::world::instances::events::EventKind;
use lifeboat_chaos::world::instances::events::as_in_china;
use lifeboat_chaos::world::queue::Settings;
use lifeboat_domain::signal::Action;
use lifeboat_domain::signal::Kind;

const ID: &str = "i-0123456789abcdef0";

fn world() -> World {
    let clock = Clock::starting_at("2026-11-22T12:00:00Z".parse().unwrap(), 0);
    let world = World::new(clock, 1);
    let now = world.now();
    let offering =
        Offering { instance_type: "g5.xlarge", zone: "us-east-2a", purchase: Purchase::Spot };
    world.update(|state| {
        state.instances.launch(ID, offering, now);
        state.queues.create("ours", Settings::default());
        state.queues.create("karpenter", Settings::default());
    });
    world
}

fn home(region: &str) -> Home {
    Home { region: region.to_owned(), account: Some("123456789012".to_owned()) }
}

fn only(world: &World, queue: &str) -> String {
    world.read(|state| {
        let bodies = state.queues.bodies(queue);
        assert_eq!(bodies.len(), 1);
        bodies[0].to_owned()
    })
}

fn heard(kind: EventKind) -> Event {
    let world = world();
    world.publish(ID, kind, &["ours"]);
    let body = only(&world, "ours");
    let reading = read(body.as_bytes(), &home("us-east-2"), world.now()).unwrap();
    let Reading::Event(event) = reading else { panic!("{reading:?}: {body}") };
    assert_eq!(event.instances[0].as_str(), ID);
    assert_eq!(event.time, world.now());
    event
}

fn at(seconds: u64) -> Timestamp {
    "2026-11-22T12:00:00Z".parse::<Timestamp>().unwrap() + Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn each_kind_of_event_is_read_as_what_it_is() {
    let spot = heard(EventKind::SpotInterruption(NoticeAction::Terminate));
    assert_eq!(spot.kind, Kind::SpotInterruption { action: Action::Terminate });
    assert_eq!(spot.zone.unwrap().as_str(), "us-east-2a");
    let hibernate = heard(EventKind::SpotInterruption(NoticeAction::Hibernate));
    assert_eq!(hibernate.kind, Kind::SpotInterruption { action: Action::Hibernate });
    assert_eq!(heard(EventKind::RebalanceRecommendation).kind, Kind::RebalanceRecommendation);
    let change = heard(EventKind::ScheduledChange { start: at(86_400) });
    assert_eq!((change.kind, change.named.is_some()), (Kind::ScheduledChange, true));
    let going = heard(EventKind::StateChange(InstanceState::ShuttingDown));
    assert!(matches!(going.kind, Kind::StateChange { .. }));
    let taken = heard(EventKind::CapacityReservationInterruption { termination: at(120) });
    assert_eq!((taken.kind, taken.named.is_some()), (Kind::CapacityReservation, true));
}

#[tokio::test(start_paused = true)]
async fn a_state_that_an_instance_stays_in_asks_for_nothing() {
    let world = world();
    world.publish(ID, EventKind::StateChange(InstanceState::Running), &["ours"]);
    let reading = read(only(&world, "ours").as_bytes(), &home("us-east-2"), world.now());
    assert_eq!(reading.unwrap(), Reading::NotOurs(NotOurs::NothingToDo));
}

#[tokio::test(start_paused = true)]
async fn china_writes_its_resources_in_another_way() {
    let world = world();
    let kind = EventKind::SpotInterruption(NoticeAction::Terminate);
    let now = world.now();
    let event = world.update(|state| state.instances.event(ID, kind, now));
    let body = as_in_china(event).to_string();
    let reading = read(body.as_bytes(), &home("cn-north-1"), now).unwrap();
    let Reading::Event(event) = reading else { panic!("{reading:?}") };
    assert_eq!((event.instances[0].as_str(), event.zone), (ID, None));
    let elsewhere = read(body.as_bytes(), &home("us-east-2"), now).unwrap();
    assert_eq!(elsewhere, Reading::NotOurs(NotOurs::Region));
}

#[tokio::test(start_paused = true)]
async fn an_announcement_goes_to_every_queue_and_into_the_metadata_when_it_says() {
    let world = world();
    let announcement = Announcement {
        action: NoticeAction::Terminate,
        lead: Duration::from_mins(2),
        imds_after: Some(Duration::from_secs(3)),
        queues: &["ours", "karpenter", "none"],
    };
    world.announce(ID, announcement);
    assert_eq!(only(&world, "ours"), only(&world, "karpenter"));
    let shown = |world: &World| {
        let now = world.now();
        world.read(|state| state.instances.get(ID).unwrap().notice_in_imds(now))
    };
    assert_eq!(shown(&world), None);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(shown(&world).unwrap().time, at(120));
}
