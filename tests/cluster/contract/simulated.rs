//! The simulated API server, held to what the real one was recorded to say.

use jiff::Timestamp;
use lifeboat::clock::Clock;
use lifeboat_chaos::serve::kube_client;
use lifeboat_chaos::wire::kube::wire;
use lifeboat_chaos::world::World;

use crate::rules::CHAPTERS;
use crate::rules::Levers;
use crate::rules::differences;

#[tokio::test(start_paused = true)]
async fn the_simulated_server_keeps_every_rule_as_recorded() {
    let mut wrong = String::new();
    for chapter in CHAPTERS {
        let told = chapter.ask(async || server()).await;
        wrong += &differences(&chapter.recorded(), &told);
    }
    assert!(wrong.is_empty(), "the simulator says otherwise (+) than the real server (-)\n{wrong}");
}

/// An empty world for every rule.
fn server() -> Levers {
    let start: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
    let world = World::new(Clock::starting_at(start, 0), 7);
    world.update(|_| ());
    let client = kube_client(&wire(&world, ""), "default");
    let forget = move || -> futures::future::BoxFuture<'static, ()> {
        world.update(|state| state.cluster.compact());
        Box::pin(async {})
    };
    Levers { client, forget: Box::new(forget) }
}
