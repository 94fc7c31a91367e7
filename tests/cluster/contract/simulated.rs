//! The simulated API server, held to what the real one was recorded to say.

use futures::future::BoxFuture;
use jiff::Timestamp;
use lifeboat::clock::Clock;
use lifeboat_chaos::serve::kube_client;
use lifeboat_chaos::wire::kube::wire;
use lifeboat_chaos::world::World;
use lifeboat_chaos::world::budgets;
use lifeboat_chaos::world::jobs;
use lifeboat_chaos::world::lifecycle;
use tokio::task::JoinSet;

use crate::rules::CHAPTERS;
use crate::rules::CONTROLLERS;
use crate::rules::Levers;
use crate::rules::differences;

const SAYS_OTHERWISE: &str = "the simulator says otherwise (+) than the real server (-)";

#[tokio::test(start_paused = true)]
async fn the_simulated_server_keeps_every_rule_as_recorded() {
    let mut wrong = String::new();
    for chapter in CHAPTERS {
        let told = chapter.ask(async || server(&world())).await;
        wrong += &differences(&chapter.recorded(), &told);
    }
    assert!(wrong.is_empty(), "{SAYS_OTHERWISE}\n{wrong}");
}

#[tokio::test(start_paused = true)]
async fn the_simulated_controllers_keep_every_rule_as_recorded() {
    let mut controllers = JoinSet::new();
    let told = CONTROLLERS
        .ask(async || {
            let world = world();
            controllers = JoinSet::new();
            controllers.spawn(budgets::run(world.clone()));
            controllers.spawn(jobs::run(world.clone(), jobs::Settings::default()));
            controllers.spawn(lifecycle::run(world.clone()));
            server(&world)
        })
        .await;
    let wrong = differences(&CONTROLLERS.recorded(), &told);
    assert!(wrong.is_empty(), "{SAYS_OTHERWISE}\n{wrong}");
}

/// An empty world for every rule.
fn world() -> World {
    let start: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
    let world = World::new(Clock::starting_at(start, 0), 7);
    world.update(|_| ());
    world
}

fn server(world: &World) -> Levers {
    let client = kube_client(&wire(world, ""), "default");
    let (old, new) = (world.clone(), world.clone());
    let forget = move || -> BoxFuture<'static, ()> {
        old.update(|state| state.cluster.compact());
        Box::pin(async {})
    };
    let restart = move || -> BoxFuture<'static, ()> {
        new.update(|state| state.cluster.break_watches());
        Box::pin(async {})
    };
    Levers { client, forget: Box::new(forget), restart: Box::new(restart) }
}
