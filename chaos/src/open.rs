//! The simulators on loopback, for whoever wants to look or to try a program against them.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use lifeboat::clock::Clock;

use crate::programs;
use crate::scenario;
use crate::script::Line;
use crate::serve;
use crate::serve::Served;
use crate::stage;
use crate::wire;
use crate::wire::Wire;
use crate::world::World;
use crate::world::behave::Behaviours;
use crate::world::kubelet;
use crate::world::workloads::Diary;
use crate::world::workloads::Virtual;

/// A simulated cloud and cluster with one node, on ports of loopback; dropping it ends them.
pub struct Open {
    /// What is served, and where: `kubernetes`, `sqs`, `s3`, `imds`.
    pub addresses: Vec<(&'static str, String)>,
    _served: Vec<Served>,
    _behaviours: tokio::task::JoinSet<()>,
}

/// Serves a world whose machine lies below `folder`; its node is `gpu-1`, of two GPUs.
pub async fn open(folder: &Path) -> anyhow::Result<Open> {
    let world = World::new(Clock::system(), 1);
    scenario::queues(&world);
    stage::pool(&world, 1);
    let node =
        Line { number: 0, words: "node gpu-1 gpus 2".split(' ').map(str::to_owned).collect() };
    stage::put(&world, folder, &node)?;
    let instance =
        world.read(|state| state.machines.get("gpu-1").map(|machine| machine.instance.clone()));
    let instance = instance.context("the stage has no node")?;
    let account = world.read(|state| state.instances.account().to_owned());
    let runtime = Arc::new(Virtual::new(Diary::new(&world)));
    let mut behaviours = Behaviours::usual(runtime, folder);
    behaviours.kubelet =
        kubelet::Settings { nvml: Some(programs::NVML.into()), ..kubelet::Settings::default() };
    let wires: [(&'static str, Wire, String); 4] = [
        ("kubernetes", wire::kube::wire(&world, ""), String::new()),
        ("sqs", wire::sqs::sqs(world.clone()), format!("/{account}/{}", programs::QUEUE)),
        ("s3", wire::s3::s3(world.clone()), format!("/{}", programs::BUCKET)),
        ("imds", wire::imds::imds(world.clone(), &instance), String::new()),
    ];
    let (mut addresses, mut served) = (Vec::new(), Vec::new());
    for (name, wire, path) in wires {
        let door = serve::serve(wire).await?;
        addresses.push((name, format!("{}{path}", door.url())));
        served.push(door);
    }
    let behaviours = behaviours.start(&world);
    Ok(Open { addresses, _served: served, _behaviours: behaviours })
}
