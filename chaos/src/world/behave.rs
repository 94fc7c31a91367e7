//! The behaviours of the world together: what a cluster and a cloud do by themselves.

use std::path::Path;
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::world::State;
use crate::world::World;
use crate::world::budgets;
use crate::world::cluster::resource::Resource;
use crate::world::daemons;
use crate::world::ec2;
use crate::world::jobs;
use crate::world::karpenter;
use crate::world::kubelet;
use crate::world::lifecycle;
use crate::world::runtime::Runtime;
use crate::world::scheduler;

/// Which behaviours a world has, and how they behave.
pub struct Behaviours {
    /// What runs containers.
    pub runtime: Arc<dyn Runtime>,
    /// How kubelets behave.
    pub kubelet: kubelet::Settings,
    /// How the Job controller behaves.
    pub jobs: jobs::Settings,
    /// How EC2 ends instances.
    pub ec2: ec2::Settings,
    /// Karpenter, where there is one.
    pub karpenter: Option<karpenter::Settings>,
}

impl Behaviours {
    /// The usual ones, with a Karpenter whose machines get their folders below `machines`.
    pub fn usual(runtime: Arc<dyn Runtime>, machines: &Path) -> Self {
        Self {
            runtime,
            kubelet: kubelet::Settings::default(),
            jobs: jobs::Settings::default(),
            ec2: ec2::Settings::default(),
            karpenter: Some(karpenter::Settings::new(machines.to_owned())),
        }
    }

    /// Starts them. They live until what is returned is dropped.
    pub fn start(self, world: &World) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn(ec2::run(world.clone(), self.ec2));
        tasks.spawn(scheduler::run(world.clone()));
        tasks.spawn(jobs::run(world.clone(), self.jobs));
        tasks.spawn(budgets::run(world.clone()));
        tasks.spawn(daemons::run(world.clone()));
        tasks.spawn(lifecycle::run(world.clone()));
        tasks.spawn(kubelet::run(world.clone(), self.kubelet, self.runtime));
        if let Some(settings) = self.karpenter {
            tasks.spawn(karpenter::run(world.clone(), settings));
        }
        tasks
    }
}

/// Acts now and after every change of one of these kinds. What `act` changes itself makes it act
/// again, so it has to come to rest.
pub async fn follow(world: &World, kinds: &[Resource], mut act: impl FnMut(&mut State)) {
    let mut seen = None;
    loop {
        let newest = |state: &State| Some(state.cluster.newest_of(kinds));
        seen =
            world.until(|state| newest(state).filter(|newest| seen != Some(*newest))).await.into();
        world.update(&mut act);
    }
}
