//! Karpenter: buys nodes for pods that wait and for claims that others make, and ends nodes.

use std::path::PathBuf;
use std::time::Duration;

use crate::world::World;

mod claims;
mod count;
mod hear;
mod provision;
mod terminate;

/// How Karpenter behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How it hears of interruptions.
    pub hears: Hears,
    /// Whether it buys nodes for pods that wait.
    pub provisions: Provisions,
    /// From a claim's making to its being launched, or refused.
    pub launch: Duration,
    /// From there until its node is ready.
    pub boot: Duration,
    /// Folder in which the machines that it buys get folders of their own.
    pub machines: PathBuf,
}

/// How Karpenter hears of interruptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hears {
    /// Not at all.
    Nothing,
    /// From a queue of its own, so long after EC2's word: `DelaySeconds` and what the way takes.
    After(Duration),
}

/// Whether Karpenter buys nodes for pods that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provisions {
    /// It does.
    ForPods,
    /// It launches only the claims that others make.
    OnlyClaims,
}

impl Settings {
    /// The usual ones: its queue delayed by five seconds.
    pub fn new(machines: PathBuf) -> Self {
        Self {
            hears: Hears::After(Duration::from_secs(5)),
            provisions: Provisions::ForPods,
            launch: Duration::from_secs(2),
            boot: Duration::from_secs(30),
            machines,
        }
    }
}

/// Plays Karpenter for as long as it is polled.
pub async fn run(world: World, settings: Settings) {
    let hears = hear::run(&world, settings.hears);
    let launches = claims::run(&world, &settings);
    let terminates = terminate::run(&world);
    let provisions = provision::run(&world, settings.provisions);
    let counts = count::run(&world);
    tokio::select! {
        biased;
        () = hears => (),
        () = launches => (),
        () = terminates => (),
        () = provisions => (),
        () = counts => (),
    }
}
